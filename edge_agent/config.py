"""The agent's configuration: one TOML file, typed, and the inventories that it names.

What concerns one device or one bus is left out when it is wrong, and said: the others start without it. What concerns
the gateway itself, or its way to the broker, is final.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import inspect
from msgspec.structs import replace

from device_drivers.kit.port_names import port_problem
from device_drivers.kit.profile import Transport, shared_transport
from device_drivers.kit.registry import DriverPackage, load
from edge_agent import lighting
from edge_agent.clock import ClockSettings
from edge_agent.commands import CommandSettings
from edge_agent.inventory import TEMPLATE, Inventory, Row, Rows, read_rows
from edge_agent.lighting import Programme
from edge_agent.metrics import Endpoint
from edge_agent.outbox import OutboxSettings
from edge_agent.quality import Limits, check_limits
from edge_agent.report_by_exception import ReportRule, ReportSettings, check_report
from edge_agent.schedule import Pacing
from edge_agent.status import Socket
from exchange.configuration import TomlFile, check_zone, converted, secret, type_at
from exchange.dictionary import dictionary
from exchange.errors import ConfigError
from exchange.readings import PackFormat
from exchange.states import Label, Location, Text
from exchange.tls import Tls, check_plain
from exchange.topics import END, County, Level

Interval = Annotated[float, msgspec.Meta(ge=0.01, le=7 * 86400)]
Timeout = Annotated[float, msgspec.Meta(ge=0.01, le=60)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
# Names of at most 253 characters in labels of at most 63, or an address: what a resolver takes.
Host = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^[^\x00-\x20\x7f.]{{1,63}}(\.[^\x00-\x20\x7f.]{{1,63}})*\.?{END}", max_length=253
    ),
]
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


class Broker(_Table, frozen=True, kw_only=True):
    """The uplink. The password comes from a file or an environment variable, never from here.

    Only a broker on loopback goes without `tls`. The port is 1883, or 8883 with TLS, unless given.
    """

    host: Host
    port: Port | None = None
    tls: Tls | None = None
    username: Annotated[str, msgspec.Meta(pattern=f"^{PRINTABLE}*{END}", max_length=1024)] = ""
    password_file: str = ""
    password_env: str = ""
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    timeout_s: Timeout = 10.0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port or (8883 if self.tls else 1883)

    def password(self, file: str) -> str | None:
        """Return the secret. Raises: ConfigError when the file or the variable is not there."""
        return secret(file, "broker", self.password_file, self.password_env)

    def context(self, file: str) -> ssl.SSLContext | None:
        """Return TLS for one connection. Raises: ConfigError when a file is missing or no secret."""
        return None if self.tls is None else self.tls.context(file, "broker.tls")


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
BUS_KINDS = {"serial": ("serial",), "modbus": ("modbus-rtu", "modbus-tcp"), "ble": ("ble",)}
"""What a profile's transport can be reached over."""


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

    def bus_of(self, device: Device) -> Bus:
        """Return the bus that a checked device names."""
        return next(bus for bus in self.bus if bus.id == device.bus)


class Loaded(NamedTuple):
    """A configuration without what is wrong in it, and what that is."""

    config: Config
    problems: list[ConfigError]


class Origin(NamedTuple):
    """A device as it is written: a table, or an inventory's row put into its template."""

    name: str
    """What others' errors call it: `device[3]`, `lamps.csv:17`."""
    data: object
    wrong: Callable[[str, object, str], ConfigError]
    """An error about one of its keys, as an error about the file; takes key, value and what is allowed."""


class Examined(NamedTuple):
    """All that can be said of a file. `config` is None when no agent can start with it; why is the first problem."""

    config: Config | None
    problems: list[ConfigError]
    origins: dict[str, Origin]
    """By device."""
    toml: TomlFile


def read_config(path: Path) -> Config:
    """Return the configuration, when all of it is right. Raises: ConfigError."""
    config, problems = load_config(path)
    if problems:
        raise problems[0]
    return config


def load_config(path: Path) -> Loaded:
    """Return the configuration as far as it is right: wrong devices, buses and rows are left out, each a problem.

    Raises: ConfigError when the file cannot be read, or what concerns the gateway itself or its broker is wrong.
    """
    found = examine(path)
    if found.config is None:
        raise found.problems[0]
    return Loaded(found.config, found.problems)


def examine(path: Path) -> Examined:
    """Return all that is wrong with a file. Raises: ConfigError when it is no TOML."""
    return _Reader(path).read()


_BUS: Any = Bus
_PARTS = ("bus", "device", "template", "inventory", "programme")
"""What is read one by one; the rest stands or falls as a whole."""


