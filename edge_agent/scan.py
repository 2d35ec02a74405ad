"""What is connected to this gateway, as far as an installed driver can name it without harm.

To a serial line it listens and writes nothing. A Modbus bus is asked to read, nothing else, and only one that was
named: a request is bytes on a line that may not be Modbus. A radio listens. What is in use is left alone.

Strangers' radios are nobody's business: an advert that no driver understands is counted and forgotten here; its
address is neither kept nor logged.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, cast

import msgspec
import psutil

from device_drivers.errors import DeviceRefused, DeviceSilent, FrameError, LinkLost, PortInUse
from device_drivers.kit.driver import Advert, AdvertDriver, ModbusBus, Reading, Value
from device_drivers.kit.profile import Fingerprint
from device_drivers.kit.registry import DriverPackage, driver_ids, load
from device_drivers.links.ble import open_scanner
from device_drivers.links.modbus import open_modbus_rtu
from device_drivers.links.modbus_tcp import open_modbus_tcp
from device_drivers.links.serial import found_ports, open_serial
from exchange.configuration import toml_table
from exchange.dictionary import dictionary
from exchange.errors import ConfigError

Outcome = Literal["found", "unknown", "silent", "in use", "failed"]
Parity = Literal["N", "E", "O"]
Stopbits = Literal[1, 2]

FRAMES: Final = 2
"""So many good frames in a row are no chance."""
UNREAD_BYTES: Final = 16_384
"""Of a line that nobody understands so much is looked at."""
SENSORS_MAX: Final = 256
"""Sensors told apart on the air; a street has fewer."""
NOBODY_THERE: Final = (10, 11)
"""What a Modbus TCP gateway answers for a unit that does not: no path to it, or it is silent."""
UNITS_OF_MANY: Final = 8
"""A TCP server that answers for all that were asked, and they are so many, is one device that looks at no unit."""
KEY_FILE: Final = "/etc/onestreet/bindkey"


class Line(NamedTuple):
    """How a serial line is set up."""

    baudrate: int
    parity: Parity
    stopbits: Stopbits


USUAL_LINES: Final = (
    Line(9600, "N", 1),
    Line(9600, "E", 1),
    Line(19200, "E", 1),
    Line(19200, "N", 1),
    Line(38400, "N", 1),
    Line(115200, "N", 1),
)
"""What Modbus devices leave the factory with; 19200 8E1 is the standard's own."""


class _SerialLine(NamedTuple):
    """How a line of one device is set up."""

    baudrate: int
    bytesize: Literal[7, 8]
    parity: Parity
    stopbits: Stopbits


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A device that a driver can name. `domain` is empty when its metrics do not tell; `said` is what it said."""

    driver: str
    domain: str
    interval_s: float
    settings: dict[str, Any] = {}
    notes: list[str] = []
    said: dict[str, Value] = {}
    rssi_dbm: int | None = None


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """A Modbus unit that answers, and how."""

    unit: int
    answer: str


class Looked(msgspec.Struct, kw_only=True):
    """One bus that was looked at: its keys in a configuration, and what is on it."""

    kind: str
    keys: dict[str, Any]
    outcome: Outcome = "silent"
    detail: str = ""
    devices: list[Found] = []
    units: list[Unit] = []
    strangers: int = 0
    """Adverts heard that no driver understands."""
    description: str = ""

    @property
    def name(self) -> str:
        """What people call it."""
        if self.kind == "modbus-tcp":
            return f"{self.keys['host']}:{self.keys['port']}"
        return str(self.keys.get("port") or self.keys["adapter"])


def _packages(kind: str) -> list[DriverPackage]:
    """Return the installed drivers of a kind of bus; one that is broken must not end a scan."""
    found = []
    for package in map(load, driver_ids()):
        try:
            if package.profile.transport.kind == kind:
                found.append(package)
        except ConfigError:
            continue
    return found


# --------------------------------------------------------------------------------------------------------- serial


def serial_ports() -> dict[str, str]:
    """Return this machine's serial ports: the names that a configuration should have, with a description."""
    return {port.name: f"{port.path}, {port.description}" for port in found_ports()}


