"""Lamp programmes over a year and more, by a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from device_drivers.kit.driver import Value
from edge_agent import lighting as lighting_module
from edge_agent.commands import Outcome
from edge_agent.config import Device
from edge_agent.ledger import Issued, LedgerBlocked
from edge_agent.lighting import Days, Lighting, Programme, Step, Timeline, check
from exchange.configuration import converted
from exchange.errors import ConfigError
from exchange.runtime import JsonLines
from exchange.states import Location
from tests.agents import until

TAIPEI = ZoneInfo("Asia/Taipei")
PLACE = Location(lat=25.04, lon=121.56)
NIGHT = [
    Step(at="sunset+10", level=100),
    Step(at="23:30", level=50),
    Step(at="05:00", level=80),
    Step(at="sunrise-10", level=0),
]


def ms(text: str, zone: ZoneInfo = TAIPEI) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp() * 1000)


def timeline(
    *days: Days, steps: list[Step] = NIGHT, zone: ZoneInfo = TAIPEI, place: Location | None = PLACE
) -> Timeline:
    return Timeline(Programme(id="p", steps=steps, days=list(days)), zone, place)


def level(line: Timeline, text: str, zone: ZoneInfo = TAIPEI) -> int | None:
    due = line.holding(ms(text, zone))
    return None if due is None else due.level


def switched(
    line: Timeline, first: str, days: int, zone: ZoneInfo = TAIPEI
) -> list[tuple[datetime, int]]:
    """Return every step from a midnight on, as going from step to step finds them."""
    now_ms, end_ms = ms(f"{first}T00:00", zone), ms(f"{first}T00:00", zone) + days * 86_400_000
    found = []
    while (due := line.next(now_ms)) is not None and due.moment_ms < end_ms:
        found.append((datetime.fromtimestamp(due.moment_ms / 1000, zone), due.level))
        now_ms = due.moment_ms
    return found


def test_a_year_of_nights_in_taipei() -> None:
    line = timeline()
    steps = switched(line, "2027-01-01", 365)
    assert Counter(at.date() for at, _ in steps) == {
        date(2027, 1, 1) + timedelta(days=n): 4 for n in range(365)
    }
    lit = [at for at, level in steps if level == 100]
    off = [at for at, level in steps if level == 0]
    # the almanac's sunsets and sunrises of Taipei, within a minute or two
    assert abs(lit[0] - datetime(2027, 1, 1, 17, 26, tzinfo=TAIPEI)) < timedelta(minutes=2)
    assert abs(lit[171] - datetime(2027, 6, 21, 18, 57, tzinfo=TAIPEI)) < timedelta(minutes=2)
    assert abs(off[0] - datetime(2027, 1, 1, 6, 29, tzinfo=TAIPEI)) < timedelta(minutes=2)
    assert abs(off[171] - datetime(2027, 6, 21, 4, 54, tzinfo=TAIPEI)) < timedelta(minutes=2)
    # before 05:00 in June the sun is up 14 minutes later: the later step holds, whatever the file's order
    assert level(line, "2027-06-21T04:55") == 0
    assert level(line, "2027-06-21T05:01") == 80


def test_what_holds_agrees_with_the_steps_at_any_moment() -> None:
    line = timeline(Days(weekdays=["fri", "sat"], steps=[Step(at="sunset", level=90)]))
    steps = switched(line, "2026-12-30", 40)
    for (at, level), (following, _) in pairwise(steps):
        for moment in (at, at + (following - at) / 2, following - timedelta(seconds=1)):
            due = line.holding(round(moment.timestamp() * 1000))
            assert due is not None
            assert due.level == level


def test_weekdays_dates_and_ranges_the_first_that_fits() -> None:
    line = timeline(
        Days(dates=["02-28..03-01"], weekdays=["sun"], steps=[Step(at="00:00", level=1)]),
        Days(dates=["12-30..01-02"], steps=[Step(at="00:00", level=2)]),
        Days(dates=["2027-02-05..2027-02-08"], steps=[Step(at="00:00", level=3)]),
        Days(dates=["10-10", "2027-05-01"], steps=[Step(at="00:00", level=4)]),
        Days(weekdays=["sat", "sun"], steps=[Step(at="00:00", level=5)]),
        steps=[Step(at="00:00", level=6)],
    )
    expected = {
        "2026-12-29": 6,
        "2026-12-30": 2,
        "2027-01-01": 2,
        "2027-01-02": 2,
        "2027-01-03": 5,
        "2027-02-04": 6,
        "2027-02-05": 3,
        "2027-02-08": 3,
        "2027-02-09": 6,
        "2027-02-28": 1,
        "2027-05-01": 4,
        "2028-05-01": 6,
        "2027-10-10": 4,
        "2028-10-10": 4,
        "2028-02-29": 6,
    }
    found = {day: level(line, f"{day}T12:00") for day in expected}
    assert found == expected


def test_a_range_may_end_or_begin_on_a_day_that_the_year_does_not_have() -> None:
    def lit(dates: str, text: str) -> bool:
        line = timeline(Days(dates=[dates], steps=[Step(at="00:00", level=1)]))
        return level(line, text) == 1

    for year in (2027, 2028):
        assert lit("02-01..02-29", f"{year}-02-28T12:00")
        assert not lit("02-01..02-29", f"{year}-03-01T12:00")
        assert lit("12-01..02-29", f"{year}-12-10T12:00")
        assert lit("12-01..02-29", f"{year}-02-10T12:00")
        assert lit("02-29..03-10", f"{year}-03-01T12:00")
        assert not lit("02-29..03-10", f"{year}-02-28T12:00")


def test_a_night_may_belong_to_its_evening() -> None:
    late = Days(weekdays=["fri"], steps=[Step(at="18:00", level=100), Step(at="26:30", level=30)])
    line = timeline(late, steps=[Step(at="18:00", level=70)])
    assert level(line, "2027-01-02T02:29") == 100, "the night from Friday to Saturday"
    assert level(line, "2027-01-02T02:31") == 30
    assert level(line, "2027-01-03T02:31") == 70


def test_clocks_that_are_put_forward_and_back() -> None:
    """Taiwan has no summer time; other zones do."""
    berlin = ZoneInfo("Europe/Berlin")
    line = timeline(steps=[Step(at="02:30", level=40), Step(at="12:00", level=0)], zone=berlin)
    steps = switched(line, "2027-01-01", 365, berlin)
    assert Counter(level for _, level in steps) == {40: 365, 0: 365}, "each once a day, every day"
    (spring,) = (at for at, level in steps if level == 40 and at.date() == date(2027, 3, 28))
    (autumn,) = (at for at, level in steps if level == 40 and at.date() == date(2027, 10, 31))
    assert (spring.hour, spring.minute) == (3, 30), "02:30 is left out"
    assert autumn.astimezone(UTC).hour == 0, "the first of two"


def test_where_the_sun_does_not_set_it_is_day_and_where_it_does_not_rise_night() -> None:
    oslo = ZoneInfo("Europe/Oslo")
    tromso = Location(lat=69.65, lon=18.96)
    line = timeline(
        steps=[Step(at="sunset", level=100), Step(at="sunrise", level=0)], zone=oslo, place=tromso
    )
    for at in ("2027-06-21T00:00", "2027-06-21T12:00", "2027-07-20T01:00"):
        assert level(line, at, oslo) == 0, "all day, and nothing is switched"
    for at in ("2026-12-21T00:00", "2026-12-21T12:00", "2027-01-10T12:00"):
        assert level(line, at, oslo) == 100, "all night"
    assert {level for _, level in switched(line, "2027-06-10", 10, oslo)} == {0}
    by_twilight = timeline(
        steps=[Step(at="dusk", level=100), Step(at="dawn", level=0)], zone=oslo, place=tromso
    )
    assert level(by_twilight, "2026-12-21T12:00", oslo) == 0, "at noon it is light enough"
    assert level(by_twilight, "2026-12-21T18:00", oslo) == 100


def test_a_sunset_after_midnight_is_of_the_day_before() -> None:
    reykjavik = ZoneInfo("Atlantic/Reykjavik")
    place = Location(lat=64.15, lon=-21.94)
    line = timeline(
        Days(dates=["06-21"], steps=[Step(at="sunset", level=33)]),
        steps=[Step(at="sunset", level=100), Step(at="sunrise", level=0)],
        zone=reykjavik,
        place=place,
    )
    assert level(line, "2027-06-22T00:10", reykjavik) == 33
    samoa = timeline(
        Days(weekdays=["fri"], steps=[Step(at="sunset", level=33)]),
        steps=[Step(at="sunset", level=100)],
        zone=ZoneInfo("Pacific/Apia"),
        place=Location(lat=-13.8, lon=-171.8),
    )
    assert level(samoa, "2027-01-01T23:00", ZoneInfo("Pacific/Apia")) == 33, "a Friday, there"


def test_without_a_step_in_a_year_nothing_holds() -> None:
    assert level(timeline(steps=[]), "2027-01-01T00:00") is None
    once = timeline(Days(dates=["2026-01-01"], steps=[Step(at="12:00", level=7)]), steps=[])
    assert level(once, "2026-12-31T00:00") == 7, "catching up goes back a year"
    assert once.next(ms("2026-01-02T00:00")) is None


# ------------------------------------------------------------------------------------------------------- checking


def lamp(number: int, bus: str = "rs485", **more: str) -> Device:
    return Device(
        id=f"lamp-{number}",
        domain="streetlight",
        driver="intesis_dali",
        bus=bus,
        interval_s=60,
        settings={"short_address": number},
        **more,  # type: ignore[arg-type]  # cabinet, circuit
    )


AIR = Device(id="air-1", domain="air", driver="plantower_pms", bus="tty0", interval_s=60)


@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("devices[1]", {"devices": ["lamp-1", "lamp-9"]}),
        ("devices", {"cabinets": ["C9"]}),
        ("devices", {"devices": ["air-1"]}),
        ("steps", {"devices": ["lamp-1"], "steps": []}),
        ("steps[0].at", {"devices": ["lamp-1"], "steps": [{"at": "36:00", "level": 0}]}),
        ("steps[0].at", {"devices": ["lamp-1"], "steps": [{"at": "12:60", "level": 0}]}),
        (
            "days[0].dates[0]",
            {"devices": ["lamp-1"], "days": [{"dates": ["02-30"], "steps": []}]},
        ),
        (
            "days[0].dates[1]",
            {
                "devices": ["lamp-1"],
                "days": [{"dates": ["02-29", "2027-02-05..2027-02-04"], "steps": []}],
            },
        ),
        (
            "days[0].dates[0]",
            {"devices": ["lamp-1"], "days": [{"dates": ["2027-02-05..03-01"], "steps": []}]},
        ),
    ],
)
def test_a_wrong_programme_is_named_to_the_key(key: str, table: dict[str, Any]) -> None:
    whole = {"id": "p", "steps": [{"at": "18:00", "level": 100}]} | table
    programme = converted(whole, Programme, "edge.toml")
    devices = {device.id: device for device in (lamp(1), AIR)}
    with pytest.raises(ConfigError) as error:
        check(programme, devices)
    assert error.value.key == key


@pytest.mark.parametrize("at", ["sunset+1000", "noon", "1:5", "sunset 10", "12:00+5"])
def test_a_time_that_is_none(at: str) -> None:
    table = {"id": "p", "devices": ["lamp-1"], "steps": [{"at": at, "level": 0}]}
    with pytest.raises(ConfigError):
        converted(table, Programme, "edge.toml")


def test_a_right_programme_and_what_it_switches() -> None:
    lamps = [lamp(1), lamp(2, cabinet="C7"), lamp(3, circuit="L2"), lamp(4, cabinet="C8"), AIR]
    devices = {device.id: device for device in lamps}
    programme = Programme(
        id="p",
        steps=NIGHT,
        devices=["lamp-1"],
        cabinets=["C7"],
        circuits=["L2"],
        days=[Days(dates=["12-24..01-06", "02-29"], steps=[])],
    )
    check(programme, devices)
    assert [one.id for one in programme.lamps(lamps)] == ["lamp-1", "lamp-2", "lamp-3"]
    with pytest.raises(ConfigError, match=r"gateway\.location"):
        check(programme, devices, located=False)


# ------------------------------------------------------------------------------------------------------ switching


class Clock:
    """A wall clock that is moved by hand; `looks` counts how often somebody asked if it is known."""

    def __init__(self, text: str) -> None:
        self.now = ms(text)
        self.looks = 0
        self._known = True

    @property
    def known(self) -> bool:
        self.looks += 1
        return self._known

    @known.setter
    def known(self, known: bool) -> None:
        self._known = known

    def now_ms(self) -> int:
        return self.now


class Street:
    """Lamps that do as they are told, or not."""

    def __init__(self) -> None:
        self.clock: Clock | None = None
        self.done: list[tuple[str, int]] = []
        self.asked: Counter[str] = Counter()
        self.dead: set[str] = set()
        self.failed: set[str] = set()
        self.issued: dict[str, Issued] = {}
        self.by: list[str] = []
        self.at_once: Counter[str] = Counter()
        self.most_at_once = 0

    async def order(
        self,
        device_id: str,
        name: str,
        args: Mapping[str, Value],
        *,
        by: str,
        deadline_s: float,
        again: bool,
    ) -> Outcome:
        assert name == "set_level"
        assert deadline_s > 0
        self.by.append(by)
        assert again == (self.asked[device_id] > 0 and device_id in self.failed)
        self.asked[device_id] += 1
        self.at_once["rs485"] += 1
        self.most_at_once = max(self.most_at_once, self.at_once["rs485"])
        await asyncio.sleep(0)
        self.at_once["rs485"] -= 1
        if device_id in self.dead:
            self.failed.add(device_id)
            return Outcome("failed", "DeviceSilent: no answer")
        self.failed.discard(device_id)
        self.done.append((device_id, int(args["level"])))
        return Outcome("done")

    def give(self, device: str, level: int, at_ms: int) -> None:
        """Somebody's command was carried out."""
        self.issued[device] = Issued(f"id-{level}", at_ms, {"level": level})

    async def last_issued(self, device: str, name: str) -> Issued | None:
        assert name == "set_level"
        return self.issued.get(device)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lighting_module, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(lighting_module, "RETRY_FIRST_S", 0.02)


