"""What several pages show: the rows of the watch, by place and domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from dashboards.influxql import (
    INTERVAL,
    Column,
    Condition,
    Expression,
    Function,
    Select,
    TagValues,
    call,
    chosen,
    column,
    compares,
    in_range,
    is_text,
    number,
    since,
)
from dashboards.looks import RED, VIOLET, YELLOW
from dashboards.panels import Field, Kind, Link, Panel, Source, Variable

ZONE = "Asia/Taipei"
"""Of the civil days of all counties."""
PLACE = (chosen("county"), chosen("site"))
NOW = since("15m")
"""The watch writes every device once in five minutes, and every site once a minute: what is older is over."""
TODAY = since("1450m")
"""Rows of days are dated at their midnight: today's alone is so young, but for ten minutes after midnight."""
CLOSED_DAY = since("3d")
"""A day is rolled up when it is over, its night after the next noon: until then the one before is the newest."""
LINES = 30
"""Of a chart with a line for each site: more could not be told apart."""
INCIDENTS = 200
"""Of a page; the newest."""
LONGEST_INCIDENT = since("31d")
"""An incident's row is dated at its beginning; a year of them in a nation takes seconds to look through."""
WATCH = "watch is silent"

COUNTY = Field(name="county", text="county", link=Link.COUNTY, width=70)
SITE = Field(name="site", text="site", link=Link.SITE)
DEVICE = Field(name="device", text="device", unit="id", link=Link.DEVICE)
DOMAIN = Field(name="domain", text="domain", values="domain")
HIDDEN_TIME = Field(name="time", text="time", unit="moment", hidden=True)

DEVICES = Field(name="devices", text="devices", unit="count")
TROUBLE = (
    Field(name="down", text="state.down", unit="count", limits="none is well", colour=RED),
    Field(
        name="unknown", text="state.unknown", unit="count", limits="none is unknown", colour=VIOLET
    ),
    Field(
        name="late",
        text="state.late",
        unit="count",
        limits="none is well, some are late",
        colour=YELLOW,
    ),
)
STATES = (
    *TROUBLE,
    DEVICES,
    Field(name="up", text="state.up", unit="count"),
    Field(name="maintenance", text="state.maintenance", unit="count"),
)
"""In the order of columns: a phone shows the first ones."""
WORST = Field(name="worst", text="state", limits="worst state", hidden=True)
"""How many devices are down, and below 1, from 0.5 on, that some are unknown: InfluxQL has no cases."""
LABEL = Field(name="label", text="label", width=185)
STATE = Field(name="state", text="state", values="state", width=90)
EXPECTED = Field(name="expected", text="expected", unit="count")
RECEIVED = Field(name="received", text="received", unit="count")
MISSING = Field(name="missing", text="missing", unit="count")
COMPLETENESS = Field(name="completeness", text="completeness", unit="share", limits="part received")
AVAILABILITY = Field(
    name="availability", text="availability", unit="share", limits="part available"
)
COMPLETE = call("sum", "received") / call("sum", "expected")
AVAILABLE = call("sum", "up_s") / (call("sum", "up_s") + call("sum", "down_s"))
"""Of rows of days. Sums of rows, not of what a query in it finds: InfluxDB asks such a one anew for every sum."""


def variables(*, sites: bool = True) -> tuple[Variable, ...]:
    """Return what is chosen on a page: counties, and several sites or one."""
    return (
        Variable(name="county", asks=TagValues(tag="county", source="site_now")),
        Variable(
            name="site",
            asks=TagValues(tag="site", source="site_now", where=(chosen("county"),)),
            several=sites,
        ),
    )


def of_domain(domain: str) -> tuple[Condition, ...]:
    """Return the condition of a domain; of none for all."""
    return (is_text("domain", domain),) if domain else ()


def columns(names: Sequence[str]) -> list[Column]:
    """Return fields or tags as they are."""
    return [column(name).named(name) for name in names]


def aggregates(function: Function, names: Sequence[str]) -> list[Column]:
    """Return one aggregate of several fields, under their own names."""
    return [call(function, name).named(name) for name in names]