async def listen(port: str, seconds: float) -> Looked:
    """Listen to a serial line, in each way that a driver would, and write nothing."""
    looked = Looked(kind="serial", keys={"port": port})
    by_line: dict[_SerialLine, list[DriverPackage]] = {}
    for package in _packages("serial"):
        transport = package.profile.transport
        line = _SerialLine(
            transport.baudrate, transport.bytesize, transport.parity, transport.stopbits
        )
        by_line.setdefault(line, []).append(package)
    for line, packages in by_line.items():
        try:
            heard, found = await _listen(port, line, packages, seconds)
        except LinkLost as error:
            return _lost(looked, error)
        if found is not None:
            looked.outcome, looked.devices = "found", [found]
            looked.keys["baudrate"] = line.baudrate
            return looked
        if heard:
            looked.outcome = "unknown"
            looked.detail = f"{heard} bytes that no driver understands 無驅動程式可解讀"
    return looked


async def _listen(
    port: str, line: _SerialLine, packages: Sequence[DriverPackage], seconds: float
) -> tuple[int, Found | None]:
    """Return how many bytes came, and who speaks. Raises: LinkLost."""
    data = b""
    ends_s = asyncio.get_running_loop().time() + seconds
    async with open_serial(port, **line._asdict()) as opened:
        while (left_s := ends_s - asyncio.get_running_loop().time()) > 0:
            try:
                data += await opened.read_some(left_s)
            except DeviceSilent:
                break
            for package in packages:
                if (found := _recognised(package, data)) is not None:
                    return len(data), found
            if len(data) >= UNREAD_BYTES:
                break
    return len(data), None


def _recognised(package: DriverPackage, data: bytes) -> Found | None:
    """Return the device whose frames these are, None when the driver knows no such frames."""
    models = [model for one in package.profile.variants.values() for model in one.models]
    possible = [model for model in models or [""] if len(_decoded(package, data, model)) >= FRAMES]
    if not possible:
        return None
    model = possible[0]
    settings = {"model": model} if model else {}
    try:
        package.settings(settings)
    except ConfigError:
        settings = {}
    others = ", ".join(possible[1:])
    notes = [f"its frames fit these models, too 也可能是: {others}"] if others else []
    return _found(package, settings, _decoded(package, data, model)[-1].metrics, notes)


def _decoded(package: DriverPackage, data: bytes, model: str) -> list[Reading]:
    try:
        return package.decode([data], {"model": model} if model else {})
    except Exception:  # noqa: BLE001 - anybody's driver, fed with anybody's bytes
        return []


# --------------------------------------------------------------------------------------------------------- Modbus


async def sweep_rtu(
    port: str, lines: Sequence[Line], units: Sequence[int], *, timeout_s: float, limit_s: float
) -> Looked:
    """Ask each unit of a serial bus to read one register, at one setting after the other until some answer."""
    looked = Looked(kind="modbus-rtu", keys={"port": port})
    ends_s = asyncio.get_running_loop().time() + limit_s
    lost: LinkLost | None = None
    is_opened = False
    for line in lines:
        if asyncio.get_running_loop().time() >= ends_s:
            break
        settings = line._asdict()
        try:
            async with open_modbus_rtu(port, timeout_s=timeout_s, **settings) as bus:
                is_opened = True
                await _sweep(bus, units, ends_s, looked)
        except PortInUse as error:
            return _lost(looked, error)
        except LinkLost as error:
            lost = error  # not every port takes every setting
        if looked.outcome == "found":
            looked.keys |= settings
            break
    return looked if lost is None or is_opened else _lost(looked, lost)


async def sweep_tcp(
    host: str, port: int, units: Sequence[int], *, timeout_s: float, limit_s: float
) -> Looked:
    """Ask each unit behind a Modbus TCP server to read one register, unless this machine has it open."""
    looked = Looked(kind="modbus-tcp", keys={"host": host, "port": port})
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + limit_s
    try:
        async with asyncio.timeout(limit_s):
            places = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if _is_connected({place[4][:2] for place in places}):
            # Many such gateways take one or two connections: a further one may cut off the agent's.
            raise PortInUse("this machine is connected to it 本機已連線")
        async with open_modbus_tcp(host, port=port, timeout_s=timeout_s) as bus:
            await _sweep(bus, units, ends_s, looked)
    except (LinkLost, OSError, UnicodeError) as error:
        return _lost(looked, error)
    if len(looked.units) == len(units) >= UNITS_OF_MANY:
        first = looked.units[0]
        looked.units = [Unit(unit=first.unit, answer=f"{first.answer} for every unit 回應所有站號")]
        looked.devices = [one for one in looked.devices if one.settings["unit"] == first.unit]
    return looked


