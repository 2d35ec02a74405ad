"""Parking: where there is room now, how full it was, and how fast bays turn over. Never a bay's diary."""

from __future__ import annotations

from dashboards.influxql import Select, call, compares, is_text, since
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
        COUNTY,
        SITE,
        DEVICE,
        *(Field(name=name, text=f"metric.{DOMAIN}.{name}", unit="count") for name in _LOT),
    ),
    worst="free_car",
    least=True,
    empty="no car parks",
)
_DAY = (OCCUPANCY, TURNOVER, MEDIAN, LONG, STAYS)
SITES = Panel(
    name="sites by day",
    kind=Kind.TABLE,
    asks=(
        Select(
            columns=aggregates("last", [field.name for field in _DAY]),
            source="site_day",
            where=(*PLACE, is_text("domain", DOMAIN), compares("stays", ">=", 5), CLOSED_DAY),
            by=("county", "site"),
        ),
    ),
    fields=(HIDDEN_TIME, COUNTY, SITE, *_DAY),
    worst="occupancy",
    source=Source.ROLLUPS,
    empty="no days yet",
)
FULLEST = Panel(
    name="occupancy now",
    kind=Kind.TABLE,
    asks=(_BUSY,),
    fields=(HIDDEN_TIME, COUNTY, SITE, OCCUPANCY),
    worst="occupancy",
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
        Band(height=9, panels=(SITES,)),
        Band(height=8, panels=(sites_now(DOMAIN),)),
    ),
)
