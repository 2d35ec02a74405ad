"""Twin and driver share no decoding code: what a twin calls the truth, its driver must report, exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_drivers.ble.bthome.driver import SERVICE_UUID
from device_drivers.errors import CommandRejected
from device_drivers.kit.driver import Advert, Value
from device_drivers.kit.registry import load
from device_drivers.kit.twin import ModbusException, ModbusTwin
from device_drivers.serial.plantower_pms.driver import COMMANDS, Model

Truths = list[Mapping[str, Value]]


def reals(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


def same(got: Mapping[str, Value], truth: Mapping[str, Value]) -> bool:
    """Equal to the last bit, and of the same kind: True is not 1."""
    return got == truth and all(
        isinstance(got[name], bool) == isinstance(truth[name], bool) for name in truth
    )


@pytest.mark.parametrize("model", get_args(Model))
@pytest.mark.parametrize("mode", ["active", "passive"])
@given(
    world=st.fixed_dictionaries(
        {"pm2_5": reals(0, 3000)},
        optional={
            "pm1": reals(-5, 3000),
            "pm10": reals(0, 70000),
            "temperature": reals(-40, 85),
            "humidity": reals(-1, 120),
            "hcho": reals(0, 3000),
        },
    )
)
@settings(max_examples=40, deadline=None)
def test_plantower(model: str, mode: str, world: dict[str, float]) -> None:
    truths: Truths = []
    package = load("plantower_pms")
    twin: Any = package.twin({"model": model, "mode": mode}, lambda: world, truths.append)
    if mode == "active":
        frame = twin.speak()
    else:
        assert twin.hear(COMMANDS["passive_mode"]) == bytes.fromhex("424d0004e1000174")
        assert twin.period_s is None
        frame = twin.hear(COMMANDS["passive_read"])
    (reading,) = package.decode([frame], {"model": model})
    (truth,) = truths
    assert same(reading.metrics, truth)


def test_plantower_sleeps_and_wakes() -> None:
    truths: Truths = []
    twin: Any = load("plantower_pms").twin({}, lambda: {"pm2_5": 12}, truths.append)
    assert twin.period_s is not None
    assert twin.hear(COMMANDS["sleep"])
    assert twin.period_s is None
    assert twin.hear(COMMANDS["passive_mode"] + COMMANDS["passive_read"]) == b""
    assert twin.hear(COMMANDS["wake"])
    assert twin.period_s is not None
    assert truths == []


def test_plantower_hears_commands_in_portions_and_between_noise() -> None:
    truths: Truths = []
    twin: Any = load("plantower_pms").twin({}, lambda: {"pm2_5": 12}, truths.append)
    sent = b"\x42\xff" + COMMANDS["passive_mode"] + b"\x42" + COMMANDS["passive_read"]
    answer = b"".join(twin.hear(sent[at : at + 1]) for at in range(len(sent)))
    assert answer[:8] == bytes.fromhex("424d0004e1000174")
    assert len(answer) == 8 + 32
    assert len(truths) == 1


METRICS = {
    "x-bthome-battery": reals(0, 100),
    "temperature": reals(-400, 400),
    "humidity": reals(0, 100),
    "battery_voltage": reals(0, 70),
    "pm2_5": reals(0, 70000),
    "pm10": reals(0, 1000),
    "co2": reals(0, 5000),
    "tvoc": reals(0, 1000),
    "occupied": st.booleans(),
    "distance": reals(-1, 70),
    "current": reals(0, 70),
    "energy": reals(0, 5e9),
    "power": reals(-2e7, 3e7),
}
ADDRESS = "A4:C1:38:8D:18:B2"
BINDKEY = "231d39c1d7cc1ab1aee224cd096db932"


@pytest.mark.parametrize("key", [{}, {"bindkey": BINDKEY}])
@given(worlds=st.lists(st.fixed_dictionaries({}, optional=METRICS), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_bthome(key: dict[str, str], worlds: list[dict[str, Value]]) -> None:
    truths: Truths = []
    package = load("bthome")
    spoken = iter(worlds)
    settings = {"address": ADDRESS, **key}
    twin: Any = package.twin(settings, lambda: next(spoken), truths.append)
    driver: Any = package.driver(settings)
    for at_s, _ in enumerate(worlds):
        manufacturer_data, service_data = twin.advert()
        advert = Advert(twin.address, -60, manufacturer_data, service_data, float(at_s))
        reading = driver.hear(advert)
        assert same(reading.metrics if reading else {}, truths[-1])
        assert driver.hear(advert) is None  # a repetition on the air
    assert len(truths) == len(worlds)


def test_bthome_voltage_is_what_the_setting_says() -> None:
    truths: Truths = []
    package = load("bthome")
    settings = {"address": ADDRESS.lower(), "voltage": "voltage"}
    world = {"voltage": 229.94, "battery_voltage": 3.0}
    twin: Any = package.twin(settings, lambda: world, truths.append)
    driver: Any = package.driver(settings)
    assert driver.address == twin.address == ADDRESS
    _, service_data = twin.advert()
    assert list(service_data) == [SERVICE_UUID]
    reading = driver.hear(Advert(ADDRESS, -60, {}, service_data, 0.0))
    assert list(reading.metrics) == ["voltage"]
    assert same(reading.metrics, truths[0])


def test_bthome_adverts_are_distinct_though_the_world_stands_still() -> None:
    twin: Any = load("bthome").twin({"address": ADDRESS}, lambda: {"occupied": True}, print)
    assert len({twin.advert()[1][SERVICE_UUID] for _ in range(256)}) == 256


class DirectBus:
    """A bus without a wire: requests go straight to a twin."""

    def __init__(self, twin: ModbusTwin) -> None:
        self._twin = twin
        self.writes: list[tuple[int, int]] = []

    def _addressed(self, unit: int) -> ModbusTwin:
        assert unit == self._twin.unit
        return self._twin

    async def read_holding(self, unit: int, address: int, count: int) -> list[int]:
        return list(self._addressed(unit).read(3, address, count))

    async def read_input(self, unit: int, address: int, count: int) -> list[int]:
        return list(self._addressed(unit).read(4, address, count))

    async def read_coils(self, unit: int, address: int, count: int) -> list[bool]:
        return [bool(bit) for bit in self._addressed(unit).read(1, address, count)]

    async def read_discrete(self, unit: int, address: int, count: int) -> list[bool]:
        return [bool(bit) for bit in self._addressed(unit).read(2, address, count)]

    async def write_register(self, unit: int, address: int, value: int) -> None:
        self.writes.append((address, value))
        self._addressed(unit).write(6, address, [value])

    async def write_registers(self, unit: int, address: int, values: Sequence[int]) -> None:
        self._addressed(unit).write(16, address, values)


def lamp(world: Mapping[str, Value], truths: Truths, **settings: int) -> tuple[Any, DirectBus, Any]:
    package = load("intesis_dali")
    chosen = {"unit": 1, "channel": 0, "short_address": 3, **settings}
    twin: Any = package.twin(chosen, lambda: world, truths.append)
    return package.driver(chosen), DirectBus(twin), twin


@given(
    world=st.fixed_dictionaries(
        {"level": reals(-10, 130)},
        optional={"lit": st.booleans(), "lamp_fault": st.booleans(), "gear_fault": st.booleans()},
    ),
    channel=st.integers(0, 8),
    short_address=st.integers(0, 63),
)
@settings(max_examples=100, deadline=None)
def test_intesis(world: dict[str, Value], channel: int, short_address: int) -> None:
    truths: Truths = []
    driver, bus, _ = lamp(world, truths, unit=7, channel=channel, short_address=short_address)
    reading = asyncio.run(driver.read(bus))
    (truth,) = truths
    assert same(reading.metrics, truth)
    assert reading.quality == ""


async def test_intesis_values_are_stale_until_an_update_is_asked_for() -> None:
    truths: Truths = []
    world: dict[str, Value] = {"level": 10}
    driver, bus, twin = lamp(world, truths)
    assert (await driver.read(bus)).metrics["level"] == 10
    world["level"] = 20
    assert list(twin.read(3, 305, 2)) == [4, 10]
    assert (await driver.read(bus)).metrics["level"] == 20
    assert [truth["level"] for truth in truths] == [10, 10, 20]


async def test_intesis_set_level() -> None:
    truths: Truths = []
    driver, bus, twin = lamp({"level": 10}, truths)
    assert await driver.command(bus, "set_level", {"level": 40}) == {"level": 40}
    assert truths == []  # reading back completes no reading
    assert bus.writes[0] == (315, 40)
    metrics = (await driver.read(bus)).metrics
    assert (metrics["level"], metrics["lit"]) == (40, True)
    await driver.command(bus, "set_level", {"level": 0})
    assert (await driver.read(bus)).metrics["lit"] is False
    twin.commanded = None
    assert (await driver.read(bus)).metrics["level"] == 10


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("set_colour", {"level": 3}),
        ("set_level", {}),
        ("set_level", {"level": 3, "fade": 1}),
        ("set_level", {"level": 101}),
        ("set_level", {"level": -1}),
        ("set_level", {"level": 12.5}),
        ("set_level", {"level": True}),
        ("set_level", {"level": float("nan")}),
        ("set_level", {"level": "40"}),
    ],
)
async def test_intesis_rejects_what_it_cannot_take(name: str, args: dict[str, Any]) -> None:
    driver, bus, _ = lamp({"level": 10}, [])
    with pytest.raises(CommandRejected):
        await driver.command(bus, name, args)
    assert bus.writes == []


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda twin: twin.read(1, 305, 1), 1),
        (lambda twin: twin.read(3, 300, 4), 2),
        (lambda twin: twin.read(3, 379, 5), 2),
        (lambda twin: twin.read(3, 305, 0), 2),
        (lambda twin: twin.write(5, 304, [1]), 1),
        (lambda twin: twin.write(6, 306, [1]), 2),
        (lambda twin: twin.write(6, 315, [101]), 3),
    ],
)
def test_intesis_twin_refuses_as_the_gateway_does(call: Any, code: int) -> None:
    _, _, twin = lamp({"level": 10}, [])
    with pytest.raises(ModbusException) as caught:
        call(twin)
    assert caught.value.code == code
