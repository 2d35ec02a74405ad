"""Reading the agent's configuration: the TOML file, its templates, and the inventories that it names.

What concerns one device or one bus is left out when it is wrong, and said: the others start without it. What concerns
the gateway itself, or its way to the broker, is final.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect, structs
from msgspec.structs import replace

from device_drivers.kit.registry import load
from edge_agent import lighting
from edge_agent.config import PARTS, Bus, Config, Device, SerialBus
from edge_agent.config_checks import (
    check_port,
    claims,
    collected,
    device_mistakes,
    place_of,
    settings_mistakes,
    transport_of,
)
from edge_agent.inventory import TEMPLATE, Inventory, Read, Row, Rows, read_rows
from edge_agent.lighting import Programme
from exchange.configuration import TomlFile, check_zone, converted, mistakes, type_at, type_info
from exchange.errors import ConfigError


class Loaded(NamedTuple):
    """A configuration without what is wrong in it, and what that is."""

    config: Config
    problems: list[ConfigError]


class Origin(NamedTuple):
    """A device as it is written: a table, or an inventory's row put into its template."""

    name: str
    """What others' errors call it: `device[3]`, `lamps.csv:17`."""
    data: object
    wrong: Callable[[ConfigError], ConfigError]
    """An error about one of its keys, as an error about the file."""


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
        whole = self._whole({key: data[key] for key in data if key not in PARTS})
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
            device, found = self._device(origin)
            for error in found:
                self._problem(origin.wrong(error))
            if device is not None and not found and device.bus not in self._lost_buses:
                self._origins[device.id] = origin
                devices[device.id] = device
            elif isinstance(origin.data, Mapping):
                self._lost_devices.add(str(origin.data.get("id")))
        for bus in list(self._buses.values()):
            mine = [device for device in devices.values() if device.bus == bus.id]
            try:
                transport_of(bus, mine)
            except ConfigError as error:
                self._problem(self._wrong(self._bus_places[bus.id], error))
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
            if wrong := mistakes(data, Programme, self._file, place):
                self._problems_of(wrong)
                continue
            programme = converted(data, Programme, self._file, place)
            try:
                lamps = [
                    one
                    for one in programme.devices
                    if one in known or one not in self._lost_devices
                ]
                lighting.check(replace(programme, devices=lamps), known, located=is_located)
                if programme.id in found:
                    raise ConfigError("", "id", programme.id, "must be unique 重複")
            except ConfigError as error:
                self._problem(self._wrong(place, error))
            else:
                found[programme.id] = replace(programme, devices=lamps)
                names = {lamp.id for lamp in found[programme.id].lamps(devices)}
                if twice := sorted(names & switched):
                    allowed = "a lamp goes by the first programme that names it 燈具重複，以第一個時程為準"
                    again = ConfigError("", "devices", ", ".join(twice), allowed)
                    self._problem(self._wrong(place, again))
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

    def _problems_of(self, errors: Sequence[ConfigError]) -> None:
        for error in errors:
            self._problem(error)

    def _whole(self, data: dict[str, Any]) -> Config | None:
        """Return what concerns the gateway itself, without buses and devices; None when that is wrong."""
        known = {field.encode_name for field in msgspec.structs.fields(Config)}
        unknown = {key: data.pop(key) for key in list(data) if key not in known}
        config = None
        if not (found := mistakes(data, Config, self._file)):
            config = _anchored(converted(data, Config, self._file), self._path.resolve().parent)
            zone, broker = config.gateway.time_zone, config.broker
            found = collected(
                lambda: check_zone(self._file, "gateway.time_zone", zone),
                lambda: broker.check(self._file),
            )
        self._problems_of(found)
        for key, value in unknown.items():
            self._problems_of(mistakes({key: value}, Config, self._file)[:1])
        return None if found else config

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
            place = f"bus[{index}]"
            try:
                bus: Bus = converted(data, _BUS, self._file, place)
                check_port(bus)
                for claim in claims(bus):
                    if claim in taken:
                        key, value = claim
                        allowed = f"must be unique: bus[{taken[claim]}] has it, too 重複"
                        raise ConfigError("", key, value, allowed)
            except ConfigError as error:
                wrong = mistakes(data, _BUS, self._file, place) or [self._wrong(place, error)]
                self._problems_of(wrong)
                if isinstance(data, dict) and isinstance(name := data.get("id"), str):
                    self._lost_buses.add(name)
            else:
                taken |= dict.fromkeys(claims(bus), index)
                self._buses[bus.id] = bus
                self._bus_places[bus.id] = place
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

    def _wrong(self, place: str, error: ConfigError) -> ConfigError:
        """Return an error about a key of a table as one about the file."""
        path = f"{place}.{error.key}" if error.key and error.kind != "file" else place
        return error.elsewhere(self._file, path, line=self._toml.line_of(path))

    def _read_inventory(self, data: object, key: str) -> tuple[Inventory, Rows]:
        inventory = converted(data, Inventory, self._file, key)
        if inventory.template:
            self._check_template(inventory.template, partial(self._wrong, key))
        try:
            file = self._path.parent / inventory.file
            found = read_rows(file, inventory.columns, _COLUMNS)
        except ConfigError as error:
            if error.kind == "file" and error.line is None:  # there is none, or it cannot be read
                allowed = error.allowed
                raise self._wrong(key, ConfigError("", "file", inventory.file, allowed)) from error
            raise
        self._inventories.append(Read(**structs.asdict(inventory), rows=len(found.rows)))
        return inventory, found

    def _check_template(self, name: str, wrong: Callable[[ConfigError], ConfigError]) -> None:
        if name not in self._templates:
            known = ", ".join(self._templates) or "none yet: [template.NAME]"
            raise wrong(ConfigError("", TEMPLATE, name, f"one of {known} 沒有這個範本"))

    def _origin(self, row: Row, inventory: Inventory) -> Origin:
        """Return a row put into its template. Raises: ConfigError."""
        if row.template:
            self._check_template(row.template, row.wrong)
        name = row.template or inventory.template
        template = self._templates.get(name, {})
        driver = row.cells["driver"].text if "driver" in row.cells else template.get("driver")

        def wrong(error: ConfigError) -> ConfigError:
            if not row.says(error.key) and _has(template, error.key):
                return self._wrong(f"template.{name}", error)
            return row.wrong(error)

        return Origin(row.name, row.data(template, partial(_kind, driver)), wrong)

    # ------------------------------------------------------------------------------------------------------- checks

    def _device(self, origin: Origin) -> tuple[Device | None, list[ConfigError]]:
        """Return a device, and all that is wrong with it, for itself and beside the others."""
        data = origin.data
        try:
            device = converted(data, Device, "")
        except ConfigError:
            found = mistakes(data, Device, "")
            if isinstance(data, Mapping) and isinstance(data.get("settings", {}), Mapping):
                found += settings_mistakes(data.get("driver"), data.get("settings", {}))
            return None, found
        if device.bus in self._lost_buses:
            return device, []  # why is said of the bus
        bus = self._buses.get(device.bus)
        found = device_mistakes(device, bus)
        if device.id == self._gateway_id:
            allowed = "must differ from gateway.id 不可與閘道器相同"
            found.append(ConfigError("", "id", device.id, allowed))
        if first := self._origins.get(device.id):
            allowed = f"must be unique: {first.name} has it, too 重複"
            found.append(ConfigError("", "id", device.id, allowed))
        if bus is None:
            known = ", ".join(self._buses) or "none yet: [[bus]]"
            found.append(ConfigError("", "bus", device.bus, f"one of {known} 沒有這個匯流排"))
        elif not found:
            found = collected(lambda: self._check_place(device, bus, origin))
        return device, found

    def _check_place(self, device: Device, bus: Bus, origin: Origin) -> None:
        """Check that nobody else is where a device is. Raises: ConfigError."""
        is_alone = isinstance(bus, SerialBus)  # the whole line is its own
        place = "" if is_alone else place_of(device)
        first = self._at.setdefault((device.bus, place), origin)
        if first is origin:
            return
        if is_alone:
            allowed = (
                f"a serial line has one device: {first.name} is on it 一條序列線只能接一個設備"
            )
            raise ConfigError("", "bus", device.bus, allowed)
        # two entries for one thing in the street would count it twice
        allowed = f"must be unique on its bus: {first.name} is the same 位址重複"
        raise ConfigError("", "settings", place, allowed)


_COLUMNS = frozenset({field.encode_name for field in msgspec.structs.fields(Device)} | {TEMPLATE})


@cache
def _kind(driver: object, key: str) -> inspect.Type | None:
    """Return the type of a device's key, None when it has no such key."""
    first, _, rest = key.partition(".")
    if first != "settings" or not isinstance(driver, str):
        return type_at(type_info(Device), key.split("."))
    try:
        return type_at(type_info(load(driver).settings_type), rest.split("."))
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


def _anchored(config: Config, folder: Path) -> Config:
    """Return the configuration with every path absolute, seen from its file's folder."""
    gateway, broker = config.gateway, config.broker.anchored(folder)
    gateway = replace(gateway, state_dir=str(folder / gateway.state_dir))
    status = config.status
    if status.socket:
        status = replace(status, socket=str(folder / status.socket))
    return replace(config, gateway=gateway, broker=broker, status=status)
