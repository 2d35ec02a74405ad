"""The nation that panels are measured on has every row that they read, in every county, as dense as it is said."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import panel_rows
from benchmarks.country import COUNTIES
from benchmarks.panel_rows import Week, sites
from dashboards.alerts import rules
from dashboards.influxql import Select
from dashboards.pages import PAGES
from dashboards.panels import Source
from exchange.towns import read_town

NOW_MS = 1_795_420_000_000
GASES = {"aqi_o3", "aqi_co", "aqi_so2", "aqi_no2"}
"""Which cheap air boxes do not measure."""
TAGS = {"county", "site", "device", "domain"}
_NAME = re.compile(r'"(\w+)"')
_FIELD = re.compile(r"(?:^|,)(\w+)=")


@pytest.fixture(scope="module")
def written() -> dict[tuple[Source, str], set[str]]:
    """The fields that are there, by measurement."""
    found: dict[tuple[Source, str], set[str]] = {}
    with pytest.MonkeyPatch.context() as few:
        few.setattr(panel_rows, "BLOCK", 3)
        for chunk in Week(300, days=1, now_ms=NOW_MS).chunks():
            for line in chunk.lines.split("\n"):
                key, _, rest = line.partition(" ")
                fields, _, time_ms = rest.rpartition(" ")
                assert int(time_ms) <= NOW_MS
                names = found.setdefault((chunk.source, key.partition(",")[0]), set())
                names |= set(_FIELD.findall(fields))
    return found


def innermost(select: Select) -> Select:
    return innermost(select.source) if isinstance(select.source, Select) else select


def asked() -> list[tuple[str, Source, Select]]:
    panels = [
        (f"{page.name}.{panel.name}", panel.source, select)
        for page in PAGES
        for band in page.bands
        for panel in band.panels
        for select in panel.asks
        if page.name != "device"  # a lamp has its own metrics only
    ]
    town = read_town(Path(__file__).parents[2] / "towns" / "tw-tpe.toml")
    return [*panels, *((rule.name, rule.source, rule.asks) for rule in rules(town))]


def test_every_field_that_a_panel_reads_is_there(
    written: dict[tuple[Source, str], set[str]],
) -> None:
    for name, source, select in asked():
        inner = innermost(select)
        assert isinstance(inner.source, str)
        read = {one for column in inner.columns for one in _NAME.findall(column.expression.text)}
        assert read - TAGS - GASES <= written[source, inner.source], name


def test_devices_are_where_people_are() -> None:
    found = sites(160_000)
    lamps = Counter[str]()
    for site in found:
        lamps[site.county] += len(site.devices["streetlight"])
        assert len(site.devices["streetlight"]) <= panel_rows.LAMPS_OF_A_SITE
    assert lamps.keys() == COUNTIES.keys()
    assert lamps.total() == pytest.approx(160_000, rel=0.001)
    assert max(lamps, key=lambda county: lamps[county]) == found[0].county == "tw-nwt"
    names = [name for site in found for names in site.devices.values() for name in names]
    assert len(names) == len(set(names)) == Week(160_000, days=7, now_ms=NOW_MS).devices


def test_rows_come_at_the_times_that_they_would() -> None:
    week = Week(300, days=2, now_ms=NOW_MS)
    times: dict[str, list[int]] = {}
    for chunk in week.chunks():
        for line in chunk.lines.split("\n"):
            key, _, rest = line.partition(" ")
            if f",site={week.shown.name}," in f"{key},":
                times.setdefault(key, []).append(int(rest.rpartition(" ")[2]))
    lamp = f"{week.shown.tags},device={week.shown.devices['streetlight'][0]}"
    whole = (week.now_ms - week.begin_ms) // panel_rows.MINUTE_MS
    assert len(times[f"streetlight,{lamp}"]) == whole
    assert len(times[f"device,{lamp},domain=streetlight"]) == whole // 5
    days = times[f"device_day,{lamp},domain=streetlight"]
    assert days == [week.midnight_ms(1), week.midnight_ms(0)]
    hours = times[f"site_hour,{week.shown.tags},domain=air"]
    assert len(hours) == 47
    assert all(time_ms % panel_rows.HOUR_MS == 0 for time_ms in hours)
