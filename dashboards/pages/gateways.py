"""Gateways and ingest: does what is measured arrive, how late, and what is lost on the way."""

from __future__ import annotations

from dashboards.influxql import Select, call, in_range, is_text
from dashboards.pages.parts import (
    COMPLETE,
    COMPLETENESS,
    COUNTY,
    DEVICE,
    EXPECTED,
    HIDDEN_TIME,
    LABEL,
    MISSING,
    NOW,
    PLACE,
    RECEIVED,
    SITE,
    STATE,
    TODAY,
    ZONE,
    aggregates,
    availability_today,
    completeness_today,
    days_complete,
    hours,
    newest,
    now_stats,
    open_incidents,
    stat,
    states_over_time,
    variables,
)
from dashboards.panels import Band, Field, Kind, Page, Panel
from exchange.dictionary import dictionary

DOMAIN = "gateway"


def _metric(name: str, *, limits: str = "", values: str = "", width: int = 95) -> Field:
    unit = dictionary()[DOMAIN].metrics[name].unit
    return Field(
        name=name, text=f"health.{name}", unit=unit, limits=limits, values=values, width=width
    )


WAITING = _metric("outbox_depth", limits="waiting")
HOURS_LEFT = _metric("outbox_hours_left", limits="hours left")
DROPPED = _metric("dropped", limits="none is well")
UNRECEIPTED = _metric("unreceipted")
ROUND_TRIP = _metric("uplink_rtt")
HEALTH = (
    WAITING,
    HOURS_LEFT,
    DROPPED,
    UNRECEIPTED,
    ROUND_TRIP,
    _metric("cpu", limits="load"),
    _metric("memory", limits="load"),
    _metric("disk_free"),
    _metric("bus_errors"),
    _metric("clock_known", values="known"),
    _metric("clock_offset", width=110),
)


def _now(field: Field, how: str, width: int = 6) -> Panel:
    """Return the worst gateway's figure, or the sum of all."""
    newest = Select(
        columns=aggregates("last", [field.name]),
        source=DOMAIN,
        where=(*PLACE, NOW),
        by=("county", "site", "device"),
    )
    outer = aggregates("min" if how == "min" else "max" if how == "max" else "sum", [field.name])
    return stat(
        field.name,
        Select(columns=outer, source=newest),
        field,
        width=width,
        empty="no gateway sends this",
    )


def _over_time(name: str, field: Field) -> Panel:
    """Return the worst gateway of each site, by its hours: every minute of 2,000 gateways would be too many."""
    return hours(name, DOMAIN, field, call("max", f"{field.name}_max"), source="rollup_hour")


STATES_NOW = Panel(
    name="states",
    kind=Kind.TABLE,
    asks=(
        Select(
            columns=newest(["state", "label", "since", "age_s"]),
            source="device",
            where=(*PLACE, is_text("domain", DOMAIN), NOW),
            by=("county", "site", "device"),
        ),
    ),
    fields=(
        HIDDEN_TIME,
        DEVICE,
        STATE,
        Field(name="since", text="since", unit="since"),
        Field(name="age_s", text="age", unit="s"),
        LABEL,
        SITE,
        COUNTY,
    ),
    worst=("age_s",),
    empty="no gateways",
)
HEALTH_NOW = Panel(
    name="health",
    kind=Kind.TABLE,
    asks=(
        Select(
            columns=aggregates("last", [field.name for field in HEALTH]),
            source=DOMAIN,
            where=(*PLACE, NOW),
            by=("county", "site", "device"),
        ),
    ),
    fields=(HIDDEN_TIME, DEVICE, *HEALTH, SITE, COUNTY),
    worst=(WAITING.name,),
    empty="no gateways",
)
ARRIVED = Panel(
    name="arrived",
    kind=Kind.BARS,
    asks=(
        Select(
            columns=aggregates("sum", ["received", "missing"]),
            source="site_day_state",
            where=(*PLACE, in_range()),
            every="1d",
            zone=ZONE,
        ),
    ),
    fields=(RECEIVED, MISSING),
    width=12,
    empty="watch is silent",
)
BY_SITE = Panel(
    name="today",
    kind=Kind.TABLE,
    asks=(
        Select(
            columns=[
                COMPLETE.named("completeness"),
                *aggregates("sum", ["expected", "received", "missing"]),
            ],
            source="site_day_state",
            where=(*PLACE, TODAY),
            by=("county", "site"),
        ),
    ),
    fields=(
        HIDDEN_TIME,
        SITE,
        COMPLETENESS,
        MISSING,
        RECEIVED,
        EXPECTED,
        COUNTY,
    ),
    worst=(MISSING.name,),
    width=12,
    empty="watch is silent",
)

PAGE = Page(
    name="gateways",
    variables=variables(),
    bands=(
        Band(
            height=4,
            panels=(
                *now_stats(DOMAIN, width=3),
                completeness_today(width=6),
                availability_today(DOMAIN, width=6),
            ),
        ),
        Band(height=8, panels=(open_incidents(DOMAIN),)),
        Band(
            height=4,
            panels=(
                _now(WAITING, "sum"),
                _now(HOURS_LEFT, "min"),
                _now(DROPPED, "sum"),
                _now(ROUND_TRIP, "max"),
            ),
        ),
        Band(height=9, panels=(STATES_NOW,)),
        Band(height=10, panels=(HEALTH_NOW,)),
        Band(height=9, panels=(_over_time("backlog", WAITING), _over_time("delay", ROUND_TRIP))),
        Band(height=9, panels=(ARRIVED, BY_SITE)),
        Band(height=9, panels=(states_over_time(DOMAIN, 12), days_complete("", 12))),
    ),
)
