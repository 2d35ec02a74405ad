"""Air: how it is, where it is worst, and what one must know before believing a cheap sensor."""

from __future__ import annotations

from dataclasses import replace

from dashboards.influxql import Select, call, compares, in_range, is_text, since, top
from dashboards.looks import BLUE, GREY
from dashboards.pages.parts import (
    COUNTY,
    DEVICE,
    HIDDEN_TIME,
    PLACE,
    SITE,
    ZONE,
    aggregates,
    columns,
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
from exchange.dictionary import dictionary

DOMAIN = "air"
LAST_HOURS = since("3h")
LAST_TWO_HOURS = since("135m")
"""An hour's row is there a quarter of an hour after its end."""
STATIONS_SHOWN = 200
"""The worst of them: a nation has 10,000."""
AQI = Field(name="aqi", text="aqi", unit="AQI", limits="aqi", values="aqi")
AQI_MEAN = Field(name="aqi_mean", text="aqi mean", unit="AQI", limits="aqi", values="aqi")
PARTS = tuple(
    Field(
        name=f"aqi_{metric}",
        text=f"index.{metric}",
        unit="AQI",
        limits="aqi",
        values="aqi",
    )
    for metric in ("pm2_5", "pm10", "o3", "co", "so2", "no2")
)
INDICATIVE = Field(name="indicative", text="indicative", values="yes")
GRADES = {
    1: Field(name="aqi_indicative", text="aqi indicative", unit="AQI", values="aqi", colour=GREY),
    0: Field(name="aqi_reference", text="aqi reference", unit="AQI", values="aqi", colour=BLUE),
}
"""By `indicative`: a line says which one it is. A site's index is one of reference grade if all its stations are."""
_SITES = Select(
    columns=aggregates("last", ["aqi", "aqi_mean"]),
    source="site_hour",
    where=(*PLACE, is_text("domain", DOMAIN), LAST_HOURS),
    by=("county", "site"),
)
STATIONS = Panel(
    name="stations",
    kind=Kind.TABLE,
    asks=(
        Select(
            columns=[
                top("aqi", STATIONS_SHOWN, of=("county", "site", "device")).named("aqi"),
                *columns([*(part.name for part in PARTS), "indicative"]),
            ],
            source="rollup_hour",
            where=(*PLACE, is_text("domain", DOMAIN), LAST_TWO_HOURS),
        ),
    ),
    fields=(HIDDEN_TIME, DEVICE, AQI, *PARTS, INDICATIVE, SITE, COUNTY),
    worst=(AQI.name,),
    source=Source.ROLLUPS,
    empty="no hours yet",
)
SITES = Panel(
    name="aqi by site",
    kind=Kind.TABLE,
    asks=(replace(_SITES, columns=newest(["aqi", "aqi_mean", "indicative"])),),
    fields=(HIDDEN_TIME, SITE, AQI, AQI_MEAN, INDICATIVE, COUNTY),
    worst=(AQI.name,),
    width=12,
    source=Source.ROLLUPS,
    empty="no hours yet",
)
_HOURS = hours("aqi by hour", DOMAIN, AQI, width=24)
BY_HOUR = replace(
    _HOURS,
    asks=[
        replace(ask, where=(*ask.where, compares("indicative", "=", grade)))
        for ask in _HOURS.asks
        for grade in GRADES
    ],
    marks=("indicative", ""),
)
BY_DAY = Panel(
    name="aqi by day",
    kind=Kind.LINES,
    asks=[
        Select(
            columns=[call("max", "aqi").named(field.name)],
            source="site_day",
            where=(
                *PLACE,
                is_text("domain", DOMAIN),
                compares("indicative", "=", grade),
                in_range(),
            ),
            every="1d",
            zone=ZONE,
        )
        for grade, field in GRADES.items()
    ],
    fields=tuple(GRADES.values()),
    width=12,
    source=Source.ROLLUPS,
    empty="no days yet",
)


def _measured(metric: str) -> Panel:
    """Return a metric of each site, as means of hours: raw rows of all stations would be too many."""
    unit = dictionary()[DOMAIN].metrics[metric].unit
    field = Field(name=metric, text=f"metric.{DOMAIN}.{metric}", unit=unit)
    return hours(metric, DOMAIN, field, call("mean", f"{metric}_mean"), source="rollup_hour")


PAGE = Page(
    name="air",
    variables=variables(),
    bands=(
        Band(
            height=4,
            panels=(
                over_sites("worst", "max", _SITES, AQI),
                over_sites("mean", "mean", _SITES, AQI_MEAN),
                *now_stats(DOMAIN, width=3),
            ),
        ),
        Band(height=9, panels=(SITES, sites_map(12, DOMAIN))),
        Band(height=8, panels=(open_incidents(DOMAIN),)),
        Band(height=9, panels=(BY_HOUR,)),
        Band(height=9, panels=(_measured("pm2_5"), _measured("pm10"))),
        Band(height=9, panels=(_measured("temperature"), _measured("humidity"))),
        Band(height=10, panels=(STATIONS,)),
        Band(height=9, panels=(BY_DAY, days_complete(DOMAIN, 12))),
        Band(height=8, panels=(sites_now(DOMAIN),)),
    ),
)