class _Reader:
    """One reading of one file."""

    def __init__(self, path: Path) -> None:
        self._toml = TomlFile(path)
        self._path, self._file = path, str(path)
        self._problems: list[ConfigError] = []
        self._said: set[tuple[object, ...]] = set()
        self._templates: dict[str, dict[str, Any]] = {}
        self._inventories: list[Inventory] = []
        self._buses: dict[str, Bus] = {}
        self._bus_places: dict[str, str] = {}
        self._lost_buses: set[str] = set()
        self._lost_devices: set[str] = set()
        self._origins: dict[str, Origin] = {}
        self._at: dict[tuple[str, str], Origin] = {}
        """Who is where on which bus."""

    def read(self) -> Examined:
        data = self._toml.data
        whole = self._whole({key: data[key] for key in data if key not in _PARTS})
        gateway = data.get("gateway")
        self._gateway_id = gateway.get("id") if isinstance(gateway, dict) else None
        self._read_buses()
        self._read_templates()
        devices = self._devices()
        if whole is not None:
            whole = replace(
                whole,
                bus=list(self._buses.values()),
                device=devices,
                programme=self._programmes(devices, is_located=whole.gateway.location is not None),
                template=self._templates,
                inventory=self._inventories,
            )
        return Examined(whole, self._problems, self._origins, self._toml)

    def _devices(self) -> list[Device]:
        devices: dict[str, Device] = {}
        for origin in self._all_origins():
            try:
                device = converted(origin.data, Device, "")
                if device.bus in self._lost_buses:
                    self._lost_devices.add(device.id)
                    continue  # why is said of the bus
                self._check(device, origin)
            except ConfigError as error:
                key = "" if error.key == "file" else error.key  # it is no table at all
                self._problem(origin.wrong(key, error.value, error.allowed))
                if isinstance(origin.data, dict):
                    self._lost_devices.add(str(origin.data.get("id")))
            else:
                self._origins[device.id] = origin
                devices[device.id] = device
        for bus in list(self._buses.values()):
            mine = [device for device in devices.values() if device.bus == bus.id]
            try:
                transport_of(bus, mine)
            except ConfigError as error:
                wrong = self._wrong(self._bus_places[bus.id], error.key, error.value, error.allowed)
                self._problem(wrong)
                del self._buses[bus.id]
                self._lost_devices |= {devices.pop(device.id).id for device in mine}
        return list(devices.values())

    def _programmes(self, devices: Sequence[Device], *, is_located: bool) -> list[Programme]:
        """Return the lamp programmes; one goes on without the lamps that were left out."""
        known = {device.id: device for device in devices}
        found: dict[str, Programme] = {}
        switched: set[str] = set()
        for index, data in enumerate(self._listed("programme")):
            place = f"programme[{index}]"
            try:
                programme = converted(data, Programme, self._file, place)
                lamps = [
                    one
                    for one in programme.devices
                    if one in known or one not in self._lost_devices
                ]
                lighting.check(replace(programme, devices=lamps), known, located=is_located)
                if programme.id in found:
                    raise ConfigError("", "id", programme.id, "must be unique 重複")
            except ConfigError as error:
                if not error.file:
                    error = self._wrong(place, error.key, error.value, error.allowed)
                self._problem(error)
            else:
                found[programme.id] = replace(programme, devices=lamps)
                names = {lamp.id for lamp in found[programme.id].lamps(devices)}
                if twice := sorted(names & switched):
                    allowed = "a lamp goes by the first programme that names it 燈具重複，以第一個時程為準"
                    self._problem(self._wrong(place, "devices", ", ".join(twice), allowed))
                switched |= names
        return list(found.values())

    def _problem(self, error: ConfigError) -> None:
        """Note a problem, once: of a template it would come with each row."""
        if error.line is None and error.file == self._file:
            error.line = self._toml.line_of(error.key)
        key = error.file, error.line, error.key, error.allowed
        if key not in self._said:
            self._said.add(key)
            self._problems.append(error)

    def _whole(self, data: dict[str, Any]) -> Config | None:
        """Return what concerns the gateway itself, without buses and devices; None when that is wrong."""
        known = {field.encode_name for field in msgspec.structs.fields(Config)}
        for key in [key for key in data if key not in known]:
            try:
                converted({key: data.pop(key)}, Config, self._file)
            except ConfigError as error:
                self._problem(error)
        try:
            config = _anchored(converted(data, Config, self._file), self._path.resolve().parent)
            check_zone(self._file, "gateway.time_zone", config.gateway.time_zone)
            _check_broker(self._file, config.broker)
        except ConfigError as error:
            self._problem(error)
            self._problems.insert(0, self._problems.pop())
            return None
        return config

    def _listed(self, table: str) -> list[Any]:
        """Return the entries of an array of tables."""
        try:
            return converted(self._toml.data.get(table, []), list[Any], self._file, table)
        except ConfigError as error:
            self._problem(error)
            return []

    def _read_buses(self) -> None:
        taken: dict[tuple[str, str], int] = {}
        for index, data in enumerate(self._listed("bus")):
            try:
                bus: Bus = converted(data, _BUS, self._file, f"bus[{index}]")
                if isinstance(bus, SerialBus | ModbusRtuBus) and (
                    allowed := port_problem(bus.port)
                ):
                    raise ConfigError(self._file, f"bus[{index}].port", bus.port, allowed)
                for claim in _claims(bus):
                    if claim in taken:
                        key, value = claim
                        allowed = f"must be unique: bus[{taken[claim]}] has it, too 重複"
                        raise ConfigError(self._file, f"bus[{index}].{key}", value, allowed)
            except ConfigError as error:
                self._problem(error)
                if isinstance(data, dict) and isinstance(name := data.get("id"), str):
                    self._lost_buses.add(name)
            else:
                taken |= dict.fromkeys(_claims(bus), index)
                self._buses[bus.id] = bus
                self._bus_places[bus.id] = f"bus[{index}]"
        self._lost_buses -= self._buses.keys()

    # -------------------------------------------------------------------------------------------- templates and rows

    def _read_templates(self) -> None:
        given = self._toml.data.get("template", {})
        for name, table in given.items() if isinstance(given, dict) else [("", given)]:
            try:
                key = f"template.{name}".rstrip(".")
                self._templates[name] = converted(table, dict[str, Any], self._file, key)
            except ConfigError as error:
                self._problem(error)

    def _all_origins(self) -> Iterator[Origin]:
        for index, data in enumerate(self._listed("device")):
            yield Origin(f"device[{index}]", data, partial(self._wrong, f"device[{index}]"))
        for index, data in enumerate(self._listed("inventory")):
            try:
                inventory, found = self._read_inventory(data, f"inventory[{index}]")
            except ConfigError as error:
                self._problem(error)
                continue
            for problem in found.problems:
                self._problem(problem)
            for row in found.rows:
                try:
                    yield self._origin(row, inventory)
                except ConfigError as error:
                    self._problem(error)

    def _wrong(self, place: str, key: str, value: object, allowed: str) -> ConfigError:
        path = f"{place}.{key}" if key else place
        return ConfigError(self._file, path, value, allowed, line=self._toml.line_of(path))

    def _read_inventory(self, data: object, key: str) -> tuple[Inventory, Rows]:
        inventory = converted(data, Inventory, self._file, key)
        if inventory.template:
            self._check_template(inventory.template, partial(self._wrong, key))
        self._inventories.append(inventory)
        try:
            file = self._path.parent / inventory.file
            return inventory, read_rows(file, inventory.columns, _COLUMNS)
        except ConfigError as error:
            if error.key == "file" and error.line is None:  # there is none, or it cannot be read
                raise self._wrong(key, "file", inventory.file, error.allowed) from error
            raise

    def _check_template(self, name: str, wrong: Callable[[str, object, str], ConfigError]) -> None:
        if name not in self._templates:
            known = ", ".join(self._templates) or "none yet: [template.NAME]"
            raise wrong(TEMPLATE, name, f"one of {known} 沒有這個範本")

    def _origin(self, row: Row, inventory: Inventory) -> Origin:
        """Return a row put into its template. Raises: ConfigError."""
        if row.template:
            self._check_template(row.template, row.wrong)
        name = row.template or inventory.template
        template = self._templates.get(name, {})
        driver = row.cells["driver"].text if "driver" in row.cells else template.get("driver")

        def wrong(key: str, value: object, allowed: str) -> ConfigError:
            if not row.says(key) and _has(template, key):
                return self._wrong(f"template.{name}", key, value, allowed)
            return row.wrong(key, value, allowed)

        return Origin(row.name, row.data(template, partial(_kind, driver)), wrong)

    # ------------------------------------------------------------------------------------------------------- checks

    def _check(self, device: Device, origin: Origin) -> None:
        """Check a device beside the others. Raises: ConfigError that names its own key alone."""
        if device.id == self._gateway_id:
            raise ConfigError("", "id", device.id, "must differ from gateway.id 不可與閘道器相同")
        if first := self._origins.get(device.id):
            raise ConfigError("", "id", device.id, f"must be unique: {first.name} has it, too 重複")
        if device.bus not in self._buses:
            known = ", ".join(self._buses) or "none yet: [[bus]]"
            raise ConfigError("", "bus", device.bus, f"one of {known} 沒有這個匯流排")
        bus = self._buses[device.bus]
        place = _checked_place(device, bus)
        check_limits(device)
        check_report(device)
        if isinstance(bus, SerialBus):
            place = ""  # the whole line is its own
        first = self._at.setdefault((device.bus, place), origin)
        if first is origin:
            return
        if isinstance(bus, SerialBus):
            allowed = (
                f"a serial line has one device: {first.name} is on it 一條序列線只能接一個設備"
            )
            raise ConfigError("", "bus", device.bus, allowed)
        # two entries for one thing in the street would count it twice
        allowed = f"must be unique on its bus: {first.name} is the same 位址重複"
        raise ConfigError("", "settings", place, allowed)


