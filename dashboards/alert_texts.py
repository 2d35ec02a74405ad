"""What alerts say, in English and in Traditional Chinese as Taiwan writes it.

Shape: `{{ … }}` is Grafana's to fill in. A text of a rule that no row may fire has no value and no site.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from dashboards.alerts import Rule
from dashboards.texts import Language
from exchange.towns import Town


class Words(NamedTuple):
    """What one rule says in one language."""

    title: str
    summary: str
    description: str


_SITE = "{{ $labels.site }}"
_DEVICE = "{{ $labels.device }}"
_DOMAIN = "{{ $labels.domain }}"
_COUNT = '{{ printf "%.0f" $values.B.Value }}'
_SHARE = "{{ humanizePercentage $values.B.Value }}"
_PLACE = re.compile(r"<[a-z]+>")
# What stands in <…> is filled in by `words`, from the county's file.

_ENGLISH = {
    "gateway-down": Words(
        "Gateway down",
        f"Gateway {_DEVICE} at {_SITE} (<county>) is down",
        "The broker lost it, or nothing comes of any of its devices. They are unknown: no alerts of their own.",
    ),
    "device-silent": Words(
        "Devices silent",
        f"{_COUNT} devices ({_DOMAIN}) at {_SITE} (<county>) are silent",
        "Their gateway is well, but nothing came from them for two intervals, on a radio for as"
        " many as its losses ask for.",
    ),
    "lamp-fault": Words(
        "Lamps out",
        f"{_COUNT} lamps at {_SITE} (<county>) are out",
        "In the newest night they reported a fault or stayed dark. It lasts until a night without one.",
    ),
    "day-burner": Words(
        "Lamps burn by day",
        f"{_COUNT} lamps at {_SITE} (<county>) burned by day yesterday",
        "By the sun at the site. It lasts until a day without one.",
    ),
    "air-unhealthy": Words(
        "Air unhealthy",
        f"AQI {_COUNT} at {_SITE} (<county>)",
        "The worst station's index in the newest finished hour is above <aqi>. From low-cost sensors it is indicative.",
    ),
    "car-park-full": Words(
        "Car park full",
        f"Car park {_SITE} (<county>) is {_SHARE} taken",
        "At least <full> of the bays that spoke within the last hour are occupied.",
    ),
    "car-lot-full": Words(
        "Car park full by its counter",
        f"Car park {_DEVICE} at {_SITE} (<county>) is {_SHARE} taken",
        "By the counter at its entrance, at least <full>.",
    ),
    "sensor-stuck": Words(
        "Sensors stuck",
        f"{_COUNT} devices ({_DOMAIN}) at {_SITE} (<county>) report values that do not move",
        "In the newest finished hour, by the gateway's mark `stuck`.",
    ),
    "day-incomplete": Words(
        "Day incomplete",
        f"{_SITE} ({_DOMAIN}, <county>): {_SHARE} of yesterday's samples arrived",
        "The target is <complete>. What still waits in gateways may come and mend it.",
    ),
    "ingest-late": Words(
        "Nothing new is stored",
        "No sample of <county>'s gateways is newer than <minutes> minutes",
        "Ingest, the broker or the way to it is late or stands still. Gateways keep what they have and send it later.",
    ),
    "watch-silent": Words(
        "Watch silent",
        "The watch over <county> wrote nothing for <minutes> minutes, or the store does not answer",
        "Until it is back, every alert about devices shows what was known last.",
    ),
    "rollups-silent": Words(
        "Rollups silent",
        "No finished hour of <county> was rolled up for four hours",
        "Until that goes on, alerts about lamps, air and stuck sensors show what was known last.",
    ),
}

_CHINESE = {
    "gateway-down": Words(
        "閘道器失聯",
        f"<county> {_SITE} 的閘道器 {_DEVICE} 失聯",
        "訊息代理與它斷線，或所有設備都沒有資料。所屬設備列為「不明」，不算失聯，不另外示警。",
    ),
    "device-silent": Words(
        "設備失聯",
        f"<county> {_SITE} 有 {_COUNT} 部設備（{_DOMAIN}）失聯",
        "閘道器正常，但這些設備沒有資料的時間，已超過各設備的容許時間。",
    ),
    "lamp-fault": Words(
        "路燈故障",
        f"<county> {_SITE} 有 {_COUNT} 盞路燈故障不亮",
        "最近一夜回報故障，或該亮而未亮；直到有一夜沒有才解除。",
    ),
    "day-burner": Words(
        "路燈白天亮著",
        f"<county> {_SITE} 有 {_COUNT} 盞路燈昨日白天亮著",
        "以場域所在地的日出日落判斷；直到有一天沒有才解除。",
    ),
    "air-unhealthy": Words(
        "空氣品質不良",
        f"<county> {_SITE} 的 AQI 為 {_COUNT}",
        "最近一個完整小時，最差測站的空氣品質指標超過 <aqi>。低成本感測器的數值僅供參考。",
    ),
    "car-park-full": Words(
        "停車場滿場",
        f"<county> {_SITE} 停車場已占用 {_SHARE}",
        "最近一小時內有回報的車位，至少 <full> 已占用。",
    ),
    "car-lot-full": Words(
        "停車場滿場（計數器）",
        f"<county> {_SITE} 停車場 {_DEVICE} 已占用 {_SHARE}",
        "依出入口計數器，至少 <full> 已占用。",
    ),
    "sensor-stuck": Words(
        "感測器數值不動",
        f"<county> {_SITE} 有 {_COUNT} 部設備（{_DOMAIN}）的數值不動",
        "最近一個完整小時內，閘道器註記為 `stuck`。",
    ),
    "day-incomplete": Words(
        "前一日資料不完整",
        f"<county> {_SITE}（{_DOMAIN}）：昨日樣本收到 {_SHARE}",
        "目標為 <complete>。仍存在閘道器內的樣本，補送後數字會回升。",
    ),
    "ingest-late": Words(
        "沒有新資料存入",
        "<county> 的閘道器已超過 <minutes> 分鐘沒有新樣本存入",
        "收訊服務、訊息代理或途中網路延遲或停止。資料仍保存在閘道器，之後會補送。",
    ),
    "watch-silent": Words(
        "監看服務沒有回應",
        "<county> 的監看服務已超過 <minutes> 分鐘沒有寫入，或資料庫沒有回應",
        "恢復之前，所有設備警示只代表最後所知的狀況。",
    ),
    "rollups-silent": Words(
        "統計服務沒有回應",
        "<county> 已超過四小時沒有新的小時統計",
        "恢復之前，路燈、空氣與感測器數值不動等警示只代表最後所知的狀況。",
    ),
}


def words(rule: Rule, town: Town, language: Language) -> Words:
    """Return what a rule of a county says. Raises: KeyError for a rule without words."""
    limits = town.alerts
    known = {
        "<county>": town.name.zh_tw if language == "zh-TW" else town.name.en,
        "<minutes>": str(limits.lag_minutes),
        "<aqi>": str(limits.aqi),
        "<full>": f"{limits.car_park_full_percent:g} %",
        "<complete>": f"{limits.completeness_percent:g} %",
    }
    texts = (_CHINESE if language == "zh-TW" else _ENGLISH)[rule.name]
    return Words(*(_PLACE.sub(lambda place: known[place[0]], text) for text in texts))
