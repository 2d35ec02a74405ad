"""The overview: what is broken, since when, what does it mean."""

from __future__ import annotations

from dashboards.influxql import Select, call, chosen
from dashboards.pages.parts import (
    AVAILABILITY,
    AVAILABLE,
    COMPLETE,
    COMPLETENESS,
    COUNTY,
    HIDDEN_TIME,
    MISSING,
    NOW,
    PLACE,
    STATES,
    TODAY,
    aggregates,
    availability_today,
    completeness_today,
    days_complete,
    newest,
    now_stats,
    open_incidents,
    past_incidents,
    sites_map,
    sites_now,
    stat,
    states_over_time,
    total_now,
    variables,
)
from dashboards.panels import Band, Field, Kind, Page, Panel

OPEN = stat(
    "incidents",
    total_now("incidents"),
    Field(name="incidents", text="open incidents", unit="count", limits="none is well"),
)
COUNTIES = Panel(
    name="counties",
    kind=Kind.TABLE,
    asks=(
        Select(
            columns=aggregates("sum", [field.name for field in STATES]),
            source=Select(
                columns=newest([field.name for field in STATES]),
                source="county_now",
                where=(chosen("county"), NOW),
                by=("county", "domain"),
            ),
            by=("county",),
        ),
    ),
    fields=(HIDDEN_TIME, COUNTY, *STATES),
    worst=("down", "unknown"),
    width=14,
    empty="watch is silent",
)
COUNTY_DAYS = Panel(
    name="county days",
    kind=Kind.TABLE,
    asks=(
        Select(
            columns=[
                COMPLETE.named("completeness"),
                AVAILABLE.named("availability"),
                call("sum", "missing").named("missing"),
            ],
            source="site_day_state",
            where=(*PLACE, TODAY),
            by=("county",),
        ),
    ),
    fields=(
        HIDDEN_TIME,
        COUNTY,
        COMPLETENESS,
        MISSING,
        AVAILABILITY,
    ),
    worst=(MISSING.name,),
    width=10,
    empty="watch is silent",
)

PAGE = Page(
    name="overview",
    variables=variables(),
    bands=(
        Band(
            height=4,
            panels=(
                OPEN,
                *now_stats(width=3),
                completeness_today(width=4),
                availability_today(width=4),
            ),
        ),
        Band(height=9, panels=(open_incidents(),)),
        Band(height=12, panels=(sites_map(12), states_over_time(width=12, last="24h"))),
        Band(height=8, panels=(COUNTIES, COUNTY_DAYS)),
        Band(height=12, panels=(sites_now(),)),
        Band(height=8, panels=(days_complete(width=24),)),
        Band(height=9, panels=(past_incidents(),)),
    ),
)
