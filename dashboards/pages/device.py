"""One device: is it well, since when, and what does it say. Its charts follow from the dictionary."""

from __future__ import annotations

from itertools import groupby

from dashboards.influxql import (
    INTERVAL,
    Condition,
    Select,
    TagValues,
    call,
    chosen,
    column,
    in_range,
    since,
)
from dashboards.pages.parts import (
    AVAILABILITY,
    COMPLETENESS,
    NOW,
    PLACE,
    STATE,
    TODAY,
    WATCH,
    ZONE,
    aggregates,
    incidents,
    stat,
    variables,
)
from dashboards.panels import Band, Field, Kind, Page, Panel, Variable
from exchange.dictionary import dictionary

THIS: tuple[Condition, ...] = (*PLACE, chosen("device"))
HEADLINES = {
    "streetlight": ("level", "power"),
    "parking": ("free_car",),
    "air": ("pm2_5", "noise"),
    "power": ("power",),
    "weather": ("temperature", "wind_speed", "rain"),
    "gateway": ("outbox_depth", "uplink_rtt"),
}
"""What one wants to see first of each domain."""
NEWEST_ONLY = ("occupied", "distance")
"""Over time they would be a car's diary."""
VALUES = {
    "lit": "lit",
    "occupied": "occupied",
    "lamp_fault": "fault",
    "gear_fault": "fault",
    "clock_known": "known",
}
"""The booleans, by the names of their values."""
OWN_FAULTS = ("lamp_fault", "gear_fault")
"""What a lamp says of itself while it is up; who sends none of them has no line of them."""


def _newest(name: str, field: Field, when: Condition = NOW, source: str = "device") -> Panel:
    query = Select(columns=aggregates("last", [field.name]), source=source, where=(*THIS, when))
    return stat(name, query, field, width=4, empty="no samples" if when is TODAY else WATCH)


def _field(domain: str, metric: str) -> Field:
    return Field(
        name=metric,
        text=f"metric.{domain}.{metric}",
        unit=dictionary()[domain].metrics[metric].unit,
        values=VALUES.get(metric, ""),
    )


def _chart(domain: str, metrics: tuple[str, ...], kind: Kind, quantity: str) -> Panel:
    """Return metrics of one unit. A query a metric: one that the device does not send leaves no line without values."""
    boolean = kind is Kind.STATES
    asks = tuple(
        Select(
            columns=[call("last" if boolean else "mean", metric).named(metric)],
            source=domain,
            where=(*THIS, in_range()),
            every=INTERVAL,
            fill="null" if boolean else "none",
        )
        for metric in metrics
    )
    fields = tuple(_field(domain, metric) for metric in metrics)
    return Panel(
        name=f"{domain} {quantity}",
        kind=kind,
        asks=asks,
        fields=fields,
        width=12,
        empty="not sent",
        title=fields[0].text if len(fields) == 1 else f"quantity.{quantity}",
    )


def _domain(domain: str) -> Band:
    """Return every metric of a domain: a chart a unit, closed until somebody wants it."""
    metrics = dictionary()[domain].metrics
    ordered = sorted(
        (name for name in metrics if name not in NEWEST_ONLY),
        key=lambda name: (metrics[name].type == "boolean", metrics[name].unit),
    )
    panels = [
        _chart(
            domain,
            tuple(names),
            Kind.STATES if boolean else Kind.LINES,
            "states" if boolean else unit,
        )
        for (boolean, unit), names in groupby(
            ordered, key=lambda name: (metrics[name].type == "boolean", metrics[name].unit)
        )
    ]
    panels += [_now(domain, name) for name in NEWEST_ONLY if name in metrics]
    return Band(height=8, panels=panels, fold=f"domain.{domain}")


def _now(domain: str, metric: str) -> Panel:
    field = _field(domain, metric)
    query = Select(columns=aggregates("last", [metric]), source=domain, where=(*THIS, NOW))
    return Panel(
        name=f"{domain} {metric}",
        kind=Kind.STAT,
        asks=(query,),
        fields=(field,),
        width=12,
        empty="not sent",
        title=field.text,
    )


STATES = Panel(
    name="states",
    kind=Kind.STATES,
    asks=tuple(
        Select(
            columns=[call("last", field.name).named(field.name)],
            source=source,
            where=(*THIS, in_range()),
            every=INTERVAL,
            fill="null",
        )
        for source, field in (
            ("device", STATE),
            *(("streetlight", _field("streetlight", name)) for name in OWN_FAULTS),
        )
    ),
    fields=(STATE, *(_field("streetlight", name) for name in OWN_FAULTS)),
    empty="watch is silent",
)
MEASURED = Panel(
    name="measured",
    kind=Kind.LINES,
    asks=tuple(
        Select(
            columns=[call("mean", metric).named(metric)],
            source=domain,
            where=(*THIS, in_range()),
            every=INTERVAL,
        )
        for domain, metrics in HEADLINES.items()
        for metric in metrics
    ),
    fields=tuple(
        {
            metric: _field(domain, metric)
            for domain, metrics in HEADLINES.items()
            for metric in metrics
        }.values()
    ),
    empty="not sent",
)
DAYS = Panel(
    name="days",
    kind=Kind.BARS,
    asks=(
        Select(
            columns=[call("last", name).named(name) for name in ("completeness", "availability")],
            source="device_day",
            where=(*THIS, in_range()),
            every="1d",
            zone=ZONE,
        ),
    ),
    fields=(COMPLETENESS, AVAILABILITY),
    width=12,
    empty="watch is silent",
)
COMMANDS = Panel(
    name="commands",
    kind=Kind.TABLE,
    asks=(
        Select(
            columns=[column(name).named(name) for name in ("status", "reason", "readback", "id")],
            source="command",
            where=(*THIS, in_range()),
            newest_first=True,
            limit=100,
        ),
    ),
    fields=(
        Field(name="time", text="time", unit="moment", width=140),
        Field(name="status", text="result", values="command"),
        Field(name="reason", text="reason"),
        Field(name="readback", text="readback"),
        Field(name="id", text="command id"),
    ),
    width=12,
    empty="no commands",
)

PAGE = Page(
    name="device",
    variables=(
        *variables(sites=False),
        Variable(
            name="device",
            asks=TagValues(tag="device", source="device", where=(chosen("county"), chosen("site"))),
            several=False,
        ),
    ),
    range_from="now-24h",
    bands=(
        Band(
            height=4,
            panels=(
                _newest("state", STATE),
                _newest("since", Field(name="since", text="since", unit="since")),
                _newest("age", Field(name="age_s", text="age", unit="s")),
                _newest("gateway", Field(name="gateway_up", text="gateway", values="gateway")),
                _newest("completeness", COMPLETENESS, TODAY, "device_day"),
                _newest("availability", AVAILABILITY, TODAY, "device_day"),
            ),
        ),
        Band(height=6, panels=(STATES,)),
        Band(height=10, panels=(MEASURED,)),
        Band(
            height=8, panels=(incidents("incidents", (since("366d"),), opened=True, place=False),)
        ),
        Band(height=8, panels=(DAYS, COMMANDS)),
        *(
            _domain(domain)
            for domain in ("streetlight", "parking", "air", "power", "weather", "gateway")
        ),
    ),
)
