"""What metrics come to in an hour and a day, without what is marked bad."""

from __future__ import annotations

import random
from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.dictionary import dictionary
from ingest.days import HOUR_MS
from ingest.rollups import statistics
from ingest.rollups.spans import GoodRows, Span, bad_metrics
from ingest.stores import DeviceRows, FieldValue


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


MINUTE_NS = 60_000_000_000


def test_what_is_bad_is_left_out() -> None:
    good = GoodRows(
        rows(
            power=[9.0, 1, 2.5, None, 4.0, 5.0],
            level=[None, None, 1.0, 2.0, 3.0, 4.0],
            energy=[1, 2, 3, 4, 5, 6],
            quality=[
                "bad:comm(energy)",
                "bad:stuck(power)",
                None,
                "uncertain:clock",
                "bad:fault",
                "bad:range(level)",
            ],
        ),
        ["power", "level", "voltage", "energy"],
    )
    found = good.span(MINUTE_NS, HOUR_MS * 1_000_000)
    assert found.tracks == {
        "power": [(120_000, 2.5), (300_000, 5.0)],
        "level": [(120_000, 1.0), (180_000, 2.0)],
        "energy": [(60_000, 2.0), (120_000, 3.0), (180_000, 4.0), (300_000, 6.0)],
    }
    assert found.before == {"power": (0, 9.0)}
    assert good.rows(MINUTE_NS, 3 * MINUTE_NS) == 2
    assert good.marks(MINUTE_NS, 3 * MINUTE_NS) == ["bad:stuck(power)", None]


def test_whole_columns_are_cut_as_they_are() -> None:
    good = GoodRows(rows(power=[1, 2.5, 3, 4]), ["power"])
    found = good.span(2 * MINUTE_NS, 3 * MINUTE_NS)
    assert (found.tracks, found.before) == ({"power": [(120_000, 3.0)]}, {"power": (60_000, 2.5)})
    assert good.marks(0, HOUR_MS) == ()
    assert good.span(4 * MINUTE_NS, 5 * MINUTE_NS).tracks == {}
    assert good.span(70 * MINUTE_NS, 80 * MINUTE_NS).before == {}, "it is too old"


def test_every_cumulative_metric_is_one_of_the_dictionary() -> None:
    metrics = {
        name: one for domain in dictionary().values() for name, one in domain.metrics.items()
    }
    cumulative = {name for name, metric in metrics.items() if "umulative" in metric.en}
    assert cumulative - {"lamp_hours"} == statistics.CUMULATIVE - {"lamp_hours"}
    assert "lamp_hours" in metrics


values = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50)


@given(st.lists(values, min_size=1, max_size=24))
def test_a_day_says_of_its_hours_what_they_say_of_their_values(hours: list[list[float]]) -> None:
    made: list[dict[str, FieldValue]] = []
    for number, each in enumerate(hours):
        track = [(number * HOUR_MS + n, value) for n, value in enumerate(each)]
        tracks = {"power": track, "energy": track}
        within = Span(number * HOUR_MS, (number + 1) * HOUR_MS, tracks, {})
        made.append(statistics.hour("streetlight", within, 900) | {"rows": 1, "basis": 1})
    every = [value for each in hours for value in each]
    day = statistics.day("streetlight", columns(made), ["level", "power", "energy"])
    assert day["power_count"] == day["energy_count"] == len(every)
    assert (day["power_min"], day["power_max"]) == (min(every), max(every))
    assert day["energy_last"] == hours[-1][-1]
    assert day["power_mean"] == pytest.approx(fsum(every) / len(every), rel=1e-9, abs=1e-3)
    shuffled = random.Random(1).sample(made, len(made))
    again = statistics.day("streetlight", columns(shuffled), ["power"])
    assert again["power_mean"] == day["power_mean"], "the order of hours changes no sum"
    assert set(day) <= set(statistics.names("streetlight", ["power", "energy"]))
    assert statistics.names("streetlight", ["lit"]) == ["lit_count", "lit_last", "lit_s"]


def columns(made: list[dict[str, FieldValue]]) -> dict[str, list[FieldValue | None]]:
    """Return rows column by column; an hour without values is among them."""
    return {name: [None, *(row[name] for row in made)] for name in made[0]}


def test_seconds_are_counted_while_a_value_is_known() -> None:
    track = [(600_000, 1.0), (700_000, 0.0), (3_000_000, 1.0)]
    within = Span(0, HOUR_MS, {"lit": track}, {"lit": (-100_000, 1.0)})
    assert statistics.hour("streetlight", within, 900)["lit_s"] == 600 + 100 + 600
    assert statistics.hour("streetlight", within, 300)["lit_s"] == 200 + 100 + 300


def test_every_counter_of_the_dictionary_is_known_to_only_grow() -> None:
    assert {
        name
        for domain in dictionary().values()
        for name, metric in domain.metrics.items()
        if "cumulative" in metric.en or metric.unit == "Wh" or name.endswith("_hours")
    } == statistics.CUMULATIVE