_COLUMNS = frozenset({field.encode_name for field in msgspec.structs.fields(Device)} | {TEMPLATE})
_type_info = cache(inspect.type_info)


@cache
def _kind(driver: object, key: str) -> inspect.Type | None:
    """Return the type of a device's key, None when it has no such key."""
    first, _, rest = key.partition(".")
    if first != "settings" or not isinstance(driver, str):
        return type_at(_type_info(Device), key.split("."))
    try:
        return type_at(_type_info(load(driver).settings_type), rest.split("."))
    except Exception:  # noqa: BLE001 - there is no such driver, or it fails: said when the device is checked
        return None


def _has(table: Mapping[str, Any], key: str) -> bool:
    """Whether a table has a key such as `settings.unit`."""
    found: object = table
    for step in key.split("."):
        if not isinstance(found, Mapping) or step not in found:
            return False
        found = found[step]
    return True


def transport_of(bus: Bus, devices: Sequence[Device]) -> Transport | None:
    """Return how an RTU line is set up for its devices, None for what is no such line or has none.

    Raises: ConfigError that names its own key alone.
    """
    if not isinstance(bus, ModbusRtuBus) or not devices:
        return None
    return shared_transport(
        [device.package.profile.transport for device in devices],
        baudrate=bus.baudrate,
        parity=bus.parity,
        stopbits=bus.stopbits,
        timeout_s=bus.timeout_s,
    )