@asynccontextmanager
async def switching(
    street: Street, clock: Clock, *lamps: Device, **more: Any
) -> AsyncIterator[Lighting]:
    street.clock = clock
    lighting = Lighting(clock, street.order, street.last_issued)
    ids = [one.id for one in lamps]
    whole: dict[str, Any] = {"id": "p", "steps": NIGHT, "devices": ids, "stagger_s": 0} | more
    lighting.serve([Programme(**whole)], lamps, TAIPEI, PLACE)
    task = asyncio.create_task(lighting.run())
    try:
        yield lighting
    finally:
        task.cancel()
        await asyncio.wait([task])


async def settled(street: Street, count: int) -> None:
    """Return once so many were switched, and nothing more is in a number of looks."""
    await until(lambda: len(street.done) >= count)
    assert street.clock is not None
    looks = street.clock.looks
    await until(lambda: street.clock is not None and street.clock.looks >= looks + 10)
    assert len(street.done) == count


async def test_a_year_of_nights_is_switched_each_step_once() -> None:
    street, clock = Street(), Clock("2027-01-01T12:00")
    steps = [NIGHT[0], NIGHT[1], Step(at="04:00", level=80), NIGHT[3]]
    async with switching(street, clock, lamp(1), lamp(2), steps=steps):
        await settled(street, 2)
        assert street.done == [("lamp-1", 0), ("lamp-2", 0)], "what holds, at the start"
        for night in range(20):  # weeks without anybody
            for at, expected in (("18:59", 100), ("23:31", 50), ("04:01", 80), ("06:40", 0)):
                street.done.clear()
                day = date(2027, 1, 1) + timedelta(days=18 * night + (at < "12"))
                clock.now = ms(f"{day}T{at}")
                await until(lambda: len(street.done) >= 2)
                assert street.done == [("lamp-1", expected), ("lamp-2", expected)]
    assert street.most_at_once == 1


