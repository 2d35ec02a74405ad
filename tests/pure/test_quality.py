"""What values are worth: range, rate, stuck and warm-up, as marks that the exchange takes."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_drivers.kit.driver import Reading
from edge_agent.config import Device
from edge_agent.quality import (
    DAY_S,
    SILENT_INTERVALS,
    STUCK_AFTER_S,
    Judge,
    check_limits,
    fitted,
    merged,
)
from exchange.dictionary import dictionary
from exchange.errors import ConfigError
from exchange.readings import REASONS, Sample, decode_pack, encode_pack
from exchange.topics import Topic, parse_topic

DRIVERS = {"air": "plantower_pms", "streetlight": "intesis_dali", "parking": "bthome"}
DRIVERS |= {"weather": "bthome", "power": "bthome"}
SETTINGS: dict[str, dict[str, object]] = {
    "plantower_pms": {},
    "intesis_dali": {"short_address": 1},
    "bthome": {"address": "A4:C1:38:00:00:01"},
}


def device(domain: str = "air", driver: str = "", **more: object) -> Device:
    driver = driver or DRIVERS[domain]
    keys: dict[str, object] = {
        "id": "one",
        "domain": domain,
        "driver": driver,
        "bus": "bus",
        "interval_s": 1.0,
        "settings": SETTINGS[driver],
    }
    return msgspec.convert(keys | more, Device)


def marks_of(reading: Reading) -> set[str]:
    return set(reading.quality.split(";")) - {""}


class Bench:
    """A judge, and the time that passes between what it judges."""

    def __init__(self, one: Device) -> None:
        self.judge = Judge(one)
        self.now_ms = 5_000_000
        self.judge.judge(Reading({}), self.now_ms)
        self.now_ms += 3_600_000  # warm by now

    def after(self, passed_s: float, *, returned: bool = False, **metrics: float) -> set[str]:
        self.now_ms += round(1000 * passed_s)
        return marks_of(self.judge.judge(Reading(metrics), self.now_ms, returned=returned))


# --------------------------------------------------------------------------------------------------- what it promises

names = st.one_of(
    st.sampled_from(
        ["pm2_5", "temperature", "noise", "lit", "occupied", "free_car", "level", "energy"]
    ),
    st.sampled_from(["x-plantower-n0_3", "battery_voltage", "epoch", "seq", "quality", ""]),
    st.text(max_size=8),
)
values = st.one_of(
    st.floats(), st.integers(), st.booleans(), st.integers(-300, 300), st.just(10**400)
)
marks = st.one_of(
    st.builds(
        lambda grade, reason, metric: f"{grade}:{reason}{metric}",
        st.sampled_from(["bad", "uncertain"]),
        st.sampled_from(REASONS),
        st.sampled_from(["", "(pm2_5)", "(temperature)", "(x-acme-fan)"]),
    ),
    st.text(max_size=12),
)
readings = st.builds(
    Reading, st.dictionaries(names, values, max_size=6), st.lists(marks, max_size=4).map(";".join)
)


@given(
    st.sampled_from(sorted(DRIVERS)),
    st.lists(st.tuples(readings, st.integers(0, 10**8), st.booleans()), max_size=6),
)
def test_whatever_a_driver_says_the_exchange_takes_what_is_left(
    domain: str, said: list[tuple[Reading, int, bool]]
) -> None:
    judge = Judge(device(domain))
    topic = parse_topic(f"city/v1/tw-tpe/street/gw-1/{domain}/one/readings")
    now_ms = 0
    for seq, (reading, passed_ms, returned) in enumerate(said):
        now_ms += passed_ms
        try:
            judged = judge.judge(reading, now_ms, returned=returned)
        except msgspec.ValidationError:
            continue  # a driver's reading that is none: the bus says so
        assert_taken(topic, judged, seq)
        again = judge.judge(judged, now_ms)
        assert again == judged, "judging what is judged changes nothing"


class Forgetful(dict[Any, Any]):
    """Holds nothing, whatever is put into it."""

    def __setitem__(self, key: object, value: object) -> None:
        """Forget it."""


doubtful = st.one_of(st.floats(-50, 1200), st.integers(-50, 1200), values)
alike = st.one_of(
    *(
        st.fixed_dictionaries(dict.fromkeys(metrics, doubtful))
        for metrics in (
            ["pm2_5", "temperature"],
            ["temperature", "x-plantower-n0_3"],
            ["noise", "humidity", "epoch"],
        )
    )
)


@given(
    st.lists(
        st.tuples(alike, st.sampled_from(["", "", "uncertain:fault"]), st.integers(0, 10**7)),
        max_size=12,
    )
)
def test_a_reading_judged_as_a_whole_is_judged_as_each_of_its_values(
    said: list[tuple[dict[str, float], str, int]],
) -> None:
    limits = {"temperature": {"min": -20.0, "max": 40.0, "stuck_after_s": 60.0}}
    whole, each = Judge(device(limits=limits)), Judge(device(limits=limits))
    each._shapes = Forgetful()  # so that no reading is known as a whole
    now_ms = 0
    for metrics, quality, passed_ms in said:
        now_ms += passed_ms
        reading = Reading(dict(metrics), quality)
        assert repr(whole.judge(reading, now_ms)) == repr(each.judge(reading, now_ms))


def assert_taken(topic: Topic, judged: Reading, seq: int) -> None:
    sample = Sample(1_790_000_000_000, 1_789_000_000_000, seq, judged.metrics, judged.quality)
    pack = decode_pack(encode_pack(topic, [sample]), topic)
    assert pack.refusals == []
    assert pack.samples == [sample]


@given(st.lists(marks, max_size=8))
def test_marks_are_merged_to_one_quality_that_is_merged_already(several: list[str]) -> None:
    quality = merged(several)
    found = quality.split(";") if quality else []
    assert len(found) == len(set(found))
    assert merged(found) == quality
    assert bool(found) == bool(several), "no mark is lost altogether"
    assert merged(reversed(several)).count(";") == quality.count(";")


@pytest.mark.parametrize(
    ("several", "quality"),
    [
        (["bad:range(pm10)", "bad:range(pm10)"], "bad:range(pm10)"),
        (["uncertain:range(pm10)", "bad:range(pm10)"], "bad:range(pm10)"),
        (["bad:range(pm10)", "uncertain:range(pm10)"], "bad:range(pm10)"),
        (["uncertain:warmup(pm10)", "uncertain:warmup"], "uncertain:warmup"),
        (["bad:warmup(pm10)", "uncertain:warmup"], "bad:warmup(pm10);uncertain:warmup"),
        (["uncertain:warmup(pm10)", "bad:warmup"], "bad:warmup"),
        (["bad:fault", "uncertain:rate(pm10)"], "bad:fault;uncertain:rate(pm10)"),
        (["warming up"], "uncertain:fault"),
    ],
)
def test_of_two_marks_for_one_reason_the_worse_and_the_wider_holds(
    several: list[str], quality: str
) -> None:
    assert merged(several) == quality


# ------------------------------------------------------------------------------------------------------------ fitting


def test_a_metric_that_the_domain_lacks_is_the_vendors_and_so_is_its_mark() -> None:
    one = device("weather", "plantower_pms")
    reading = fitted(Reading({"pm2_5": 7}, "uncertain:saturated(pm2_5)"), one)
    assert reading == Reading({"x-plantower-pm2_5": 7.0}, "uncertain:saturated(x-plantower-pm2_5)")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lit", 1),
        ("level", True),
        ("level", math.nan),
        ("level", 2**53),
        ("level", -math.inf),
        ("x-intesis-n", math.inf),
    ],
)
def test_what_the_exchange_has_no_form_for_is_left_out_and_marked(name: str, value: float) -> None:
    reading = fitted(Reading({name: value, "power": 40}), device("streetlight"))
    assert reading == Reading({"power": 40}, f"bad:fault({name})")


def test_a_count_is_whole() -> None:
    reading = fitted(Reading({"free_car": 3.5, "capacity_car": 5.0}), device("parking"))
    assert reading == Reading({"capacity_car": 5.0}, "bad:fault(free_car)")


def test_a_name_that_is_none_is_left_out() -> None:
    assert fitted(Reading({"Fan Speed": 1}), device()) == Reading({}, "uncertain:fault")


# -------------------------------------------------------------------------------------------------------------- range


def test_outside_the_dictionary_is_bad_and_outside_the_devices_own_limits_uncertain() -> None:
    bench = Bench(device("weather", limits={"temperature": {"min": -5, "max": 45}}))
    assert bench.after(60, temperature=45) == set()
    assert bench.after(60, temperature=45.1) == {"uncertain:range(temperature)"}
    assert bench.after(60, temperature=70) == {"uncertain:range(temperature)"}
    assert bench.after(60, temperature=70.1) == {"bad:range(temperature)"}
    assert bench.after(60, temperature=-5.1) == {"uncertain:range(temperature)"}


def test_a_vendors_metric_has_the_limits_that_it_is_given() -> None:
    bench = Bench(device(limits={"x-plantower-n0_3": {"max": 30_000}}))
    many = {"x-plantower-n0_3": 30_001.0, "x-plantower-n10": 1e9}
    judged = bench.judge.judge(Reading(dict(many)), bench.now_ms)
    assert marks_of(judged) == {"uncertain:range(x-plantower-n0_3)"}


@pytest.mark.parametrize(
    ("limits", "key", "allowed"),
    [
        ({"pm25": {"max": 3}}, "limits.pm25", "pm2_5"),
        ({"pm2_5": {"max": 1001}}, "limits.pm2_5.max", "from 0 to 1000"),
        ({"pm2_5": {"min": 30, "max": 20}}, "limits.pm2_5.max", "from 30 to 1000"),
        ({"pm2_5": {"min": -1}}, "limits.pm2_5.min", "from 0 to 1000"),
    ],
)
def test_limits_that_are_none_are_named(
    limits: dict[str, dict[str, float]], key: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_limits(device(limits=limits))
    assert caught.value.key == key
    assert allowed in caught.value.allowed


def test_a_boolean_has_no_limits() -> None:
    with pytest.raises(ConfigError, match=r"limits\.lit"):
        check_limits(device("streetlight", limits={"lit": {"max": 1}}))
    check_limits(device("streetlight", limits={"level": {"max": 90}, "x-acme-n": {"min": 3}}))


# --------------------------------------------------------------------------------------------------------------- rate


def test_a_value_that_changes_faster_than_plausible_is_doubted() -> None:
    bench = Bench(device("weather"))  # 2 degrees a second at most
    bench.after(1, temperature=20)
    assert bench.after(1, temperature=22) == set()
    assert bench.after(1, temperature=25) == {"uncertain:rate(temperature)"}
    assert bench.after(1, temperature=25) == set()
    assert bench.after(10, temperature=5) == set(), "fifteen degrees in ten seconds"
    assert bench.after(0, temperature=50) == set(), "no time, no rate"


def test_a_step_of_the_sensor_is_no_rate() -> None:
    one = device("weather")
    step = min(
        abs(point.scale * point.factor)
        for point in one.package.profile.points
        if point.metric == "temperature"
    )
    bench = Bench(one)
    bench.after(1, temperature=20)
    assert bench.after(0.001, temperature=20 + step) == set()
    assert bench.after(0.001, temperature=20 + 10 * step) == {"uncertain:rate(temperature)"}


def test_a_value_out_of_range_is_no_measure_for_the_next() -> None:
    bench = Bench(device("weather"))
    bench.after(1, temperature=20)
    assert bench.after(1, temperature=6553.5) == {"bad:range(temperature)"}
    assert bench.after(1, temperature=20.5) == set()


# -------------------------------------------------------------------------------------------------------------- stuck


def test_a_value_that_never_changes_is_doubted() -> None:
    bench = Bench(device("weather", limits={"humidity": {"stuck_after_s": 600}}))
    assert bench.after(1, humidity=50.0) == set()
    for _ in range(59):
        assert bench.after(10, humidity=50.0 + 1e-9) == set()
    assert bench.after(10, humidity=50.0) == {"uncertain:stuck(humidity)"}
    assert bench.after(10, humidity=51.0) == set()
    assert bench.after(599, humidity=51.0) == set()
    assert bench.after(2, humidity=51.0) == {"uncertain:stuck(humidity)"}


def test_a_device_that_was_away_was_not_stuck_meanwhile() -> None:
    bench = Bench(device("weather", limits={"humidity": {"stuck_after_s": 600}}))
    bench.after(1, humidity=50.0)
    assert bench.after(3600, returned=True, humidity=50.0) == set()
    assert bench.after(599, humidity=50.0) == set()
    assert bench.after(1, humidity=50.0) == {"uncertain:stuck(humidity)"}


def test_only_what_physics_moves_is_doubted_unasked() -> None:
    for domain, metrics in STUCK_AFTER_S.items():
        assert metrics.keys() <= dictionary()[domain].metrics.keys()
    bench = Bench(device("air"))
    still: dict[str, Any] = {"temperature": 20.0, "humidity": 100.0, "pm2_5": 3, "no2": 0}
    bench.after(1, **still)
    assert bench.after(DAY_S - 1, **still) == set()
    assert bench.after(1, **still) == {"uncertain:stuck(temperature)", "uncertain:stuck(pm2_5)"}
    off = Bench(device("air", limits={"pm2_5": {"stuck_after_s": 0}}))
    off.after(1, pm2_5=3)
    assert off.after(10 * DAY_S, pm2_5=3) == set()


# ------------------------------------------------------------------------------------------------------------ warm-up


def test_a_sensor_is_cold_after_its_first_answer_and_after_it_was_away() -> None:
    one = device(interval_s=2.0)
    profile = one.package.profile
    warm_up_ms = round(1000 * profile.timing.warm_up_s)
    away_ms = round(1000 * max(SILENT_INTERVALS * one.interval_s, profile.transport.timeout_s))
    assert warm_up_ms > 0
    judge = Judge(one)

    def quality(at_ms: int, *, returned: bool = False) -> str:
        return judge.judge(Reading({"pm2_5": 5}), at_ms, returned=returned).quality

    now_ms = 77_000
    assert quality(now_ms) == "uncertain:warmup"
    assert quality(now_ms + warm_up_ms - 1) == "uncertain:warmup"
    now_ms += warm_up_ms
    assert quality(now_ms) == ""
    assert quality(now_ms + away_ms, returned=True) == "", "one poll that failed is no reboot"
    now_ms += 2 * away_ms + 1
    assert quality(now_ms) == "", "late is not away"
    now_ms += away_ms + 1
    assert quality(now_ms, returned=True) == "uncertain:warmup"
    assert quality(now_ms + warm_up_ms) == ""


def test_a_drivers_own_mark_is_not_said_twice() -> None:
    judged = Judge(device()).judge(
        Reading({"pm2_5": 1200}, "uncertain:warmup;uncertain:saturated(pm2_5)"), 1000
    )
    assert judged.quality == "uncertain:warmup;uncertain:saturated(pm2_5);bad:range(pm2_5)"


def test_what_is_as_it_should_be_is_handed_on() -> None:
    bench = Bench(device("streetlight"))
    reading = Reading({"lit": True, "level": 70, "power": 61.5, "x-intesis-n": 3.0})
    assert bench.judge.judge(reading, bench.now_ms) == reading
