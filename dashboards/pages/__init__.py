"""The pages, in the order of their links."""

from __future__ import annotations

from dashboards.pages import air, device, gateways, overview, parking, site, streetlights
from dashboards.panels import Page

PAGES: tuple[Page, ...] = (
    overview.PAGE,
    streetlights.PAGE,
    parking.PAGE,
    air.PAGE,
    gateways.PAGE,
    site.PAGE,
    device.PAGE,
)
