"""The agent's configuration as types: one TOML file, and the inventories that it names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from device_drivers.kit.registry import DriverPackage, load
from edge_agent.clock import ClockSettings
from edge_agent.commands import CommandSettings
from edge_agent.inventory import Inventory, Read
from edge_agent.lighting import Programme
from edge_agent.metrics import Endpoint
from edge_agent.outbox import OutboxSettings
from edge_agent.quality import Limits
from edge_agent.report_by_exception import ReportRule, ReportSettings
from edge_agent.schedule import Pacing
from edge_agent.status import Socket
from exchange.broker_table import BrokerTable, Host, Port
from exchange.readings import PackFormat
from exchange.states import Label, Location, Text
from exchange.topics import END, County, Level

Interval = Annotated[float, msgspec.Meta(ge=0.01, le=7 * 86400)]
Timeout = Annotated[float, msgspec.Meta(ge=0.01, le=60)]
PRINTABLE = r"[^\x00-\x1f\x7f]"
Given = Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern=f"^{PRINTABLE}*{END}")]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: no key that nobody reads."""


class GivenLabel(Label, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A label as it is written here: the wire type takes keys of later versions, a file does not."""


class GivenLocation(Location, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A location as it is written here."""


class Gateway(_Table, frozen=True, kw_only=True):
    """The gateway itself. `state_dir` holds the outbox."""

    id: Level
    county: County
    site: Level
    state_dir: Given
    interval_s: Interval = 60.0
    label: GivenLabel = GivenLabel()
    location: GivenLocation | None = None
    township: Text = ""
    time_zone: str = "Asia/Taipei"
    """IANA name; the civil days of lamp programmes are by it."""


class Broker(BrokerTable, frozen=True, kw_only=True):
    """The uplink."""

    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    timeout_s: Timeout = 10.0


class Delivery(_Table, frozen=True, kw_only=True):
    """How samples go out."""

    window: Annotated[int, msgspec.Meta(ge=10, le=100_000)] = 5000
    pack_samples: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100
    format: PackFormat = "json"
    drain_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 10.0


class SerialBus(_Table, frozen=True, kw_only=True, tag_field="kind", tag="serial"):
    """A serial line with one device. What is left out is taken from the device's profile."""

    id: Level
    port: Given
    baudrate: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] | None = None


class ModbusRtuBus(_Table, frozen=True, kw_only=True, tag_field="kind", tag="modbus-rtu"):
    """A Modbus RTU line. What is left out is taken from the profiles of its devices, where they agree."""

    id: Level
    port: Given
    baudrate: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] | None = None
    parity: Literal["N", "E", "O"] | None = None
    stopbits: Literal[1, 2] | None = None
    timeout_s: Timeout | None = None


class ModbusTcpBus(_Table, frozen=True, kw_only=True, tag_field="kind", tag="modbus-tcp"):
    """A Modbus TCP server."""

    id: Level
    host: Host
    port: Port = 502
    timeout_s: Timeout | None = None


class BleBus(_Table, frozen=True, kw_only=True, tag_field="kind", tag="ble"):
    """A Bluetooth adapter that listens and connects."""

    id: Level
    adapter: Annotated[str, msgspec.Meta(pattern=rf"^hci\d+{END}")] = "hci0"


Bus = SerialBus | ModbusRtuBus | ModbusTcpBus | BleBus


class Device(_Table, frozen=True, kw_only=True):
    """One device. `settings` are its driver's; `metrics` that its domain lacks become `x-{vendor}-…`."""

    id: Level
    domain: str
    driver: str
    bus: str
    interval_s: Interval
    settings: dict[str, Any] = {}
    report: dict[str, ReportRule] = {}
    """By metric when a sample of it is worth sending; without any rule all are."""
    limits: dict[str, Limits] = {}
    """By metric what is plausible here."""
    label: GivenLabel = GivenLabel()
    location: GivenLocation | None = None
    asset_id: Text = ""
    cabinet: Text = ""
    circuit: Text = ""
    township: Text = ""
    serial: Text = ""
    installed: Text = ""

    @property
    def package(self) -> DriverPackage:
        """The driver's folder."""
        return load(self.driver)

    @property
    def vendor(self) -> str:
        """The word in `x-{vendor}-…` for metrics that the domain lacks."""
        return self.driver.partition("_")[0]


class Config(_Table, frozen=True, kw_only=True):
    """The whole file. Paths are relative to its folder; `device` has the inventories' rows, too, once it is read."""

    gateway: Gateway
    broker: Broker
    delivery: Delivery = Delivery()
    outbox: OutboxSettings = OutboxSettings()
    clock: ClockSettings = ClockSettings()
    polling: Pacing = Pacing()
    report: ReportSettings = ReportSettings()
    commands: CommandSettings = CommandSettings()
    metrics: Endpoint = Endpoint()
    status: Socket = Socket()
    bus: list[Bus] = []
    device: list[Device] = []
    programme: list[Programme] = []
    template: dict[str, dict[str, Any]] = {}
    inventory: list[Inventory] = []

    @property
    def rows(self) -> dict[str, int]:
        """How many rows each inventory had, by file."""
        return {one.file: one.rows for one in self.inventory if isinstance(one, Read)}

    def bus_of(self, device: Device) -> Bus:
        """Return the bus that a checked device names."""
        return next(bus for bus in self.bus if bus.id == device.bus)


PARTS = frozenset({"bus", "device", "programme", "template", "inventory"})
"""Tables whose entries stand or fall one by one; each of the others does as a whole."""
