"""Parking: where there is room now, how full it was, and how fast bays turn over. Never a bay's diary."""

from __future__ import annotations

from collections.abc import Sequence

from dashboards.influxql import Condition, Select, call, compares, is_text, since
from dashboards.pages.parts import (
    CLOSED_DAY,
    COUNTY,
    DEVICE,
    HIDDEN_TIME,
    NOW,
    PLACE,
    SITE,
    aggregates,
    days,
    days_complete,
    hours,
    newest,
    now_stats,
    open_incidents,
    over_sites,
    sites_map,
    sites_now,
    variables,
)
from dashboards.panels import Band, Field, Kind, Page, Panel, Source

DOMAIN = "parking"
LAST_HOUR = since("3h")
OCCUPANCY = Field(name="occupancy", text="occupancy", unit="share", limits="part occupied")
TURNOVER = Field(name="turnover", text="turnover", unit="1/day")
MEDIAN = Field(name="dwell_median_s", text="median stay", unit="s")
LONG = Field(name="dwell_p90_s", text="long stay", unit="s")
STAYS = Field(name="stays", text="stays", unit="count")
_BUSY = Select(
    columns=aggregates("last", ["occupancy"]),
    source="site_hour",
    where=(*PLACE, is_text("domain", DOMAIN), LAST_HOUR),
    by=("county", "site"),
)
_LOT = ("free_car", "capacity_car", "free_motorcycle")
"""Each is looked for in every bay: the others are on the page of the device."""
LOTS = Panel(
    name="lots",
    kind=Kind.TABLE,
    asks=(
        Select(
            columns=[
                *aggregates("last", _LOT),
            ],
            source="parking",
            where=(*PLACE, NOW),
            by=("county", "site", "device"),
        ),
    ),
    fields=(
        HIDDEN_TIME,
        DEVICE,
        *(Field(name=name, text=f"metric.{DOMAIN}.{name}", unit="count") for name in _LOT),
        SITE,
        COUNTY,
    ),
    worst=("free_car",),
    least=True,
    empty="no car parks",
)


def _newest_day(name: str, fields: Sequence[Field], *which: Condition) -> Panel:
    """Return each site's newest row of a day that is one of these."""
    query = Select(
        columns=newest([field.name for field in fields]),
        source="site_day",
        where=(*PLACE, is_text("domain", DOMAIN), *which, CLOSED_DAY),
        by=("county", "site"),
    )
    return Panel(
        name=name,
        kind=Kind.TABLE,
        asks=(query,),
        fields=(HIDDEN_TIME, SITE, *fields, COUNTY),
        worst=(fields[0].name,),
        width=12,
        source=Source.ROLLUPS,
        empty="no days yet",
    )


SITES = _newest_day("sites by day", (OCCUPANCY, TURNOVER))
STAYED = _newest_day("stays by day", (MEDIAN, LONG, STAYS), compares("stays", ">=", 5))
"""Apart: a site that has counters only has no stays, and of few stays their length must not be shown."""
FULLEST = Panel(
    name="occupancy now",
    kind=Kind.TABLE,
    asks=(_BUSY,),
    fields=(HIDDEN_TIME, SITE, OCCUPANCY, COUNTY),
    worst=(OCCUPANCY.name,),
    width=12,
    source=Source.ROLLUPS,
    empty="no hours yet",
)

PAGE = Page(
    name="parking",
    variables=variables(),
    bands=(
        Band(
            height=4,
            panels=(
                over_sites("occupancy", "max", _BUSY, OCCUPANCY),
                over_sites("mean occupancy", "mean", _BUSY, OCCUPANCY),
                *now_stats(DOMAIN, width=3),
            ),
        ),
        Band(height=9, panels=(FULLEST, sites_map(12, DOMAIN))),
        Band(height=8, panels=(open_incidents(DOMAIN),)),
        Band(height=9, panels=(LOTS,)),
        Band(height=9, panels=(hours("occupancy by hour", DOMAIN, OCCUPANCY, width=24),)),
        Band(
            height=9,
            panels=(
                days("turnover by day", DOMAIN, [(TURNOVER, call("mean", "turnover"))]),
                days_complete(DOMAIN, 12),
            ),
        ),
        Band(height=9, panels=(SITES, STAYED)),
        Band(height=8, panels=(sites_now(DOMAIN),)),
    ),
)