def _is_connected(places: set[tuple[Any, ...]]) -> bool:
    return any(
        tuple(one.raddr) in places and one.status == psutil.CONN_ESTABLISHED
        for one in psutil.net_connections("tcp")
        if one.raddr
    )


async def _sweep(bus: ModbusBus, units: Sequence[int], ends_s: float, looked: Looked) -> None:
    """Note every unit that answers. Raises: LinkLost."""
    garbled: list[int] = []
    for unit in units:
        if asyncio.get_running_loop().time() >= ends_s:
            looked.detail = f"time is up before unit {unit} 時間到，之後未查詢"
            break
        try:
            await bus.read_holding(unit, 0, 1)
            answer = "answers 有回應"
        except DeviceSilent:
            continue
        except DeviceRefused as error:
            if error.code in NOBODY_THERE:
                continue
            answer = f"answers 有回應: exception {error.code}"
        except FrameError:
            garbled.append(unit)
            continue
        looked.outcome, looked.detail = "found", ""
        looked.units = [*looked.units, Unit(unit=unit, answer=answer)]
        looked.devices = [*looked.devices, *await _named(bus, unit)]
    words = "garbled 回應雜亂"
    if looked.outcome == "found":  # the line is set up as it should be
        words += ": two devices of one address? 站號可能重複"
        looked.units = [*looked.units, *(Unit(unit=unit, answer=words) for unit in garbled)]
    elif garbled:
        looked.outcome = "unknown"
        said = ", ".join(map(str, garbled))
        looked.detail = f"{words}: unit 站號 {said}: other baudrate or parity 鮑率或同位元不符?"


async def _named(bus: ModbusBus, unit: int) -> list[Found]:
    """Return the devices whose fingerprint the unit shows. Raises: LinkLost."""
    return [
        _found(package, {"unit": unit}, {}, [])
        for package in _packages("modbus")
        if package.profile.fingerprint and await _shows(bus, unit, package.profile.fingerprint)
    ]


async def _shows(bus: ModbusBus, unit: int, fingerprint: Sequence[Fingerprint]) -> bool:
    for one in fingerprint:
        read = bus.read_holding if one.function == 3 else bus.read_input
        try:
            (value,) = await read(unit, one.at, 1)
        except (DeviceSilent, DeviceRefused, FrameError):
            return False
        if value not in one.values:
            return False
    return True


# ------------------------------------------------------------------------------------------------------------ BLE


async def hear(adapter: str, seconds: float) -> Looked:
    """Listen to the radio for sensors that a driver understands; what nobody understands is counted only."""
    looked = Looked(kind="ble", keys={"adapter": adapter})
    packages = [one for one in _packages("ble") if one.profile.completes == "advert"]
    transports = [package.profile.transport for package in packages]
    sensors: dict[tuple[str, str], _Sensor] = {}
    strangers = 0
    ends_s = asyncio.get_running_loop().time() + seconds
    scanner_of = open_scanner(
        [],
        adapter=adapter,
        services=[uuid for transport in transports for uuid in transport.services],
        companies=[company for transport in transports for company in transport.companies],
    )
    try:
        async with scanner_of as scanner:
            while (left_s := ends_s - asyncio.get_running_loop().time()) > 0:
                try:
                    advert = await scanner.next_advert(left_s)
                except DeviceSilent:
                    break
                understood = [_heard(sensors, package, advert) for package in packages]
                strangers += not any(understood)
            strangers += scanner.passed_over
    except LinkLost as error:
        return _lost(looked, error)
    looked.strangers = strangers
    strongest = sorted(sensors.values(), key=lambda sensor: -sensor.rssi_dbm)
    looked.devices = [sensor.found() for sensor in strongest]
    if looked.devices:
        looked.outcome = "found"
    elif strangers:
        looked.outcome = "unknown"
    return looked