async def test_a_command_of_somebody_holds_until_the_next_step() -> None:
    street, clock = Street(), Clock("2027-01-01T20:00")
    async with switching(street, clock, lamp(1), lamp(2)) as lighting:
        await settled(street, 2)
        street.give("lamp-1", 80, clock.now)
        lighting.overridden("lamp-1", "set_level", clock.now)
        lighting.overridden("lamp-1", "blink", clock.now)
        clock.now = ms("2027-01-01T23:29")
        await settled(street, 2)
        clock.now = ms("2027-01-01T23:30")
        await settled(street, 4)
        assert street.done[2:] == [("lamp-1", 50), ("lamp-2", 50)]


async def test_after_a_start_a_command_of_somebody_still_holds() -> None:
    street, clock = Street(), Clock("2027-01-01T20:00")
    street.give("lamp-1", 80, ms("2027-01-01T19:00"))
    street.give("lamp-2", 90, ms("2027-01-01T12:00"))
    async with switching(street, clock, lamp(1), lamp(2), lamp(3)):
        await settled(street, 3)  # lamps may have begun anew with the gateway
        assert street.done == [("lamp-1", 80), ("lamp-2", 100), ("lamp-3", 100)]
        assert street.by == ["command id-80", "programme p", "programme p"]
        clock.now = ms("2027-01-02T00:00")
        await settled(street, 6)
        assert {level for _, level in street.done[3:]} == {50}