def newest(names: Sequence[str]) -> list[Column]:
    """Return the fields of the newest row that has the first of them; of rows that are written whole.

    InfluxDB looks through a series once for it, and once a field for aggregates.
    """
    return [*aggregates("last", names[:1]), *columns(names[1:])]


def newest_by_site(
    fields: Sequence[str], measurement: str = "site_now", domain: str = "", when: Condition = NOW
) -> Select:
    """Return the newest row of each site and domain: the one shape that 160,000 lamps are looked at by."""
    return Select(
        columns=newest(fields),
        source=measurement,
        where=(*PLACE, *of_domain(domain), when),
        by=("county", "site", "domain"),
    )


def total_now(field: str, domain: str = "") -> Select:
    """Return the sum over all chosen sites, now."""
    return Select(columns=aggregates("sum", [field]), source=newest_by_site([field], domain=domain))


def completeness_today(domain: str = "", width: int = 4) -> Panel:
    """Return what part of today's samples has come: of all samples, not a mean of sites."""
    query = Select(
        columns=[COMPLETE.named("completeness")],
        source="site_day_state",
        where=(*PLACE, *of_domain(domain), TODAY),
    )
    return stat("completeness", query, COMPLETENESS, width=width)


def availability_today(domain: str = "", width: int = 4) -> Panel:
    """Return for what part of today the devices were up, where anybody knows."""
    query = Select(
        columns=[AVAILABLE.named("availability")],
        source="site_day_state",
        where=(*PLACE, *of_domain(domain), TODAY),
    )
    return stat("availability", query, AVAILABILITY, width=width)


def stat(
    name: str,
    asks: Select,
    field: Field,
    *,
    width: int = 4,
    empty: str = WATCH,
    source: Source = Source.RAW,
) -> Panel:
    """Return one number."""
    return Panel(
        name=name,
        kind=Kind.STAT,
        asks=(asks,),
        fields=(HIDDEN_TIME, field),
        width=width,
        empty=empty,
        source=source,
    )


def now_stats(domain: str = "", width: int = 4) -> tuple[Panel, ...]:
    """Return how many devices there are, and how many of them are in which trouble."""
    return tuple(
        stat(field.name, total_now(field.name, domain), field, width=width)
        for field in (*TROUBLE, DEVICES)
    )


def open_incidents(domain: str = "") -> Panel:
    """Return what is broken, since when, and what it means."""
    return incidents("broken", (compares("open", "=", 1), LONGEST_INCIDENT, *of_domain(domain)))


def past_incidents(where: tuple[Condition, ...] = ()) -> Panel:
    """Return what was broken in the time shown, over or not."""
    return incidents("past", (in_range(), *where), opened=True)


def incidents(
    name: str, where: tuple[Condition, ...], *, opened: bool = False, place: bool = True
) -> Panel:
    """Return incidents, newest first."""
    lasted = Field(
        name="duration_s", text="lasted", unit="s", values="lasted", width=90 if place else 0
    )
    shown = [
        Field(name="kind", text="kind", values="kind"),
        LABEL,
        *([Field(name="open", text="open", values="open", width=75)] if opened else []),
        Field(name="meaning", text="meaning", values="meaning"),
        Field(name="time", text="since", unit="moment", width=132),
        *([lasted] if opened else []),  # its row is not written anew while it is open
        *([SITE, DEVICE] if place else []),
        Field(name="devices", text="takes along", unit="count", width=88),
        *([COUNTY] if place else []),
    ]
    asked = [
        column("kind" if field.name == "meaning" else field.name).named(field.name)
        for field in shown
        if field.name != "time"
    ]
    everywhere = PLACE if place else (*PLACE, chosen("device"))
    query = Select(
        columns=asked,
        source="incident",
        where=(*everywhere, *where),
        newest_first=True,
        limit=INCIDENTS,
    )
    return Panel(name=name, kind=Kind.TABLE, asks=(query,), fields=shown, empty="nothing is broken")


def sites_now(domain: str = "", width: int = 24) -> Panel:
    """Return one row per site and domain: how it stands."""
    shown = (*STATES, COMPLETENESS, AVAILABILITY)
    own = replace(DOMAIN, hidden=bool(domain))
    return Panel(
        name="sites",
        kind=Kind.TABLE,
        asks=(newest_by_site([field.name for field in shown], domain=domain),),
        fields=(HIDDEN_TIME, SITE, *shown[:2], own, *shown[2:], COUNTY),
        width=width,
        worst=("down", "unknown"),
        empty=WATCH,
    )


