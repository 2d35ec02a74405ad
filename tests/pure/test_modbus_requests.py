"""Points become requests: every point is covered, no limit is broken, and a refusal is lived with."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_drivers.errors import DeviceRefused, DeviceSilent
from device_drivers.kit.driver import Reading
from device_drivers.kit.profile import Point, Profile, Read, shared_transport
from device_drivers.kit.register_table import TableDriver
from device_drivers.kit.registry import load
from device_drivers.kit.requests import coalesced, halves, requests
from exchange.errors import ConfigError

TYPES = ["uint16", "int32", "float32", "float64", "bit"]


@st.composite
def points(draw: st.DrawFn, *, functions: bool = True) -> list[Point]:
    function = st.sampled_from([None, 3, 4] if functions else [None])
    found = draw(
        st.lists(
            st.tuples(st.integers(0, 400), st.sampled_from(TYPES), function),
            min_size=1,
            max_size=60,
            unique_by=lambda one: (one[0], one[2]),
        )
    )
    return [
        Point(field=f"f{at}", metric=f"x-a-{at}", at=at, type=kind, function=function)  # type: ignore[arg-type]  # drawn
        for at, kind, function in found
    ]


reads = st.builds(
    Read,
    function=st.sampled_from([3, 4]),
    max_gap=st.integers(0, 30),
    max_registers=st.integers(4, 125),
    breaks=st.lists(st.integers(0, 400), max_size=3),
)


@given(points(), reads)
def test_every_point_is_read_and_no_limit_is_broken(table: list[Point], read: Read) -> None:
    blocks = coalesced(table, read)
    for point in table:
        whole = msgspec.structs.replace(point, function=point.function or read.function)
        assert any(block.holds(whole) for block in blocks)
    for block in blocks:
        assert block.count <= read.max_registers
        inside = [
            set(point.registers)
            for point in table
            if (point.function or read.function) == block.function
            and block.at <= point.at < block.at + block.count
        ]
        wanted = set().union(*inside)
        assert {block.at, block.at + block.count - 1} <= wanted, "it begins and ends with a point"
        gap = 0
        for register in range(block.at, block.at + block.count):
            gap = 0 if register in wanted else gap + 1
            assert gap <= read.max_gap
        for first in read.breaks:
            crossing = block.at < first < block.at + block.count
            assert not crossing or any({first - 1, first} <= one for one in inside)


@given(points(functions=False), st.integers(4, 125))
def test_neighbours_share_a_request(table: list[Point], limit: int) -> None:
    """With any gap allowed there are no more requests than a ruler of this length laid along the table."""
    blocks = coalesced(table, Read(max_gap=124, max_registers=limit))
    ends = 0
    laid = 0
    for point in sorted(table, key=lambda one: one.at):
        if point.registers.stop > ends:
            laid += 1
            ends = point.at + limit
    assert len(blocks) <= laid


@given(points(functions=False), reads)
def test_halving_ends_and_loses_no_point(table: list[Point], read: Read) -> None:
    pending = coalesced(table, read)
    singles = []
    while pending:
        block = pending.pop()
        parts = halves(block, table)
        if not parts:
            singles.append(block)
            continue
        assert sum(part.count for part in parts) <= block.count
        for point in table:
            if block.holds(point):
                assert any(part.holds(point) for part in parts)
        pending += parts
    assert all(any(block.holds(point) for block in singles) for point in table)


def test_the_example_of_the_documentation() -> None:
    table = [
        Point(field="v", metric="voltage", at=0, type="float32", unit="V"),
        Point(field="i", metric="current", at=6, type="float32", unit="A"),
        Point(field="e", metric="x-a-e", at=342, type="float32"),
        Point(field="name", at=500, type="text", length=20),
    ]
    assert [(b.at, b.count) for b in coalesced(table[:3], Read())] == [(0, 2), (6, 2), (342, 2)]
    assert [(b.at, b.count) for b in coalesced(table[:3], Read(max_gap=4))] == [(0, 8), (342, 2)]
    assert [(b.at, b.count) for b in coalesced(table[:3], Read(max_gap=4, breaks=[6]))] == [
        (0, 2),
        (6, 2),
        (342, 2),
    ]


# ---------------------------------------------------------------------------------------------- a device that refuses


def profile(**more: Any) -> Profile:
    return msgspec.convert(
        {
            "identity": {
                "maker": "Acme",
                "models": ["M"],
                "brand_origin": "TW",
                "description": "meter",
            },
            "transport": {"kind": "modbus"},
            "timing": {"cadence_s": 1.0},
            "completes": "poll",
            "sources": ["manual"],
            "points": [
                {"field": f"f{at}", "metric": f"x-acme-{at}", "at": at, "type": "uint16"}
                for at in (0, 1, 2, 3, 10, 11)
            ],
            "read": {"max_gap": 10},
            **more,
        },
        Profile,
    )


class Device:
    """A bus with one device, which refuses requests that touch some registers, or that are too long."""

    def __init__(self, *missing: int, code: int = 2, longest: int = 125) -> None:
        self.missing, self.code, self.longest = set(missing), code, longest
        self.asked: list[tuple[int, int]] = []
        self.transactions = 0

    async def read_holding(self, unit: int, address: int, count: int) -> list[int]:
        assert unit == 1
        self.asked.append((address, count))
        if self.missing & set(range(address, address + count)) or count > self.longest:
            raise DeviceRefused("refused", self.code)
        return list(range(address, address + count))

    async def read(self, driver: TableDriver) -> tuple[Reading, list[tuple[int, int]]]:
        self.asked.clear()
        return await driver.read(self), self.asked[:]  # type: ignore[arg-type]  # all that is used of a bus


async def test_a_gap_that_is_refused_is_read_around_and_remembered() -> None:
    now_s = 0.0
    driver, device = TableDriver(profile(), 1, clock=lambda: now_s), Device(5)
    everything = {f"x-acme-{at}": at for at in (0, 1, 2, 3, 10, 11)}
    reading, asked = await device.read(driver)
    assert reading.metrics == everything
    assert asked == [(0, 12), (0, 4), (10, 2)]
    reading, asked = await device.read(driver)
    assert reading.metrics == everything
    assert asked == [(0, 4), (10, 2)]
    now_s, device.missing = 4000.0, set()
    assert (await device.read(driver))[1] == [(0, 12)], "it may only have been starting up"


async def test_a_register_that_is_not_there_costs_itself_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 0.0
    driver, device = TableDriver(profile(), 1, clock=lambda: now_s), Device(2)
    reading, asked = await device.read(driver)
    assert set(reading.metrics) == {f"x-acme-{at}" for at in (0, 1, 3, 10, 11)}
    assert asked == [(0, 12), (0, 4), (0, 2), (2, 2), (2, 1), (3, 1), (10, 2)]
    assert [record.lacking for record in caplog.records] == [["x-acme-2"]]  # type: ignore[attr-defined]  # an extra
    again, asked = await device.read(driver)
    assert again == reading
    assert asked == [(0, 2), (3, 1), (10, 2)]
    assert len(caplog.records) == 1
    now_s = 4000.0
    assert len((await device.read(driver))[1]) == 7, "it is tried again each hour"
    assert len(caplog.records) == 1, "and said once"


@pytest.mark.parametrize("code", [2, 3])
async def test_a_device_that_answers_less_at_once_than_its_profile_says(code: int) -> None:
    driver, device = TableDriver(profile(), 1), Device(code=code, longest=2)
    reading, _ = await device.read(driver)
    assert len(reading.metrics) == 6
    assert (await device.read(driver))[1] == [(0, 2), (2, 2), (10, 2)]


async def test_a_device_that_refuses_everything_is_not_asked_for_its_parts_each_time() -> None:
    now_s = 0.0
    driver, device = TableDriver(profile(), 1, clock=lambda: now_s), Device(*range(12))
    with pytest.raises(DeviceRefused):
        await device.read(driver)
    for later_s in (0.0, 10.0, 50.0):
        now_s = later_s
        device.asked.clear()
        with pytest.raises(DeviceRefused):
            await driver.read(device)  # type: ignore[arg-type]  # all that is used of a bus
        assert device.asked == [(0, 12)]
    device.missing = {5}  # it was only starting; the whole block it never takes
    with pytest.raises(DeviceRefused):
        await device.read(driver)
    now_s = 61.0
    assert len((await device.read(driver))[0].metrics) == 6
    device.missing = set()
    assert len((await device.read(driver))[0].metrics) == 6


@pytest.mark.parametrize("code", [1, 4, 6, 11])
async def test_another_refusal_is_no_reason_to_ask_for_less(code: int) -> None:
    driver, device = TableDriver(profile(), 1), Device(5, code=code)
    with pytest.raises(DeviceRefused):
        await device.read(driver)
    assert device.asked == [(0, 12)]


async def test_silence_ends_a_reading_at_once() -> None:
    class Silent(Device):
        async def read_holding(self, unit: int, address: int, count: int) -> list[int]:
            self.asked.append((address, count))
            raise DeviceSilent(f"{unit}: nothing")

    driver, device = TableDriver(profile(read={}), 1), Silent()
    with pytest.raises(DeviceSilent):
        await device.read(driver)
    assert device.asked == [(0, 4)], "one time-out, not one of each request"


async def test_one_address_may_be_two_registers() -> None:
    both = [
        {"field": "a", "metric": "x-acme-a", "at": 0, "type": "uint16", "function": 3},
        {"field": "b", "metric": "x-acme-b", "at": 0, "type": "uint16", "function": 4},
    ]

    class Both(Device):
        async def read_input(self, unit: int, address: int, count: int) -> list[int]:
            self.asked.append((address, count))
            return [6 + unit] * count

    driver, device = TableDriver(profile(points=both), 1), Both()
    reading, asked = await device.read(driver)
    assert reading.metrics == {"x-acme-a": 0, "x-acme-b": 7}
    assert asked == [(0, 1), (0, 1)]


def test_blocks_that_are_given_are_taken() -> None:
    package = load("intesis_dali")
    assert [(b.function, b.at, b.count) for b in requests(package.profile)] == [(3, 3, 5)]
    computed = msgspec.structs.replace(package.profile, blocks=[])
    assert [(b.function, b.at, b.count) for b in requests(computed)] == [(3, 3, 1), (3, 5, 3)]


def test_a_shared_line_is_set_up_as_its_devices_say() -> None:
    slow = profile(transport={"kind": "modbus", "baudrate": 4800, "timeout_s": 2.0}).transport
    fast = profile(transport={"kind": "modbus", "baudrate": 4800, "timeout_s": 0.3}).transport
    line = shared_transport([fast, slow], baudrate=None, parity=None)
    assert (line.baudrate, line.parity, line.timeout_s) == (4800, "N", 2.0)
    assert shared_transport([fast, slow], baudrate=19200, timeout_s=0.1).baudrate == 19200
    other = profile(transport={"kind": "modbus", "parity": "E", "baudrate": 4800}).transport
    with pytest.raises(ConfigError) as caught:
        shared_transport([fast, other])
    assert (caught.value.key, caught.value.value) == ("parity", ["E", "N"])
    assert shared_transport([fast, other], parity="E").parity == "E"


def test_what_a_profile_says_of_reading_is_checked() -> None:
    with pytest.raises(msgspec.ValidationError, match="max_gap"):
        profile(read={"max_gap": -1})
    assert isinstance(profile().read, Read)
