"""What the watch's kinds of incidents are called: `onestreet incidents` and the pages say it alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Called(NamedTuple):
    """A name in both languages. Shape: in English as it begins a sentence."""

    en: str
    zh_tw: str


CALLED: Mapping[str, Called] = {
    "gateway_down": Called("Gateway down", "閘道器失聯"),
    "gateway_gone": Called("Gateway removed", "閘道器已移除"),
    "device_down": Called("Device down", "設備失聯"),
    "flapping": Called("Comes and goes", "時斷時續"),
    "row_clash": Called("Two samples, one time", "兩筆樣本時間相同"),
    "two_gateways": Called("Two gateways, one device", "兩部閘道器搶用同一設備"),
}
"""By kind, as the rows have it (docs/exchange/store.md)."""
