"""`onestreet rollups baseline`: what the lamps of each site took in some nights, as settings to paste."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import date
from typing import NamedTuple
from zoneinfo import ZoneInfo

from ingest.days import MS_NS, day_of
from ingest.rollups.energy import MeasuredWatts
from ingest.rollups.settings import DEFAULTS, SiteSettings
from ingest.rollups.site_days import DAY
from ingest.stores import Part, Store

DOMAIN = "streetlight"
_FIELDS = ["night_energy_wh", "night_energy_gap_wh", "night_energy_known_s", "night_burning_s"]


class Baseline(NamedTuple):
    """What was measured at a site, `county/site`."""

    site: str
    measured: MeasuredWatts
    meter_class_percent: float

    def text(self, *, each: bool = False) -> str:
        """Return it as lines of a town's file, with `each` lamp's watts beside the site's."""
        found = self.measured
        error_percent = found.uncertainty_percent(self.meter_class_percent)
        lines = [
            f"# {self.site}: {found.nights} nights, {len(found.lamps)} lamps, {found.lamp_nights} nights of lamps",
            f"lamp_w = {found.watts:.1f}",
        ]
        if error_percent is None:
            lines.append(
                "# of one night: how nights differ is not known 只有一晚，無法得知各晚差異"
            )
        else:
            lines.append(f"lamp_w_uncertainty_percent = {error_percent:.1f}")
        if each:
            watts = ", ".join(
                f"{lamp} = {watts:.1f}" for lamp, watts in sorted(found.lamps.items())
            )
            lines.append(f"lamp_watts = {{ {watts} }}")
        return "\n".join(lines)


async def measured(
    kept: Store,
    zones: Mapping[str, ZoneInfo],
    sites: Mapping[str, SiteSettings],
    first: date,
    last: date,
) -> AsyncIterator[Baseline]:
    """Yield what was measured at each site in the nights that begin on these days. Raises: StoreError."""
    for county, zone in zones.items():
        start_ns, end_ns = day_of(zone, first).start_ns, day_of(zone, last).end_ns
        for site in await kept.sites(DAY, county):
            watts = MeasuredWatts()
            part = Part(DAY, county, site, start_ns, end_ns, domain=DOMAIN)
            async for found in kept.device_rows(part, _FIELDS):
                for place, time_ns in enumerate(found.times_ns):
                    row = {name: column[place] for name, column in found.columns.items()}
                    known = {name: value for name, value in row.items() if value is not None}
                    watts.add({"device": found.device, "start_ms": time_ns // MS_NS, **known})
            if watts.nights:
                name = f"{county}/{site}"
                settings = sites.get(name) or sites.get(county, DEFAULTS)
                yield Baseline(name, watts, settings.meter_class_percent)
