"""Streetlights: which lamps do not burn, which burn by day, and what a night costs."""

from __future__ import annotations

from dashboards.influxql import Condition, Select, call, compares, is_text
from dashboards.looks import ORANGE, RED, VIOLET
from dashboards.pages.parts import (
    CLOSED_DAY,
    COUNTY,
    DEVICE,
    HIDDEN_TIME,
    INCIDENTS,
    PLACE,
    SITE,
    aggregates,
    columns,
    completeness_today,
    days,
    days_complete,
    newest_by_site,
    now_stats,
    open_incidents,
    sites_map,
    sites_now,
    stat,
    states_over_time,
    variables,
)
from dashboards.panels import Band, Field, Kind, Page, Panel, Source

DOMAIN = "streetlight"
OUT = Field(name="lamps_out", text="lamps out", unit="count", limits="none is well", colour=RED)
BY_DAY = Field(
    name="day_burners", text="day burners", unit="count", limits="none is well", colour=ORANGE
)
CYCLING = Field(name="cycling", text="cycling", unit="count", limits="none is well", colour=VIOLET)
ENERGY = Field(name="night_energy_wh", text="energy", unit="Wh")
BASELINE = Field(name="night_baseline_wh", text="baseline", unit="Wh")
SAVED = Field(name="night_saved_wh", text="saved", unit="Wh")
SAVED_LOW = Field(name="night_saved_low_wh", text="saved at least", unit="Wh")
SAVED_HIGH = Field(name="night_saved_high_wh", text="saved at most", unit="Wh")
DAY = Field(name="time", text="day", unit="day")
BURNED = Field(name="burning_s", text="burned", unit="s")
SWITCHINGS = Field(name="switchings", text="switchings", unit="1/day")
BURNED_BY_DAY = Field(name="day_burning_s", text="burned by day", unit="s")


def _last_night(field: Field, width: int) -> Panel:
    """Return the sum over all sites of the newest day that is rolled up."""
    inner = newest_by_site([field.name], "site_day", DOMAIN, CLOSED_DAY)
    query = Select(columns=aggregates("sum", [field.name]), source=inner)
    name = field.name.removeprefix("night_").removesuffix("_wh")
    return stat(name, query, field, width=width, source=Source.ROLLUPS, empty="no days yet")


def _lamps(name: str, which: Condition, *beside: Field) -> Panel:
    """Return single lamps: only those have rows of faults in which something was wrong; the newest ones."""
    fields = (DEVICE, DAY, *beside, SITE, COUNTY)
    query = Select(
        columns=columns([field.name for field in fields if field.name != "time"]),
        source="fault_day",
        where=(*PLACE, is_text("domain", DOMAIN), which, CLOSED_DAY),
        newest_first=True,
        limit=INCIDENTS,
    )
    return Panel(
        name=name,
        kind=Kind.TABLE,
        asks=(query,),
        fields=fields,
        width=12,
        source=Source.ROLLUPS,
        empty="nothing is broken",
    )


_SITE_NIGHT = (OUT, BY_DAY, CYCLING, ENERGY, SAVED, SAVED_LOW, SAVED_HIGH)
SITES = Panel(
    name="nights",
    kind=Kind.TABLE,
    # Each column's own newest: what a night took is there after noon, its faults at midnight.
    asks=(
        Select(
            columns=aggregates("last", [field.name for field in _SITE_NIGHT]),
            source="site_day",
            where=(*PLACE, is_text("domain", DOMAIN), CLOSED_DAY),
            by=("county", "site", "domain"),
        ),
    ),
    fields=(
        HIDDEN_TIME,
        SITE,
        Field(name="domain", text="domain", hidden=True),
        *_SITE_NIGHT,
        COUNTY,
    ),
    worst=(OUT.name, BY_DAY.name),
    source=Source.ROLLUPS,
    empty="no days yet",
)

PAGE = Page(
    name="streetlights",
    variables=variables(),
    range_from="now-30d",
    bands=(
        Band(
            height=4,
            panels=(
                _last_night(OUT, width=4),
                _last_night(BY_DAY, width=4),
                _last_night(CYCLING, width=4),
                *now_stats(DOMAIN, width=3),
            ),
        ),
        Band(height=8, panels=(open_incidents(DOMAIN),)),
        Band(
            height=9,
            panels=(
                _lamps("out", compares("faulty", "=", 1), BURNED, SWITCHINGS),
                _lamps("by day", compares("day_burner", "=", 1), BURNED_BY_DAY),
            ),
        ),
        Band(
            height=4,
            panels=(
                _last_night(ENERGY, width=5),
                _last_night(SAVED, width=5),
                _last_night(SAVED_LOW, width=5),
                _last_night(SAVED_HIGH, width=5),
                completeness_today(DOMAIN, width=4),
            ),
        ),
        Band(
            height=9,
            panels=(
                days(
                    "energy by night",
                    DOMAIN,
                    [(field, call("sum", field.name)) for field in (ENERGY, BASELINE)],
                ),
                days(
                    "saved by night",
                    DOMAIN,
                    [(field, call("sum", field.name)) for field in (SAVED, SAVED_LOW, SAVED_HIGH)],
                    kind=Kind.LINES,
                ),
            ),
        ),
        Band(
            height=9,
            panels=(
                days(
                    "faults by day",
                    DOMAIN,
                    [(field, call("sum", field.name)) for field in (OUT, BY_DAY, CYCLING)],
                    width=24,
                ),
            ),
        ),
        Band(height=10, panels=(SITES,)),
        Band(height=12, panels=(sites_map(12, DOMAIN), states_over_time(DOMAIN, 12))),
        Band(height=9, panels=(sites_now(DOMAIN),)),
        Band(height=8, panels=(days_complete(DOMAIN, 24),)),
    ),
)
