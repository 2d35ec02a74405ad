"""One site: which of its devices is in trouble. The one page that reads every device, so it takes one site only."""

from __future__ import annotations

from dashboards.influxql import MAX_ROWS, Select, column, compares, number
from dashboards.pages.parts import (
    AVAILABILITY,
    COMPLETENESS,
    DEVICE,
    DOMAIN,
    EXPECTED,
    HIDDEN_TIME,
    LABEL,
    MISSING,
    NOW,
    PLACE,
    RECEIVED,
    STATE,
    TODAY,
    aggregates,
    availability_today,
    columns,
    completeness_today,
    days_complete,
    newest,
    now_stats,
    open_incidents,
    past_incidents,
    states_over_time,
    variables,
)
from dashboards.panels import Band, Field, Kind, Page, Panel

_SHOWN = (
    STATE,
    Field(name="since", text="since", unit="since"),
    Field(name="age_s", text="age", unit="s"),
    LABEL,
    Field(name="flapping", text="flapping", values="yes"),
    Field(name="gateway", text="gateway"),
    Field(name="asset_id", text="asset"),
)
_NEWEST = Select(
    columns=newest([*(field.name for field in _SHOWN), "lat", "lon"]),
    source="device",
    where=(*PLACE, NOW),
    by=("county", "site", "device", "domain"),
)
_HIDDEN = tuple(Field(name=name, text=name, hidden=True) for name in ("county", "site"))
TROUBLED = Panel(
    name="troubled",
    kind=Kind.TABLE,
    asks=(
        Select(
            columns=columns(
                ["county", "site", "device", "domain", *(field.name for field in _SHOWN)]
            ),
            source=_NEWEST,
            where=(compares("state", ">", 0), compares("state", "<", 5)),
            limit=MAX_ROWS,
        ),
    ),
    fields=(HIDDEN_TIME, *_HIDDEN, DEVICE, *_SHOWN[:4], DOMAIN, *_SHOWN[4:]),
    worst=("age_s",),
    empty="nothing is broken",
)
_AWAY = column("state") - number(2.2)
"""From down: unknown is next, then late, maintenance and up. InfluxQL has no cases."""
MAP = Panel(
    name="map",
    kind=Kind.MAP,
    asks=(
        Select(
            columns=[
                *columns(["county", "site", "device", "lat", "lon", "state", "label"]),
                (number(0) - _AWAY * _AWAY).named("worst"),
            ],
            source=_NEWEST,
            where=(compares("state", "<", 5),),
            limit=MAX_ROWS,
        ),
    ),
    fields=(
        HIDDEN_TIME,
        *_HIDDEN,
        DEVICE,
        Field(name="lat", text="place", hidden=True),
        Field(name="lon", text="place", hidden=True),
        Field(name="worst", text="state", hidden=True),
        STATE,
        LABEL,
    ),
    width=12,
    worst=("worst",),
    empty="watch is silent",
)
DAY = Panel(
    name="incomplete",
    kind=Kind.TABLE,
    asks=(
        Select(
            columns=[
                *columns(["county", "site", "device", "domain", "completeness", "availability"]),
                *(column(name).named(name) for name in ("expected", "received", "missing")),
            ],
            source=Select(
                columns=aggregates(
                    "last", ["completeness", "availability", "expected", "received", "missing"]
                ),
                source="device_day",
                where=(*PLACE, TODAY),
                by=("county", "site", "device", "domain"),
            ),
            where=(compares("completeness", "<", 0.98),),
            limit=MAX_ROWS,
        ),
    ),
    fields=(
        HIDDEN_TIME,
        *_HIDDEN,
        DEVICE,
        COMPLETENESS,
        MISSING,
        RECEIVED,
        EXPECTED,
        AVAILABILITY,
        DOMAIN,
    ),
    worst=(MISSING.name,),
    empty="nothing is missing",
)

PAGE = Page(
    name="site",
    variables=variables(sites=False),
    bands=(
        Band(
            height=4,
            panels=(*now_stats(), completeness_today(), availability_today()),
        ),
        Band(height=8, panels=(open_incidents(),)),
        Band(height=11, panels=(TROUBLED,)),
        Band(height=12, panels=(MAP, states_over_time(width=12))),
        Band(height=9, panels=(DAY,)),
        Band(height=8, panels=(days_complete(width=24),)),
        Band(height=8, panels=(past_incidents(),)),
    ),
)