def _claims(bus: Bus) -> list[tuple[str, str]]:
    """Return what a bus must have for itself alone."""
    claims = [("id", bus.id)]
    if isinstance(bus, SerialBus | ModbusRtuBus):
        claims.append(("port", bus.port))
    elif isinstance(bus, BleBus):
        claims.append(("adapter", bus.adapter))
    return claims


def _anchored(config: Config, folder: Path) -> Config:
    """Return the configuration with every path absolute, seen from its file's folder."""
    gateway, broker = config.gateway, config.broker
    gateway = replace(gateway, state_dir=str(folder / gateway.state_dir))
    if broker.password_file:
        broker = replace(broker, password_file=str(folder / broker.password_file))
    if broker.tls is not None:
        broker = replace(broker, tls=broker.tls.anchored(folder))
    status = config.status
    if status.socket:
        status = replace(status, socket=str(folder / status.socket))
    return replace(config, gateway=gateway, broker=broker, status=status)


def _check_broker(file: str, broker: Broker) -> None:
    check_plain(file, "broker", broker.host, broker.tls)
    if broker.password_file and broker.password_env:
        allowed = "must be left out beside password_file 只能擇一"
        raise ConfigError(file, "broker.password_env", broker.password_env, allowed)
    if (broker.password_file or broker.password_env) and not broker.username:
        raise ConfigError(
            file, "broker.username", broker.username, "a password needs a username 有密碼就要有帳號"
        )


def _checked_place(device: Device, bus: Bus) -> str:
    """Check a device for itself and return where on its bus it is: its address, or all of its settings."""
    domains = [domain for domain in dictionary() if domain != "gateway"]
    if device.domain not in domains:
        raise ConfigError("", "domain", device.domain, f"one of {', '.join(domains)} 沒有這個領域")
    try:
        package = device.package
        transport = package.profile.transport.kind
    except ConfigError as error:
        raise ConfigError("", "driver", device.driver, f"{error.allowed} 驅動程式不明") from error
    kinds = BUS_KINDS[transport]
    if bus.__struct_config__.tag not in kinds:
        allowed = f"{device.driver} needs a bus of kind {' or '.join(kinds)} 匯流排種類不符"
        raise ConfigError("", "bus", device.bus, allowed)
    try:
        settings = package.settings(device.settings, "", "settings")
        driver = package.driver(settings)
    except ConfigError as error:  # a driver knows its own key, not the file's
        key = error.key if error.key.startswith("settings") else f"settings.{error.key}"
        raise ConfigError("", key, error.value, error.allowed) from error
    except Exception as error:  # a bug of a driver must not keep the other devices from starting
        allowed = f"its driver failed 驅動程式錯誤: {type(error).__name__}: {error}"
        raise ConfigError("", "driver", device.driver, allowed) from error
    return str(getattr(driver, "address", msgspec.to_builtins(settings)))