@pytest.mark.parametrize(
    ("metrics", "was_away"),
    [({}, True), ({"x-intesis-power_cycle": True, "level": 100}, False)],
)
async def test_a_lamp_that_was_away_is_given_what_holds_again(
    metrics: dict[str, Value], was_away: bool
) -> None:
    street, clock = Street(), Clock("2027-01-01T20:00")
    well: dict[str, Value] = {"x-intesis-power_cycle": False, "level": 100}
    async with switching(street, clock, lamp(1), lamp(2), lamp(3)) as lighting:
        await settled(street, 3)
        street.give("lamp-2", 80, clock.now)
        lighting.overridden("lamp-2", "set_level", clock.now)
        for name in ("lamp-1", "lamp-2", "lamp-3", "air-1"):
            lighting.heard(name, well, was_away=False)
        await settled(street, 3)
        street.done.clear()
        for name in ("lamp-1", "lamp-2", "air-1"):
            lighting.heard(name, metrics, was_away=was_away)
        await settled(street, 2)
        assert street.done == [("lamp-1", 100), ("lamp-2", 80)], "somebody's command holds, too"
        for name in ("lamp-1", "lamp-2", "lamp-3"):
            lighting.heard(name, metrics, was_away=False)
            lighting.heard(name, metrics, was_away=False)
        await settled(street, 3 if metrics else 2)
        street.done.clear()
        clock.now = ms("2027-01-01T23:30")
        lighting.heard("lamp-2", {}, was_away=True)
        await settled(street, 3)
        assert {level for _, level in street.done} == {50}, "until the next step"


