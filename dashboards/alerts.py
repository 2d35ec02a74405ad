"""Alert rules: what is asked of the store, and from which answer on somebody is told.

A vanished series says nothing, and Grafana takes it for the end of an alert. So rules ask for rows that are written
whether something is wrong or not (of sites, of gateways), and that such rows come is a rule of its own. Rules read
sites, gateways and car parks, never each device: 160,000 lamps are as cheap as ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from operator import or_
from typing import Literal

from dashboards.influxql import Condition, Select, call, compares, in_range, is_text, number
from dashboards.panels import Source
from exchange.dictionary import dictionary
from exchange.towns import Town

HOUR_S = 3600
DAY_S = 24 * HOUR_S
HELD_S = DAY_S
"""How far back the newest row is looked for: for so long the last that was known holds."""
NIGHTS_S = 3 * DAY_S
"""A day's row has the time at which the day began, and its night ends at the next noon."""
BAYS_S = HOUR_S
"""A bay that said nothing for so long is neither free nor taken."""
ROLLUPS_S = 4 * HOUR_S
"""The newest hour's row is at most two hours and a quarter old where rollups run."""
DOWN = 2
"""As `device.state` has it."""

Comparison = Literal["gt", "gte", "lt", "within_range"]


class Severity(StrEnum):
    """How soon somebody has to look."""

    CRITICAL = "critical"
    """Now: nothing is known of many devices."""
    WARNING = "warning"
    """Today."""
    INFO = "info"
    """When somebody is there anyway."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One question, asked again and again. Shape: `asks` has one column, `value`, and one row for each label set."""

    name: str
    """Its section in docs/operators/alerts, and the key of its words."""
    asks: Select
    compares: Comparison
    limits: tuple[float, ...]
    severity: Severity
    source: Source = Source.RAW
    from_s: int = HELD_S
    """Rows from so long ago …"""
    to_s: int = 0
    """… until so long ago."""
    lasts_s: int = 0
    """It must hold for so long before somebody is told."""
    every_s: int = 60
    heartbeat: bool = False
    """No rows are what it fires for."""

    @property
    def labels(self) -> Sequence[str]:
        """What tells its alerts apart."""
        return self.asks.by


def rules(town: Town) -> list[Rule]:
    """Return the rules of a county, with the limits that its file sets."""
    limits = town.alerts
    here = is_text("county", town.county)
    lag_s = limits.lag_minutes * 60
    full = limits.car_park_full_percent / 100
    return [
        Rule(
            name="gateway-down",
            asks=_newest("state", "device", here, is_text("domain", "gateway"), by=_DEVICE),
            compares="within_range",  # its ends are outside
            limits=(DOWN - 0.5, DOWN + 0.5),
            severity=Severity.CRITICAL,
            lasts_s=120,
        ),
        Rule(
            name="device-silent",
            asks=_newest("down", "site_now", here, _NO_GATEWAY, by=_DOMAIN),
            compares="gte",
            limits=(limits.down_devices,),
            severity=Severity.WARNING,
            lasts_s=300,
        ),
        *(
            Rule(
                name=name,
                asks=_newest(field, "site_day", here, is_text("domain", "streetlight"), by=_SITE),
                source=Source.ROLLUPS,
                from_s=NIGHTS_S,
                compares="gte",
                limits=(1,),
                severity=severity,
                every_s=600,
            )
            for name, field, severity in (
                ("lamp-fault", "lamps_out", Severity.WARNING),
                ("day-burner", "day_burners", Severity.INFO),
            )
        ),
        Rule(
            name="air-unhealthy",
            asks=_newest("aqi", "site_hour", here, is_text("domain", "air"), by=_SITE),
            source=Source.ROLLUPS,
            compares="gt",
            limits=(limits.aqi,),
            severity=Severity.WARNING,
            every_s=600,
        ),
        Rule(
            name="car-park-full",
            asks=Select(
                columns=[call("mean", "occupied").named("value")],
                source=Select(
                    columns=[call("last", "occupied").named("occupied")],
                    source="parking",
                    where=(here, in_range()),
                    by=_DEVICE,
                ),
                by=_SITE,
            ),
            from_s=BAYS_S,
            compares="gte",
            limits=(full,),
            severity=Severity.INFO,
            lasts_s=300,
        ),
        Rule(
            name="car-lot-full",
            asks=Select(
                columns=[
                    (number(1) - call("last", "free_car") / call("last", "capacity_car")).named(
                        "value"
                    )
                ],
                source="parking",
                where=(here, compares("capacity_car", ">", 0), in_range()),
                by=_DEVICE,
            ),
            from_s=BAYS_S,
            compares="gte",
            limits=(full,),
            severity=Severity.INFO,
            lasts_s=300,
        ),
        Rule(
            name="sensor-stuck",
            asks=_newest("stuck", "site_hour", here, by=_DOMAIN),
            source=Source.ROLLUPS,
            compares="gte",
            limits=(1,),
            severity=Severity.INFO,
            every_s=600,
        ),
        Rule(
            name="day-incomplete",
            asks=_newest("completeness", "site_day_state", here, by=_DOMAIN),
            # A day's row has the time at which the day began: yesterday's alone is that old.
            from_s=2 * DAY_S,
            to_s=DAY_S,
            compares="lt",
            limits=(limits.completeness_percent / 100,),
            severity=Severity.WARNING,
            every_s=600,
        ),
        _heartbeat("ingest-late", "seq", "gateway", here, Severity.CRITICAL, lag_s),
        _heartbeat("watch-silent", "devices", "site_now", here, Severity.CRITICAL, lag_s),
        _heartbeat(
            "rollups-silent",
            "devices",
            "site_hour",
            here,
            Severity.WARNING,
            ROLLUPS_S,
            kept=Source.ROLLUPS,
        ),
    ]


_SITE, _DOMAIN, _DEVICE = ("site",), ("site", "domain"), ("site", "device")
_NO_GATEWAY = reduce(
    or_, (is_text("domain", domain) for domain in dictionary() if domain != "gateway")
)
"""The death of a gateway is one alert, and its devices are unknown, not silent."""


def _newest(field: str, source: str, *where: Condition, by: Sequence[str]) -> Select:
    return Select(
        columns=[call("last", field).named("value")],
        source=source,
        where=(*where, in_range()),
        by=by,
    )


def _heartbeat(
    name: str,
    field: str,
    source: str,
    here: Condition,
    severity: Severity,
    within_s: int,
    *,
    kept: Source = Source.RAW,
) -> Rule:
    return Rule(
        name=name,
        asks=Select(
            columns=[call("count", field).named("value")], source=source, where=(here, in_range())
        ),
        source=kept,
        from_s=within_s,
        compares="lt",
        limits=(1,),
        severity=severity,
        lasts_s=300,
        heartbeat=True,
    )
