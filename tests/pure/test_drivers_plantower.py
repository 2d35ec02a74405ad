"""Plantower: frames out of any stream, and what the driver does on its port."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_drivers.errors import DeviceSilent, FrameError
from device_drivers.kit.driver import SerialDriver
from device_drivers.kit.registry import load
from device_drivers.serial.plantower_pms.driver import COMMANDS, Driver, Settings, Stream

PROFILE = load("plantower_pms").profile
ACK = bytes.fromhex("424d0004e1010175")


def frame(pm2_5: int, version: int = 0x97) -> bytes:
    words = (pm2_5, pm2_5, pm2_5, pm2_5, pm2_5, pm2_5, 900, 300, 50, 5, 2, 1, version << 8)
    head = b"BM\x00\x1c" + b"".join(word.to_bytes(2, "big") for word in words)
    return head + sum(head).to_bytes(2, "big")


GOOD = frame(19)
BROKEN = GOOD[:-1] + bytes((GOOD[-1] ^ 1,))
WARMING_UP = b"BM\x00\x1c" + bytes(26) + (0x42 + 0x4D + 0x1C).to_bytes(2, "big")

PIECES = st.sampled_from(
    [
        GOOD,
        frame(0),
        BROKEN,
        ACK,
        GOOD[:11],
        b"\x42",
        b"\x42\x4d",
        b"\x42\x42\x4d",
        b"\x00\x1c",
        b"?",
    ]
)


def found(portions: list[bytes]) -> list[bytes | tuple[str, int]]:
    stream = Stream()
    items = [item for portion in portions for item in stream.feed(portion)]
    items += stream.finish()
    return [item if isinstance(item, bytes) else (item.kind, item.offset) for item in items]


@given(pieces=st.lists(PIECES, max_size=8), cuts=st.lists(st.integers(0, 200), max_size=12))
def test_where_the_stream_is_cut_does_not_matter(pieces: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(pieces)
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    portions = [whole[start:end] for start, end in pairwise(edges)]
    assert found(portions) == found([whole])
    assert found([bytes((byte,)) for byte in whole]) == found([whole])


@given(garbage=st.lists(st.binary(max_size=60).map(lambda data: data.replace(b"\x42", b""))))
def test_no_good_frame_is_lost_between_garbage(garbage: list[bytes]) -> None:
    stream = b"".join(noise + GOOD for noise in garbage)
    assert found([stream]) == [GOOD] * len(garbage)


@given(cut=st.integers(1, 31))
def test_a_truncated_frame_does_not_cost_the_next_one(cut: int) -> None:
    assert found([GOOD[:cut] + frame(20)])[-1] == frame(20)


def test_what_is_wrong_is_placed() -> None:
    assert found([b"??" + BROKEN + GOOD + b"BM\xff\xff"]) == [
        ("bad_checksum", 2),
        GOOD,
        ("bad_length", 66),
    ]


def test_an_endless_stream_of_garbage_is_not_kept() -> None:
    stream = Stream()
    for _ in range(1000):
        list(stream.feed(b"BM\x00\x1cnonsense" * 10))
    assert len(stream._bytes) < 64


class Port:
    """A serial port whose other end is written down; time stands still unless it is waited for."""

    def __init__(self, *incoming: bytes) -> None:
        self.incoming = list(incoming)
        self.written: list[bytes] = []
        self.now_s = 0.0

    async def read_some(self, timeout_s: float) -> bytes:
        if not self.incoming:
            self.now_s += max(timeout_s, 0)
            raise DeviceSilent("nothing")
        return self.incoming.pop(0)

    async def write(self, data: bytes) -> None:
        self.written.append(data)

    def discard_input(self) -> None:
        pass


def started(port: Port, **settings: Any) -> SerialDriver:
    driver = Driver(PROFILE, Settings(**settings), lambda: port.now_s)
    asyncio.run(driver.start(port))
    return driver


@pytest.mark.parametrize("mode", ["active", "passive"])
def test_start_sets_the_mode(mode: str) -> None:
    port = Port()
    driver = started(port, mode=mode)
    assert port.written == [COMMANDS[f"{mode}_mode"]]
    assert driver.streaming == (mode == "active")


async def pm2_5(driver: SerialDriver, port: Port) -> object:
    return (await driver.read(port)).metrics["pm2_5"]


async def test_every_frame_of_one_portion_is_a_reading() -> None:
    port = Port(ACK + frame(1) + frame(2)[:9], frame(2)[9:] + frame(3))
    driver = Driver(PROFILE, Settings())
    assert [await pm2_5(driver, port) for _ in range(3)] == [1, 2, 3]


async def test_a_broken_frame_is_raised_and_the_next_one_read() -> None:
    port = Port(BROKEN + GOOD)
    driver = Driver(PROFILE, Settings())
    with pytest.raises(FrameError, match="bad_checksum"):
        await driver.read(port)
    assert await pm2_5(driver, port) == 19


async def test_warming_up_is_waited_out() -> None:
    driver = Driver(PROFILE, Settings())
    assert await pm2_5(driver, Port(WARMING_UP, WARMING_UP, GOOD)) == 19


async def test_passive_asks_each_time() -> None:
    port = Port(GOOD, frame(20))
    driver = Driver(PROFILE, Settings(mode="passive"))
    assert [await pm2_5(driver, port) for _ in range(2)] == [19, 20]
    assert port.written == [COMMANDS["passive_read"]] * 2


async def test_a_silent_sensor_is_woken_and_what_it_says_then_is_marked() -> None:
    port = Port()
    driver = Driver(PROFILE, Settings(), lambda: port.now_s)
    with pytest.raises(DeviceSilent):
        await driver.read(port)
    assert port.written == [COMMANDS["wake"], COMMANDS["active_mode"]]
    port.incoming = [GOOD, frame(1200), GOOD]
    assert (await driver.read(port)).quality == "uncertain:warmup"
    assert (await driver.read(port)).quality.startswith("uncertain:warmup;uncertain:saturated(")
    port.now_s += PROFILE.timing.warm_up_s
    assert (await driver.read(port)).quality == ""


async def test_another_models_frames_are_refused() -> None:
    driver = Driver(PROFILE, Settings(model="pms3003"))
    with pytest.raises(FrameError, match="bad_length"):
        await driver.read(Port(GOOD))
