"""The seeded town: the same town in any order of asking, and a plausible one."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from zoneinfo import ZoneInfo

import msgspec
import pytest
from astral import Observer
from astral.sun import sun

from device_drivers.ble.bthome import twin as bthome
from device_drivers.kit.registry import load
from device_drivers.modbus.intesis_dali import twin as intesis_dali
from device_drivers.serial.plantower_pms import twin as plantower_pms
from exchange.dictionary import dictionary
from exchange.errors import ConfigError
from simulators import chance
from simulators.errors import SimulatorError
from simulators.plan import check_plan, load_plan, street_plan
from simulators.town import FAULT_A_DAY, OVERNIGHT, Place, Town, TownClock
from simulators.truth import TruthEntry, TruthLog, read_truth

TAIPEI = ZoneInfo("Asia/Taipei")
SEED = 20260320
MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400


def town(seed: int = SEED) -> Town:
    return Town(seed, lambda: 0.0)


def at(hour: int, minute: int = 0, *, day: int = 20, month: int = 3) -> float:
    return datetime(2026, month, day, hour, minute, tzinfo=TAIPEI).timestamp()


def test_the_same_seed_gives_the_same_town_in_any_order() -> None:
    moments = [at(0) + 977 * step for step in range(200)]
    devices = [("lamp-001", "streetlight"), ("bay-001", "parking"), ("air-001", "air")]
    questions = [(device, domain, moment) for device, domain in devices for moment in moments]

    def answers(order: list[tuple[str, str, float]]) -> dict[tuple[str, str, float], bytes]:
        now = 0.0
        asked = Town(SEED, lambda: now)
        worlds = {device: asked.physics(device, domain) for device, domain in devices}
        said = {}
        for question in order:
            now = question[2]
            said[question] = msgspec.json.encode(worlds[question[0]]())
        return said

    shuffled = random.Random(1).sample(questions, len(questions))
    assert answers(questions) == answers(shuffled)


def test_another_seed_is_another_town_and_devices_differ() -> None:
    moments = [at(0) + 600 * step for step in range(144)]
    for world, one, other in (
        (Town.bay, "bay-001", "bay-002"),
        (Town.air, "air-001", "air-002"),
    ):
        here = [world(town(), one, moment) for moment in moments]
        assert here != [world(town(SEED + 1), one, moment) for moment in moments]
        assert here != [world(town(), other, moment) for moment in moments]


@pytest.mark.parametrize("day", [date(2026, 3, 20), date(2026, 6, 21), date(2026, 12, 21)])
def test_lamps_follow_the_sun(day: date) -> None:
    place = Place()
    times = sun(Observer(place.latitude, place.longitude), date=day, tzinfo=TAIPEI)
    for number in range(12):
        device = f"lamp-{number:03}"

        def level(moment: datetime, device: str = device) -> object:
            return town().lamp(device, moment.timestamp())["level"]

        assert level(times["sunset"] - timedelta(minutes=1)) == 0
        assert level(times["sunset"] + timedelta(minutes=15)) == 100
        assert level(times["sunrise"] - timedelta(minutes=15)) != 0
        assert level(times["sunrise"] + timedelta(minutes=1)) == 0
        assert level(times["noon"]) == 0


def test_lamps_dim_after_midnight_and_use_less() -> None:
    evening, night = (town().lamp("lamp-001", moment) for moment in (at(22), at(2, day=21)))
    assert (evening["level"], night["level"]) == (100, 50)
    assert evening["power"] == pytest.approx(2 * night["power"], abs=0.2)


def test_lamps_light_up_all_along_the_street_within_minutes() -> None:
    here = town()
    lit = [
        next(
            moment
            for moment in range(int(at(18)), int(at(19)), 5)
            if here.lamp(f"lamp-{number:03}", moment)["level"]
        )
        for number in range(30)
    ]
    assert len(set(lit)) > 10, "each photocell has its own dusk"
    assert max(lit) - min(lit) < 10 * MINUTE_S


def test_a_town_beyond_the_polar_circle_has_lamps_too() -> None:
    tromso = Town(SEED, lambda: 0.0, Place(69.65, 18.96, "Europe/Oslo"))
    assert tromso.lamp("lamp-001", at(12, day=21, month=6))["level"] == 0
    assert tromso.lamp("lamp-001", datetime(2026, 12, 21, 1, tzinfo=UTC).timestamp())["level"] == 50


def test_faults_are_rare_last_a_while_and_put_the_light_out() -> None:
    here, lamps, days = town(), 200, 60
    night = [at(21) + day * DAY_S for day in range(days)]
    states = [here.lamp(f"lamp-{number:03}", moment) for number in range(lamps) for moment in night]
    for state in states:
        assert state["lit"] == (not (state["lamp_fault"] or state["gear_fault"]))
        assert not (state["lamp_fault"] and state["gear_fault"])
    for fault in ("lamp_fault", "gear_fault"):
        share = mean(bool(state[fault]) for state in states)
        # A fault lasts 0.5 to 3 days.
        assert 0.5 * FAULT_A_DAY < share < 3.5 * FAULT_A_DAY


def test_bays_fill_by_day_and_empty_by_night() -> None:
    here = town()
    occupancy = {
        hour: mean(
            bool(here.bay(f"bay-{number:03}", at(hour) + day * DAY_S)["occupied"])
            for number in range(100)
            for day in range(7)
        )
        for hour in (3, 12, 18)
    }
    assert occupancy[3] == pytest.approx(OVERNIGHT, abs=0.08)
    assert occupancy[12] > occupancy[3] + 0.1
    assert occupancy[18] > occupancy[3] + 0.1
    assert max(occupancy.values()) < 0.95


def test_stays_are_lognormal_and_the_distance_says_what_occupied_says() -> None:
    here, stays = town(), []
    for number in range(20):
        came_s = None
        states = [
            (moment, here.bay(f"bay-{number:03}", moment))
            for moment in range(int(at(9)), int(at(18)), 60)
        ]
        for (_, before), (moment, state) in pairwise(states):
            assert (float(state["distance"]) < 1.8) == state["occupied"]
            if state["occupied"] and not before["occupied"]:
                came_s = moment
            elif before["occupied"] and not state["occupied"] and came_s is not None:
                stays.append(moment - came_s)
                came_s = None
    stays.sort()
    assert len(stays) > 80
    assert 20 * MINUTE_S < stays[len(stays) // 2] < 50 * MINUTE_S
    assert stays[-1] > 2 * HOUR_S, "a long tail"


def test_a_stay_does_not_break_where_one_day_of_a_bay_meets_the_next() -> None:
    here = town()
    crossing = 0
    for number in range(60):
        before, after = (
            here.bay(f"bay-{number:03}", at(4) + second)["occupied"] for second in (-1, 1)
        )
        assert before == after
        crossing += bool(before)
    assert crossing > 5


def test_the_air_has_rush_hours_and_drifts_slowly() -> None:
    here = town()

    def pm(hour: float, day: int) -> float:
        return float(here.air("air-001", at(0) + day * DAY_S + hour * HOUR_S)["pm2_5"])

    days = range(120)
    rush, small_hours = (mean(pm(hour, day) for day in days) for hour in (18.5, 3.5))
    assert rush > 1.2 * small_hours
    series = [pm(12 + minute / 60, 0) for minute in range(120)]
    whole = [pm(12, day) for day in days]
    assert max(abs(b - a) for a, b in pairwise(series)) < 0.2 * mean(series)
    assert stdev(whole) > 0.15 * mean(whole)
    for moment in range(int(at(0)), int(at(0)) + 3 * DAY_S, 1_800):
        state = here.air("air-002", moment)
        assert 0 < float(state["pm1"]) <= float(state["pm2_5"]) <= float(state["pm10"])


def test_neighbouring_boxes_breathe_the_same_air() -> None:
    here = town()
    moments = [at(0) + 3 * HOUR_S * step for step in range(300)]
    one, other = (
        [float(here.air(device, moment)["pm2_5"]) for moment in moments]
        for device in ("air-001", "air-002")
    )
    m1, m2 = mean(one), mean(other)
    together = mean((a - m1) * (b - m2) for a, b in zip(one, other, strict=True))
    assert together / (stdev(one) * stdev(other)) > 0.6


def test_what_the_town_says_is_in_the_dictionary_and_in_range() -> None:
    here = town()
    worlds: dict[str, Callable[[str, float], object]] = {
        "streetlight": here.lamp,
        "parking": here.bay,
        "air": here.air,
    }
    for domain, world in worlds.items():
        metrics = dictionary()[domain].metrics
        for step in range(400):
            state = world("device-001", at(0) + step * 7 * HOUR_S)
            assert isinstance(state, dict)
            for name, value in state.items():
                metric = metrics[name]
                assert (metric.type == "boolean") == isinstance(value, bool), name
                if metric.range is not None:
                    assert metric.range[0] <= value <= metric.range[1], (name, value)


def test_an_autoregression_is_one() -> None:
    carry = 0.9
    series = [chance.autoregression(step, SEED, "x", carry=carry) for step in range(4_000)]
    assert mean(series) == pytest.approx(0, abs=0.25)
    assert stdev(series) == pytest.approx(1, abs=0.12)
    lag = mean(a * b for a, b in pairwise(series)) / mean(a * a for a in series)
    assert lag == pytest.approx(carry, abs=0.03)


def test_the_clock_runs_as_fast_as_it_is_told() -> None:
    wall = 100.0
    start = datetime(2026, 3, 20, 17, 0, tzinfo=TAIPEI)
    clock = TownClock(start, 60, wall_s=lambda: wall)
    assert clock() == start.timestamp()
    wall += 10
    assert clock() == start.timestamp() + 600


def test_a_domain_the_town_does_not_have_is_named() -> None:
    with pytest.raises(ConfigError, match="domain = 'weather': one of streetlight, parking, air"):
        town().physics("device-001", "weather")


def test_a_time_zone_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"place\.zone = 'Asia/Atlantis'"):
        Town(SEED, lambda: 0.0, Place(zone="Asia/Atlantis"))


def test_a_street_plan_survives_its_file(tmp_path: Path) -> None:
    plan = street_plan(SEED)
    file = tmp_path / "plan.json"
    file.write_bytes(msgspec.json.encode(plan))
    assert load_plan(file) == plan
    assert len({device.id for device in plan.devices}) == 23
    encrypted = [device for device in plan.devices if "bindkey" in device.settings]
    assert len(encrypted) == 4
    assert street_plan(SEED + 1).devices != plan.devices


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"speed": -1}, "speed = -1: .*> 0"),
        ({"sped": 1}, r"sped = 1: .*speed"),
        ({"start": "2026-03-20T17:00:00"}, "start = .*timezone"),
    ],
)
def test_a_wrong_plan_is_refused_by_place(
    tmp_path: Path, damage: dict[str, object], said: str
) -> None:
    file = tmp_path / "plan.json"
    plan = msgspec.to_builtins(street_plan(SEED), builtin_types=(datetime,)) | damage
    file.write_bytes(msgspec.json.encode(plan))
    with pytest.raises(ConfigError, match=said):
        load_plan(file)


def test_a_plan_that_does_not_fit_together_is_refused() -> None:
    plan = street_plan(SEED, lamps=2, bays=1, air=1)
    lamp, other_lamp, bay, air = plan.devices
    for devices, said in (
        ([lamp, lamp, bay, air], "devices = 'lamp-001'.*used once"),
        ([msgspec.structs.replace(lamp, bus="tty9"), bay, air], "bus = 'tty9': one of ttyAIR0"),
        ([lamp, msgspec.structs.replace(other_lamp, bus="hci0"), air], "for a ble bus"),
        ([lamp, bay], "a serial bus has one device"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_plan(msgspec.structs.replace(plan, devices=devices), "plan.json")


def test_truth_is_on_disk_when_it_is_told(tmp_path: Path) -> None:
    file = tmp_path / "truth.jsonl"
    with TruthLog(file, now_ms=lambda: 1_767_225_600_000) as log:
        log.of("bay-001", "parking")({"occupied": True, "distance": 1.25})
        expected = TruthEntry(
            "bay-001", "parking", 1_767_225_600_000, {"occupied": True, "distance": 1.25}
        )
        assert list(read_truth(file)) == [expected]
    with file.open("a") as damaged:
        damaged.write('{"device":1}\n')
    with pytest.raises(SimulatorError, match=r"truth\.jsonl:2: not a truth entry"):
        list(read_truth(file))


def test_the_same_seed_gives_the_same_bytes_on_every_wire() -> None:
    def spoken(seed: int) -> list[bytes]:
        plan = street_plan(seed, lamps=2, bays=2, air=3)
        now = at(18)
        here = Town(seed, lambda: now)
        twins = [
            load(device.driver).twin(
                device.settings, here.physics(device.id, device.domain), lambda _: None
            )
            for device in plan.devices
        ]
        said = []
        for _ in range(50):
            now += 97
            for twin in twins:
                if isinstance(twin, plantower_pms.Twin):
                    said.append(twin.speak())
                elif isinstance(twin, intesis_dali.Twin):
                    twin.write(6, twin.addresses.start + 4, [1])
                    said.append(bytes(twin.read(3, twin.addresses.start + 5, 2)))
                else:
                    assert isinstance(twin, bthome.Twin)
                    said.append(msgspec.json.encode(twin.advert()))
        return said

    assert spoken(SEED) == spoken(SEED)
    assert spoken(SEED) != spoken(SEED + 1)