def sites_map(width: int = 12, domain: str = "") -> Panel:
    """Return the sites on a map, each with its worst domain: in the colour of its devices' worst state."""
    shown = (*TROUBLE[:2], DEVICES)
    where = [Field(name=name, text="place", hidden=True) for name in ("lat", "lon")]
    fields = ["down", "unknown", "devices", "lat", "lon"]
    worst = column("down") + column("unknown") / (column("unknown") + number(1))
    judged = Select(
        columns=[worst.named(WORST.name), *columns(fields)],
        source=newest_by_site(fields, domain=domain),
        by=("county", "site", "domain"),
    )
    query = Select(
        columns=[*aggregates("max", [WORST.name]), *columns([*fields, "domain"])],
        source=judged,
        by=("county", "site"),
    )
    return Panel(
        name="map",
        kind=Kind.MAP,
        asks=(query,),
        fields=(HIDDEN_TIME, COUNTY, SITE, DOMAIN, *where, WORST, *shown),
        width=width,
        worst=(WORST.name,),
        empty=WATCH,
    )


def states_over_time(domain: str = "", width: int = 12, last: str = "") -> Panel:
    """Return how many devices were in trouble, through the time shown: of each site the most in an hour."""
    query = Select(
        columns=aggregates("sum", [field.name for field in TROUBLE]),
        source="site_hour_state",
        where=(*PLACE, *of_domain(domain), in_range()),
        every="1h",
    )
    return Panel(
        name="history",
        kind=Kind.LINES,
        asks=(query,),
        fields=TROUBLE,
        width=width,
        last=last,
        empty=WATCH,
    )


def days_complete(domain: str = "", width: int = 12) -> Panel:
    """Return completeness and availability of each civil day."""
    query = Select(
        columns=[COMPLETE.named("completeness"), AVAILABLE.named("availability")],
        source="site_day_state",
        where=(*PLACE, *of_domain(domain), in_range()),
        every="1d",
        zone=ZONE,
    )
    return Panel(
        name="days",
        kind=Kind.BARS,
        asks=(query,),
        fields=(COMPLETENESS, AVAILABILITY),
        width=width,
        empty=WATCH,
    )


def days(
    name: str,
    domain: str,
    sums: Sequence[tuple[Field, Expression]],
    *,
    kind: Literal[Kind.BARS, Kind.LINES] = Kind.BARS,
    width: int = 12,
) -> Panel:
    """Return something of each civil day, over all sites of a domain."""
    query = Select(
        columns=[value.named(field.name) for field, value in sums],
        source="site_day",
        where=(*PLACE, *of_domain(domain), in_range()),
        every="1d",
        zone=ZONE,
    )
    return Panel(
        name=name,
        kind=kind,
        asks=(query,),
        fields=[field for field, _ in sums],
        width=width,
        source=Source.ROLLUPS,
        empty="no days yet",
    )


def hours(
    name: str,
    domain: str,
    field: Field,
    value: Expression | None = None,
    *,
    source: str = "site_hour",
    width: int = 12,
) -> Panel:
    """Return each site's hours as lines: a field's mean, or another value of its devices' hours."""
    query = Select(
        columns=[(value or call("mean", field.name)).named(field.name)],
        source=source,
        where=(*PLACE, *of_domain(domain), in_range()),
        every=INTERVAL,
        by=("county", "site"),
        series=LINES,
    )
    return Panel(
        name=name,
        kind=Kind.LINES,
        asks=(query,),
        fields=(field,),
        width=width,
        source=Source.ROLLUPS,
        by_site=True,
        empty="no hours yet",
    )


def over_sites(name: str, how: Function, sites: Select, field: Field) -> Panel:
    """Return one number of all sites in their newest hour."""
    query = Select(columns=aggregates(how, [field.name]), source=sites)
    return stat(name, query, field, width=6, source=Source.ROLLUPS, empty="no hours yet")
