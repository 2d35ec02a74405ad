"""Report by exception: what is withheld can be told from what is reported, to within the deadband, at every time."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_drivers.kit.driver import Reading, Value
from edge_agent.config import Device
from edge_agent.report_by_exception import (
    WITHHELD_FILE,
    Reporter,
    ReportRule,
    ReportSettings,
    WithheldLog,
    check_report,
    paces,
)
from exchange.errors import ConfigError

SETTINGS: dict[str, dict[str, object]] = {
    "plantower_pms": {},
    "intesis_dali": {"short_address": 1},
    "bthome": {"address": "A4:C1:38:00:00:01"},
}
INTERVAL_S = 10.0


def device(driver: str = "intesis_dali", **more: object) -> Device:
    keys: dict[str, object] = {
        "id": "one",
        "domain": "streetlight" if driver == "intesis_dali" else "air",
        "driver": driver,
        "bus": "bus",
        "interval_s": INTERVAL_S,
        "settings": SETTINGS[driver],
    }
    return msgspec.convert(keys | more, Device)


class Bench:
    """A reporter, and the time that passes between the readings it gets."""

    def __init__(self, one: Device) -> None:
        self.reporter = Reporter(one)
        self.now_ms = 5_000_000

    def after(
        self, passed_s: float = INTERVAL_S, *, quality: str = "", returned: bool = False, **m: Value
    ) -> bool:
        self.now_ms += round(1000 * passed_s)
        reading = Reading(dict(m), quality)
        reported = self.reporter.report(reading, self.now_ms, returned=returned)
        assert reported in (None, reading), "a reading goes whole or not at all"
        return reported is not None


# ---------------------------------------------------------------------------------------------- what it promises


class Said(NamedTuple):
    """One reading of a series."""

    at_ms: int
    reading: Reading
    reported: bool


numbers = st.one_of(st.floats(-1000, 1000), st.integers(-20, 20), st.floats(100, 101), st.just(0))
metrics = st.fixed_dictionaries(
    {}, optional={"level": numbers, "power": numbers, "energy": numbers, "lit": st.booleans()}
)
rules = st.builds(
    ReportRule,
    deadband=st.sampled_from([0.0, 0.5, 5.0, math.inf]),
    deadband_percent=st.sampled_from([0.0, 1.0, 20.0]),
    heartbeat_s=st.sampled_from([1.0, 10.0, 60.0, 3600.0]),
)
series = st.lists(
    st.tuples(
        metrics,
        st.sampled_from(["", "", "uncertain:warmup", "bad:range(level)"]),
        st.sampled_from([0.0, 1.0, INTERVAL_S, INTERVAL_S, INTERVAL_S, 100.0]),
        st.booleans(),
    ),
    max_size=40,
)
drivers = st.sampled_from(["intesis_dali", "bthome"])
keys = st.sampled_from(["level", "power", "energy", "lit", "*"])


@given(drivers, st.dictionaries(keys, rules, max_size=4), series)
def test_what_is_reported_tells_the_rest_to_within_the_deadband(
    driver: str,
    report: dict[str, ReportRule],
    given_series: list[tuple[dict[str, Value], str, float, bool]],
) -> None:
    one = device(driver, domain="streetlight", report=msgspec.to_builtins(report))
    reporter = Reporter(one)
    said: list[Said] = []
    now_ms = 0
    for values, quality, passed_s, returned in given_series:
        now_ms += round(1000 * passed_s)
        reading = Reading(values, quality)
        reported = reporter.report(reading, now_ms, returned=returned)
        said.append(Said(now_ms, reading, reported is not None))
        assert reported is not None or not returned, "a device that is back is heard at once"
    assert reporter.taken == len(said)
    assert reporter.reported == sum(one.reported for one in said)
    assert reporter.taken == reporter.reported + reporter.withheld
    assert_told(said, one)


def assert_told(said: list[Said], one: Device) -> None:
    """Check that holding each reported value gives every reading back."""
    others = one.report.get("*", ReportRule())
    held: dict[str, tuple[Value, int]] = {}
    quality = ""
    for at_ms, reading, reported in said:
        if reported:
            if one.driver != "bthome":
                held.clear()
            held |= {name: (value, at_ms) for name, value in reading.metrics.items()}
            quality = reading.quality
        assert reading.quality == quality
        for name, value in reading.metrics.items():
            last, last_ms = held[name]
            rule = one.report.get(name, others)
            if name in one.report or "*" in one.report:
                assert reported or at_ms - last_ms < 1000 * rule.heartbeat_s
            if isinstance(value, bool):
                assert value is last
            else:
                band = max(rule.deadband, rule.deadband_percent / 100 * abs(last))
                assert abs(value - last) <= band
        if one.driver != "bthome":
            assert reading.metrics.keys() == held.keys(), "a metric that went is told, too"


@given(series)
def test_without_rules_everything_is_reported(
    given_series: list[tuple[dict[str, Value], str, float, bool]],
) -> None:
    reporter = Reporter(device())
    for index, (values, quality, _, _) in enumerate(given_series):
        reading = Reading(values, quality)
        assert reporter.report(reading, index) is reading
    assert (reporter.taken, reporter.withheld) == (len(given_series), 0)


# ------------------------------------------------------------------------------------------------- one by one


def test_a_deadband_is_measured_from_what_was_reported_last() -> None:
    bench = Bench(device(report={"power": {"deadband": 2}}))
    assert bench.after(power=60)
    assert not bench.after(power=61)
    assert not bench.after(power=62)
    assert bench.after(power=62.5), "what creeps is seen once it has crept far enough"
    assert not bench.after(power=60.5)
    assert bench.after(power=60.4)


def test_a_deadband_in_percent() -> None:
    bench = Bench(device(report={"power": {"deadband_percent": 10}, "level": {"deadband": 1}}))
    assert bench.after(power=100, level=50)
    assert not bench.after(power=110, level=49)
    assert bench.after(power=89, level=50)
    assert not bench.after(power=97.8, level=50)


def test_a_metric_without_a_rule_is_reported_when_it_changes() -> None:
    bench = Bench(device(report={"power": {"deadband": 2, "heartbeat_s": 60}}))
    assert bench.after(power=60, level=70, lit=True)
    assert not bench.after(power=60, level=70, lit=True)
    assert bench.after(power=60, level=71, lit=True)
    assert bench.after(power=60, level=71, lit=False)
    assert not bench.after(power=60, level=71, lit=False)


def test_the_heartbeat_comes_at_its_time_though_polls_are_never_exact() -> None:
    bench = Bench(device(report={"*": {"deadband": math.inf, "heartbeat_s": 60}}))
    assert bench.after(energy=1)
    gaps_s = (10.2, 9.9, 9.7, 10.3, 9.8)
    assert [bench.after(gap_s, energy=2) for gap_s in gaps_s] == [False] * 5
    assert bench.after(9.9, energy=3), "59.8 s: the next would be 10 s late"


def test_a_counter_that_rests_is_not_forgotten() -> None:
    bench = Bench(device(report={"energy": {"deadband": 100, "heartbeat_s": 300}}))
    assert bench.after(energy=1000)
    assert not bench.after(energy=1040)  # and then the lamp goes out
    reported = [bench.after(energy=1040) for _ in range(60)]
    assert reported.count(True) == 2


def test_another_quality_is_reported_at_once_and_its_end_too() -> None:
    bench = Bench(device(report={"*": {"deadband": math.inf, "heartbeat_s": 3600}}))
    assert bench.after(level=5)
    assert bench.after(level=5, quality="uncertain:warmup")
    assert not bench.after(level=5, quality="uncertain:warmup")
    assert bench.after(level=5)
    assert not bench.after(level=5)


def test_a_device_that_is_back_is_reported_at_once() -> None:
    bench = Bench(device(report={"*": {"deadband": 1, "heartbeat_s": 3600}}))
    assert bench.after(level=5)
    assert not bench.after(level=5)
    assert bench.after(level=5, returned=True)


def test_a_metric_that_goes_and_comes_is_reported_at_once() -> None:
    bench = Bench(device(report={"*": {"deadband": 100, "heartbeat_s": 3600}}))
    assert bench.after(level=5, power=60)
    assert not bench.after(level=5, power=60)
    assert bench.after(level=5), "a sample without it says that there is none"
    assert not bench.after(level=5)
    assert bench.after(level=5, power=60)


def test_adverts_that_take_turns_are_withheld_each_by_its_own() -> None:
    bench = Bench(device("bthome", report={"*": {"deadband": 1, "heartbeat_s": 3600}}))
    assert bench.after(temperature=20)
    assert bench.after(humidity=50)
    assert not bench.after(temperature=20.5)
    assert not bench.after(humidity=50.5)
    assert bench.after(humidity=52, temperature=20)


# ------------------------------------------------------------------------------------------------------- paces


def test_a_state_says_how_long_nothing_may_come() -> None:
    assert paces(device(), ["level", "lit"]) == (INTERVAL_S, {"level": 10.0, "lit": 10.0})
    ruled = device(
        report={
            "power": {"heartbeat_s": 300},
            "level": {"heartbeat_s": 60},
            "lit": {"heartbeat_s": 1},
        }
    )
    assert paces(ruled, ["power", "level"]) == (60.0, {"power": 300.0, "level": 60.0})
    assert paces(ruled, ["power", "lit"]) == (10.0, {"power": 300.0, "lit": 10.0})
    assert paces(ruled, ["power", "energy"]).metrics["energy"] == 10.0
    sensor = device(
        "bthome", report={"temperature": {"heartbeat_s": 300}, "*": {"heartbeat_s": 60}}
    )
    assert paces(sensor, []) == (300.0, {})
    assert paces(sensor, ["humidity"]) == (300.0, {"humidity": 60.0})


@given(
    st.dictionaries(keys, rules, max_size=4),
    st.lists(st.fixed_dictionaries({"level": numbers, "power": numbers, "lit": st.booleans()})),
)
def test_no_silence_is_longer_than_the_state_says(
    report: dict[str, ReportRule], values: list[dict[str, Value]]
) -> None:
    one = device(report=msgspec.to_builtins(report))
    said_s = paces(one, ["level", "power", "lit"]).interval_s
    reporter = Reporter(one)
    last_ms = 0
    for index, metrics in enumerate(values):
        now_ms = round(1000 * INTERVAL_S * index)
        if reporter.report(Reading(metrics), now_ms) is not None:
            last_ms = now_ms
        assert now_ms - last_ms < 1000 * (said_s + INTERVAL_S / 2)


# ------------------------------------------------------------------------------------------------------- audit


def test_an_audit_has_every_reading_that_was_withheld(tmp_path: Path) -> None:
    audit = WithheldLog(tmp_path, ReportSettings(audit=True), lambda: 1_790_000_000_000)
    one = device(report={"*": {"deadband": 2, "heartbeat_s": 60}})
    reporter = Reporter(one, audit)
    levels = [50, 51, 50, 60, 60]
    reported = [
        reporter.report(Reading({"level": level}, "uncertain:rate(level)"), 10_000 * index)
        for index, level in enumerate(levels)
    ]
    lines = [json.loads(line) for line in audit.path.read_bytes().splitlines()]
    assert audit.path == tmp_path / WITHHELD_FILE
    assert [line["reading"] for line in lines] == [2, 3, 5]
    assert [reading is None for reading in reported] == [False, True, True, False, True]
    assert [line["reason"] for line in lines] == ["deadband", "unchanged", "unchanged"]
    assert lines[0] == {
        "device": "one",
        "reading": 2,
        "boot_ms": 10_000,
        "reason": "deadband",
        "metrics": {"level": 51},
        "quality": "uncertain:rate(level)",
        "time_ms": 1_790_000_000_000,
    }


def test_an_audits_files_are_bounded_and_the_newest_are_kept(tmp_path: Path) -> None:
    settings = ReportSettings(audit=True, audit_mb=0.01)
    audit = WithheldLog(tmp_path, settings, lambda: 1_790_000_000_000)
    reporter = Reporter(device(report={"*": {"heartbeat_s": 604800}}), audit)
    for index in range(500):
        reporter.report(Reading({"level": 50}), index)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [WITHHELD_FILE, f"{WITHHELD_FILE}.1"]
    assert all(file.stat().st_size <= 5000 for file in files)
    kept = [
        json.loads(line)["reading"]
        for file in reversed(files)
        for line in file.read_bytes().splitlines()
    ]
    assert kept == list(range(501 - len(kept), 501))
    assert len(kept) > 40


def test_a_disk_that_takes_nothing_is_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit = WithheldLog(tmp_path / "gone", ReportSettings(audit=True), lambda: 0)
    reporter = Reporter(device(report={"*": {}}), audit)
    for _ in range(3):
        reporter.report(Reading({"level": 50}), 0)
    assert audit.lost == reporter.withheld == 2
    assert len(caplog.records) == 1


def test_half_a_line_is_taken_back(tmp_path: Path) -> None:
    audit = WithheldLog(tmp_path, ReportSettings(audit=True), lambda: 0)
    reporter = Reporter(device(report={"*": {}}), audit)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))  # a line and a half
        for _ in range(3):
            reporter.report(Reading({"level": 50}), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    reporter.report(Reading({"level": 50}), 0)
    lines = [json.loads(line)["reading"] for line in audit.path.read_bytes().splitlines()]
    assert lines == [2, 4]
    assert audit.lost == 1


# --------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize("name", ["pm25", "Level", "epoch"])
def test_a_rule_for_no_metric_is_named(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_report(device(report={name: {}}))
    assert caught.value.key == f"report.{name}"
    assert "level" in caught.value.allowed


@pytest.mark.parametrize(
    "rule", [{"deadband": -1}, {"deadband": math.nan}, {"heartbeat_s": 0}, {"deadbnad": 1}]
)
def test_a_rule_that_is_none_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        device(report={"level": rule})


def test_rules_that_are_good() -> None:
    check_report(device(report={"level": {}, "x-acme-n": {"deadband": math.inf}, "*": {}}))
