"""What metrics come to in an hour and a day, without what is marked bad."""

from __future__ import annotations

import random
from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.dictionary import dictionary
from ingest.rollups import statistics
from ingest.rollups.spans import Span, bad_metrics, latest, span
from ingest.stores import DeviceRows, FieldValue

HOUR_MS = 3_600_000


def rows(**columns: list[float | int | str | None]) -> DeviceRows:
    length = len(next(iter(columns.values())))
    return DeviceRows("d", [n * 60_000_000_000 for n in range(length)], columns)


@pytest.mark.parametrize(
    ("quality", "bad"),
    [
        ("", set()),
        ("uncertain:warmup", set()),
        ("bad:fault", {""}),
        ("bad:stuck(power)", {"power"}),
        ("uncertain:clock;bad:range(power);bad:rate(level)", {"power", "level"}),
        ("bad:fault(power);bad:comm", {"power", ""}),
    ],
)
def test_a_mark_says_what_is_bad(quality: str, bad: set[str]) -> None:
    assert bad_metrics(quality) == bad


def test_what_is_bad_is_left_out() -> None:
    found = span(
        0,
        HOUR_MS * 1_000_000,
        rows(
            power=[1, 2.5, None, 4.0, 5.0],
            level=[None, 1.0, 2.0, 3.0, 4.0],
            quality=["bad:stuck(power)", None, "uncertain:clock", "bad:fault", "bad:range(level)"],
        ),
        {"power": (-5, 9.0)},
        ["power", "level", "voltage"],
    )
    assert found.tracks == {
        "power": [(60_000, 2.5), (240_000, 5.0)],
        "level": [(60_000, 1.0), (120_000, 2.0)],
    }
    assert found.before == {"power": (-5, 9.0)}


def test_the_latest_row_tells_what_was_good_in_it() -> None:
    found = latest(rows(power=[2.0], level=[7.0], quality=["bad:stuck(level)"]), ["power", "level"])
    assert found == {"power": (0, 2.0)}


def test_every_cumulative_metric_is_one_of_the_dictionary() -> None:
    metrics = {
        name: one for domain in dictionary().values() for name, one in domain.metrics.items()
    }
    cumulative = {name for name, metric in metrics.items() if "umulative" in metric.en}
    assert cumulative - {"lamp_hours"} == statistics.CUMULATIVE - {"lamp_hours"}
    assert "lamp_hours" in metrics
    for domain, private in statistics.PRIVATE.items():
        assert private <= dictionary()[domain].metrics.keys()


def test_of_a_bay_nothing_is_said_that_would_be_its_diary() -> None:
    within = Span(
        0,
        HOUR_MS,
        {"occupied": [(1, 1.0)], "distance": [(1, 0.4)], "battery_voltage": [(1, 3.0)]},
        {},
    )
    fields = statistics.hour("parking", within, 900)
    assert fields == {f"battery_voltage_{kind}": 3.0 for kind in ("min", "max", "mean")} | {
        "battery_voltage_count": 1
    }


values = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50)


@given(st.lists(values, min_size=1, max_size=24))
def test_a_day_says_of_its_hours_what_they_say_of_their_values(hours: list[list[float]]) -> None:
    made: list[dict[str, FieldValue]] = []
    for number, each in enumerate(hours):
        track = [(number * HOUR_MS + n, value) for n, value in enumerate(each)]
        within = Span(number * HOUR_MS, (number + 1) * HOUR_MS, {"energy": track}, {})
        made.append(statistics.hour("streetlight", within, 900) | {"rows": 1, "basis": 1})
    every = [value for each in hours for value in each]
    day = statistics.day("streetlight", made)
    assert day["energy_count"] == len(every)
    assert (day["energy_min"], day["energy_max"]) == (min(every), max(every))
    assert day["energy_last"] == hours[-1][-1]
    assert day["energy_mean"] == pytest.approx(fsum(every) / len(every), rel=1e-9, abs=1e-3)
    shuffled = random.Random(1).sample(made, len(made))
    again = statistics.day("streetlight", shuffled)
    assert again["energy_mean"] == day["energy_mean"], "the order of hours changes no sum"
    assert set(day) <= set(statistics.names(["energy"]))


def test_seconds_are_counted_while_a_value_is_known() -> None:
    track = [(600_000, 1.0), (700_000, 0.0), (3_000_000, 1.0)]
    within = Span(0, HOUR_MS, {"lit": track}, {"lit": (-100_000, 1.0)})
    assert statistics.hour("streetlight", within, 900)["lit_s"] == 600 + 100 + 600
    assert statistics.hour("streetlight", within, 300)["lit_s"] == 200 + 100 + 300
