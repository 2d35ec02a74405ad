"""What each domain adds to the statistics of its metrics: a table of pure functions, one row a domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from typing import Any, NamedTuple, TypeAlias

from ingest.rollups import air_quality, energy, lamps, parking
from ingest.rollups.samples import Fields, Row
from ingest.rollups.settings import SiteSettings
from ingest.rollups.spans import Bounds, Span

Hour: TypeAlias = Callable[[Span, SiteSettings], Fields]
"""A device's hour from its values."""
Chain: TypeAlias = Callable[[Sequence[Row], date, SiteSettings], Fields]
"""What a device's hour gains from the rows of the hours before it; its own is the last."""
DeviceDay: TypeAlias = Callable[[Sequence[Row], date, Bounds, Bounds, SiteSettings], Fields]
"""A device's day from its hours, the day's bounds and those of the night that begins on it."""
OfDevices: TypeAlias = Callable[[Sequence[Row], SiteSettings], Fields]
"""A site's hour or day from its devices' rows."""
Faults: TypeAlias = Callable[[Row, str, SiteSettings], Fields]
"""What of a device's day is to be read where there was a fault."""
Digest: TypeAlias = Callable[[Span, SiteSettings], Any]
"""What a site's row needs of a device's values, where no row of the device may tell it."""
Combine: TypeAlias = Callable[[Sequence[Any]], Fields]
"""A site's hour or day from such digests."""

CHAINED_HOURS = air_quality.HOURS_BACK - 1


class Derivation(NamedTuple):
    """A domain's functions, where it has them.

    Shape: `written` names the fields that `hour` and `chain` may give, `reads` those of devices' rows that a site's
        look at, `faulty` those of `faults` that say whether there was one; `night` is whether a day's row looks at
        hours from 24 h before the day to the next noon.
    """

    hour: Hour | None = None
    chain: Chain | None = None
    day: DeviceDay | None = None
    site_hour: OfDevices | None = None
    site_day: OfDevices | None = None
    digest: Digest | None = None
    combine: Combine | None = None
    faults: Faults | None = None
    night: bool = False
    written: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    faulty: tuple[str, ...] = ()


NONE = Derivation()


DERIVATIONS = {
    "air": Derivation(
        hour=air_quality.hour,
        chain=air_quality.chain,
        day=air_quality.day,
        site_hour=air_quality.site_hour,
        site_day=air_quality.site_day,
        written=air_quality.WRITES,
        reads=air_quality.READS,
    ),
    "parking": Derivation(digest=parking.digest, combine=parking.combine),
    "power": Derivation(
        hour=energy.hour,
        day=energy.day,
        site_hour=energy.site_hour,
        site_day=energy.site_hour,
        night=True,
        written=energy.WRITES,
        reads=energy.READS,
    ),
    "streetlight": Derivation(
        hour=lamps.hour,
        day=lamps.day,
        site_hour=lamps.site_hour,
        site_day=lamps.site_day,
        faults=lamps.faults,
        night=True,
        written=lamps.WRITES,
        reads=lamps.READS,
        faulty=lamps.FAULTY,
    ),
}