async def test_a_command_of_somebody_that_comes_between_is_given_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    street, clock = Street(), Clock("2027-01-01T20:00")
    whole = street.order

    async def order(device_id: str, *about: Any, **more: Any) -> Outcome:
        if not street.issued:
            street.give(device_id, 80, clock.now)
            lighting.overridden(device_id, "set_level", clock.now)
        return await whole(device_id, *about, **more)

    monkeypatch.setattr(street, "order", order)
    async with switching(street, clock, lamp(1)) as lighting:
        await settled(street, 2)
    assert street.done == [("lamp-1", 100), ("lamp-1", 80)]


async def test_power_that_returns_before_an_order_has_ended_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The level was written; its note in the ledger still waits for the disk."""
    street, clock = Street(), Clock("2027-01-01T20:00")
    whole = street.order

    async def order(device_id: str, *about: Any, **more: Any) -> Outcome:
        outcome = await whole(device_id, *about, **more)
        if len(street.done) == 1:
            lighting.heard(device_id, {}, was_away=True)
        return outcome

    monkeypatch.setattr(street, "order", order)
    async with switching(street, clock, lamp(1)) as lighting:
        await settled(street, 2)
    assert street.done == [("lamp-1", 100), ("lamp-1", 100)]


async def test_while_the_clock_is_not_known_the_lamps_stay_as_they_are() -> None:
    street, clock = Street(), Clock("1970-01-01T20:00")
    clock.known = False
    async with switching(street, clock, lamp(1)):
        await settled(street, 0)
        clock.now, clock.known = ms("2027-01-01T20:00"), True
        await settled(street, 1)
        clock.now -= 60_000  # slewed back before the step that was just taken
        clock.now = ms("2027-01-01T23:30")
        await settled(street, 2)
        clock.now -= 30_000
        await settled(street, 2)
        clock.now = ms("2027-01-01T22:00")  # set back in earnest
        await settled(street, 3)
        assert [level for _, level in street.done] == [100, 50, 100]


async def test_a_dead_lamp_holds_up_nobody_and_gets_what_holds_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "edge_agent.lighting")
    street, clock = Street(), Clock("2027-01-01T20:00")
    street.dead = {"lamp-1"}
    async with switching(street, clock, lamp(1), lamp(2)):
        await until(lambda: street.asked["lamp-1"] >= 4)
        assert street.done == [("lamp-2", 100)]
        clock.now = ms("2027-01-01T23:30")
        await until(lambda: ("lamp-2", 50) in street.done)
        street.dead = set()
        await until(lambda: ("lamp-1", 50) in street.done)
        await settled(street, 3)
    said = [record.message for record in caplog.records]
    assert said == ["a lamp could not be switched", "a lamp could be switched again"]
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert [(line["level"], line["percent"]) for line in lines] == [("warning", 100), ("info", 50)]


async def test_a_lamp_of_two_programmes_has_the_first(caplog: pytest.LogCaptureFixture) -> None:
    lighting = Lighting(Clock("2027-01-01T20:00"), Street().order, Street().last_issued)
    two = [Programme(id=name, steps=NIGHT, devices=["lamp-1"]) for name in ("a", "b")]
    lighting.serve(two, [lamp(1)], TAIPEI, PLACE)
    assert [record.message for record in caplog.records] == [
        "a device of two programmes has the first"
    ]


async def test_a_step_that_is_taken_out_in_the_night_does_not_hold_any_more() -> None:
    street, clock = Street(), Clock("2027-01-01T23:40")
    async with switching(street, clock, lamp(1)) as lighting:
        await settled(street, 1)
        bright = [step for step in NIGHT if step.level != 50]
        whole = Programme(id="p", steps=bright, devices=["lamp-1"], stagger_s=0)
        lighting.serve([whole], [lamp(1)], TAIPEI, PLACE)
        await settled(street, 2)
    assert street.done == [("lamp-1", 50), ("lamp-1", 100)]


async def test_a_ledger_that_cannot_be_asked_keeps_no_lamp_dark(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lighting_module, "LOOK_EVERY_S", 3600)

    async def blocked(device: str, name: str) -> Issued | None:
        raise LedgerBlocked("the disk is full")

    street, clock = Street(), Clock("2027-01-01T20:00")
    monkeypatch.setattr(street, "last_issued", blocked)
    async with switching(street, clock, lamp(1), lamp(2)):
        await until(lambda: len(street.done) == 2)
    assert caplog.records == [], "who keeps the ledger says so"


async def test_a_programme_that_is_changed_holds_at_once() -> None:
    street, clock = Street(), Clock("2027-01-01T20:00")
    async with switching(street, clock, lamp(1)) as lighting:
        await settled(street, 1)
        brighter = [msg if msg.level != 100 else Step(at=msg.at, level=90) for msg in NIGHT]
        lighting.serve(
            [Programme(id="p", steps=brighter, devices=["lamp-1"])], [lamp(1)], TAIPEI, PLACE
        )
        await settled(street, 2)
        assert street.done == [("lamp-1", 100), ("lamp-1", 90)]


@pytest.mark.parametrize("page", ["programmes.md", "programmes.zh-TW.md"])
def test_what_the_pages_for_installers_show_is_right(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "installers" / page).read_text(encoding="utf-8")
    shown = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (table,) = tomllib.loads("\n".join(shown))["programme"]
    programme = converted(table, Programme, page)
    check(programme, {"lamp-1": lamp(1, circuit="L2")})
    line = Timeline(programme, TAIPEI, PLACE)
    assert level(line, "2027-01-02T02:00") == 50, "the night that begins on Friday"
    assert level(line, "2027-02-12T02:00") == 100, "New Year"
    assert level(line, "2027-03-03T02:00") == 50


# ------------------------------------------------------------------------------------- what is wrong with one lamp


async def test_a_lamp_that_meets_an_error_keeps_no_other_dark(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    street, clock = Street(), Clock("2027-01-01T20:00")
    found = street.last_issued
    asked = 0

    async def wrong(device: str, name: str) -> Issued | None:
        nonlocal asked
        if device == "lamp-1":
            asked += 1
            if asked < 4:
                raise KeyError("a mistake of ours")
        return await found(device, name)

    monkeypatch.setattr(street, "last_issued", wrong)
    monkeypatch.setattr(Street, "order", _order_of_any)
    async with switching(street, clock, lamp(1), lamp(2), lamp(3)):
        await settled(street, 3)
    assert [device for device, _ in street.done] == ["lamp-2", "lamp-3", "lamp-1"]
    said = [record.message for record in caplog.records if record.levelno > logging.INFO]
    assert said == ["a lamp met an error"], "once, however often it is tried"


async def _order_of_any(
    self: Street, device_id: str, name: str, args: Mapping[str, Value], **_: object
) -> Outcome:
    del name
    self.done.append((device_id, int(args["level"])))
    return Outcome("done")


@pytest.mark.parametrize("args", [{}, {"lewel": 5}, {"level": 500}, {"level": True}])
async def test_a_command_that_the_lamp_would_refuse_holds_nothing(args: dict[str, Value]) -> None:
    street, clock = Street(), Clock("2027-01-01T20:00")
    street.issued["lamp-1"] = Issued("id", clock.now - 1000, args)
    async with switching(street, clock, lamp(1)):
        await settled(street, 1)
    assert street.done == [("lamp-1", 100)]


async def test_a_lamp_that_refuses_is_not_looked_at_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock("2027-01-01T20:00")
    outcomes = iter([Outcome("failed", "no answer"), Outcome("rejected", "not this one")])
    asked = asyncio.Event()

    async def order(device_id: str, name: str, args: object, **_: object) -> Outcome:
        outcome = next(outcomes)
        if outcome.status == "rejected":
            asked.set()
        return outcome

    lighting = Lighting(clock, order, Street().last_issued)
    whole = Programme(id="p", steps=NIGHT, devices=["lamp-1"], stagger_s=0)
    lighting.serve([whole], [lamp(1)], TAIPEI, PLACE)
    task = asyncio.create_task(lighting.run())
    try:
        async with asyncio.timeout(20):
            await asked.wait()
        await until(lambda: not lighting._looking)
        monkeypatch.setattr(lighting_module, "LOOK_EVERY_S", 3600.0)
        assert lighting._pause_s() == 3600.0, "a retry that is over is nothing to wait for"
    finally:
        task.cancel()
        await asyncio.wait([task])
