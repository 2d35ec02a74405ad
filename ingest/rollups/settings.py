"""What a site's arithmetic goes by; everything has a default."""

from __future__ import annotations

from typing import Annotated

import msgspec

Positive = Annotated[float, msgspec.Meta(gt=0)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]


class SiteSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one site or county."""

    hold_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 900.0
    """A value holds until the next row, but no longer; afterwards nothing is known."""

    # Air
    reference_stations: list[str] = []
    """Devices of reference grade; what any other says is labelled indicative."""
    cf1_metric: str = ""
    """A vendor's metric with the CF=1 mass of a PMS5003, to be corrected beside the raw value; empty is off."""

    # Lamps
    lat: Annotated[float, msgspec.Meta(ge=-90, le=90)] | None = None
    lon: Annotated[float, msgspec.Meta(ge=-180, le=180)] | None = None
    """Where the sun is looked at; without it nothing is said of lamps that burn by day."""
    burning_w: Positive = 5.0
    """A lamp that takes less is dark, whatever it says."""
    fault_s: Positive = 900.0
    """A lamp that is faulty for so long within an hour is faulty."""
    day_tolerance_s: Annotated[float, msgspec.Meta(ge=0, le=7200)] = 1800.0
    """A lamp may burn for so long after sunrise and before sunset."""
    day_burning_s: Positive = 1800.0
    """A lamp that burns for so long of a day, apart from that, burns by day."""
    burns_by_day: list[str] = []
    """Lamps that are meant to: in tunnels and underpasses."""
    switchings_a_night: Annotated[int, msgspec.Meta(ge=2)] = 6
    """A lamp that goes on or off more often is cycling."""

    # Energy
    lamp_w: Positive | None = None
    """What a lamp would take at full output or before dimming; without it nothing is said of savings."""
    lamp_watts: dict[str, Positive] = {}
    """The same for single lamps."""
    lamp_w_uncertainty_percent: Percent = 10.0
    """The limit of error of these watts; a luminaire may differ by so much from its plate (IEC 62722-2-1)."""
    meter_class_percent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 2.0
    """The limit of error of what measures the energy; class 1 of IEC 62053-21 is 1."""

    most_w: Positive = 2000.0
    """A lamp's counter that rises faster did not count: it was replaced, or set."""
    most_meter_w: Positive = 1_000_000.0
    """The same of a meter of the domain `power`."""

    # Parking
    full_percent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 95.0
    """A lot is full from this part of its places on."""


DEFAULTS = SiteSettings()