class _Sensor:
    """One sensor on the air, and what it said while we listened."""

    def __init__(self, package: DriverPackage, address: str) -> None:
        self.rssi_dbm = -128
        self._package, self._address = package, address
        self._driver = cast("AdvertDriver", package.driver({"address": address}))
        self._said: dict[str, Value] = {}
        self._is_sealed = False

    def take(self, advert: Advert) -> bool:
        """Say whether its driver understands this advert."""
        try:
            reading = self._driver.hear(advert)
        except FrameError as error:
            self._is_sealed = error.kind == "key_required"
            if not self._is_sealed:
                return False
        else:
            self._said |= reading.metrics if reading else {}
        self.rssi_dbm = max(self.rssi_dbm, advert.rssi_dbm)
        return True

    def found(self) -> Found:
        settings = {"address": self._address}
        notes = []
        if self._is_sealed:
            settings["bindkey_file"] = KEY_FILE
            notes.append("encrypted: put its key into this file 已加密，請將金鑰存入此檔")
        one = _found(self._package, settings, self._said, notes)
        return msgspec.structs.replace(one, rssi_dbm=self.rssi_dbm)


def _heard(sensors: dict[tuple[str, str], _Sensor], package: DriverPackage, advert: Advert) -> bool:
    """Say whether this driver understands the advert, and keep only the sensors that it does."""
    transport = package.profile.transport
    meant = advert.service_data.keys() & transport.services
    if not meant and not advert.manufacturer_data.keys() & set(transport.companies):
        return False
    key = (package.id, advert.address)
    sensor = sensors.get(key)
    try:
        if sensor is None:
            sensor = _Sensor(package, advert.address)
        understood = sensor.take(advert)
    except Exception:  # noqa: BLE001 - anybody's driver, and anybody's advert
        return False
    if understood and len(sensors) < SENSORS_MAX:
        sensors[key] = sensor
    return understood


# ------------------------------------------------------------------------------------------------------- proposal


def _found(
    package: DriverPackage, settings: dict[str, Any], said: Mapping[str, Value], notes: list[str]
) -> Found:
    return Found(
        driver=package.id,
        domain=_domain(said),
        interval_s=max(1.0, package.profile.timing.cadence_s),
        settings=settings,
        notes=notes,
        said=dict(said),
    )


def _domain(metrics: Mapping[str, Value]) -> str:
    """Return the domain that these metrics are a device of, empty when they do not tell."""
    fitting = [
        (len(metrics.keys() & domain.metrics.keys()), name)
        for name, domain in dictionary().items()
        if name != "gateway"
        and any(
            all(metrics.keys() & set(group) for group in profile.metrics)
            for profile in domain.profiles
        )
    ]
    return max(fitting)[1] if fitting else ""


def proposal(several: Sequence[Looked]) -> str:
    """Return the tables of a configuration for what was found; only names are left to be filled in."""
    return "\n".join(table for looked in several for table in _tables(looked))


def _tables(looked: Looked) -> Iterator[str]:
    if looked.outcome != "found":
        return
    name = re.sub("[^a-z0-9]+", "-", looked.name.rpartition("/")[2].lower())
    bus_id = name[-48:].strip("-")
    yield toml_table("[[bus]]", id=bus_id, kind=looked.kind, **looked.keys)
    for device in looked.devices:
        yield "".join(f"# {note}\n" for note in device.notes) + toml_table(
            "[[device]]",
            id="",
            domain=device.domain,
            driver=device.driver,
            bus=bus_id,
            interval_s=device.interval_s,
            settings=device.settings,
        )
    named = {device.settings.get("unit") for device in looked.devices}
    drivers = ", ".join(package.id for package in _packages("modbus"))
    for unit in looked.units:
        if unit.unit not in named:
            yield f"# unit 站號 {unit.unit}: {unit.answer}; drivers 驅動程式: {drivers}\n"


def _lost(looked: Looked, error: Exception) -> Looked:
    looked.detail = str(error) or type(error).__name__
    if looked.units:
        return looked  # what answered before is there
    looked.outcome = "in use" if isinstance(error, PortInUse) else "failed"
    return looked
