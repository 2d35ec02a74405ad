"""A few rows of every measurement that pages read, as of now: two counties, three sites, every domain.

The shapes are those of docs/exchange/store.md; the figures are easy to recognise in an answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from exchange.dictionary import dictionary

ZONE = ZoneInfo("Asia/Taipei")
SITES = (("tw-tpe", "xinyi"), ("tw-tpe", "neihu"), ("tw-khh", "new-bay"))
DAYS = 7
OPEN_INCIDENTS = frozenset(number for number in range(18) if number % 5)
"""Which of the devices, one of each domain in each site, have one that is not over."""
REFERENCE_SITE = "neihu"
"""Whose stations are all of reference grade."""
Value = float | int | str


@dataclass(frozen=True)
class ShownTown:
    """Line protocol of both buckets. Units: `now_s` since 1970."""

    now_s: float

    @classmethod
    def of_now(cls) -> ShownTown:
        return cls(time.time())

    def raw(self) -> str:
        """Return the rows of the raw bucket."""
        return "\n".join(
            [*self._samples(), *self._devices(), *self._sites(), *self._days(), *self._events()]
        )

    def rollups(self) -> str:
        """Return the rows of the bucket of rollups."""
        return "\n".join([*self._rollups(hours=True), *self._rollups(hours=False)])

    def _ago(self, minutes: float) -> int:
        return int((self.now_s - 60 * minutes) * 1000)

    def _midnight(self, days_ago: int) -> int:
        today = datetime.fromtimestamp(self.now_s, UTC).astimezone(ZONE)
        day = (today - timedelta(days=days_ago)).replace(hour=0, minute=0, second=0, microsecond=0)
        return int(day.timestamp() * 1000)

    def _samples(self) -> Iterator[str]:
        for tags, domain in _devices():
            metrics = dictionary()[domain].metrics
            for minutes in (1, 61, 60 * 24 * 3):
                fields: dict[str, Value] = {"epoch": 1, "seq": 7}
                for name, metric in metrics.items():
                    low = metric.range[0] if metric.range else 0.0
                    fields[name] = 1 if metric.type != "float" else max(low, 0.0) + 1.5
                yield _line(domain, tags, fields, self._ago(minutes))

    def _devices(self) -> Iterator[str]:
        for number, (tags, domain) in enumerate(_devices()):
            state = number % 5
            words = ("up", "late", "down", "unknown", "maintenance")
            for minutes in (2, 7, 600):
                fields: dict[str, Value] = {
                    "lat": 25.03 + number / 100,
                    "lon": 121.5 + number / 100,
                    "label": f"號{number}",
                    "asset_id": f"A-{number}",
                    "gateway": "gw-1",
                    "interval_s": 60.0,
                    "up": int(state < 2),
                    "status": words[state],
                    "state": state,
                    "since": "2026-11-01T00:00:00.000Z",
                    "age_s": 12.5,
                    "incident": "",
                    "flapping": 0,
                    "gateway_up": 1,
                }
                yield _line("device", {**tags, "domain": domain}, fields, self._ago(minutes))

    def _sites(self) -> Iterator[str]:
        for place, domain in _places():
            for minutes in (1, 2, 600):
                fields: dict[str, Value] = {
                    "devices": 10,
                    "up": 5,
                    "late": 1,
                    "down": 2,
                    "unknown": 1,
                    "maintenance": 1,
                    "incidents": _open_incidents(domain, **place),
                    "completeness": 0.975,
                    "availability": 0.96,
                    "lat": 25.03,
                    "lon": 121.56,
                }
                yield _line("site_now", {**place, "domain": domain}, fields, self._ago(minutes))
                for name in ("completeness", "availability", "lat", "lon"):
                    del fields[name]
                county = {"county": place["county"]}
                fields["incidents"] = _open_incidents(domain, **county)
                where = {**county, "domain": domain}
                yield _line("county_now", where, fields, self._ago(minutes))

    def _days(self) -> Iterator[str]:
        for days_ago in range(DAYS):
            at = self._midnight(days_ago)
            fields: dict[str, Value] = {
                "expected": 1000,
                "received": 950,
                "missing": 50,
                "completeness": 0.95,
                "availability": 0.9,
                "up_s": 900.0,
                "down_s": 100.0,
                "unknown_s": 50.0,
                "maintenance_s": 0.0,
            }
            hour: dict[str, Value] = {"devices": 10, "down": 2, "late": 1, "unknown": 1}
            for place, domain in _places():
                yield _line("site_day_state", {**place, "domain": domain}, fields, at)
                yield _line("site_hour_state", {**place, "domain": domain}, hour, at)
            for tags, domain in _devices():
                yield _line("device_day", {**tags, "domain": domain}, fields, at)

    def _events(self) -> Iterator[str]:
        for number, (tags, domain) in enumerate(_devices()):
            is_gateway = domain == "gateway"
            fields: dict[str, Value] = {
                "id": f"{number}",
                "kind": "gateway_down" if is_gateway else "device_down",
                "open": int(number in OPEN_INCIDENTS),
                "ended": 0,
                "duration_s": 720.0,
                "devices": 12,
                "cause": "",
                "label": f"號{number}",
            }
            yield _line("incident", {**tags, "domain": domain}, fields, self._ago(30 + number))
            fields = {"id": f"c-{number}", "status": "done", "reason": "", "readback": "level=70"}
            yield _line("command", tags, fields, self._ago(40 + number))

    def _rollups(self, *, hours: bool) -> Iterator[str]:
        name = "hour" if hours else "day"
        whole = int(self.now_s // 3600 * 3600 * 1000)
        moments = (
            [whole - 3_600_000 * ago for ago in range(1, 49)]
            if hours
            else [self._midnight(ago) for ago in range(1, DAYS)]
        )
        for at in moments:
            for tags, domain in _devices():
                fields = {"rows": 60, **_DEVICE_FIELDS.get(domain, {})}
                for metric in dictionary()[domain].metrics:
                    fields |= {f"{metric}_mean": 20.5, f"{metric}_max": 30.5}
                yield _line(f"rollup_{name}", {**tags, "domain": domain}, fields, at)
                if domain == "streetlight" and not hours:
                    yield _line("fault_day", {**tags, "domain": domain}, _FAULT, at)
            for place, domain in _places():
                fields = {"devices": 10, "completeness": 0.97, **_SITE_FIELDS.get(domain, {})}
                if domain == "air":
                    fields["indicative"] = int(place["site"] != REFERENCE_SITE)
                yield _line(f"site_{name}", {**place, "domain": domain}, fields, at)


_FAULT: Mapping[str, Value] = {
    "faulty": 1,
    "day_burner": 1,
    "cycling": 0,
    "burning_s": 40_000.0,
    "day_burning_s": 7200.0,
    "switchings": 2,
}
_DEVICE_FIELDS: Mapping[str, Mapping[str, Value]] = {
    "streetlight": {
        "faulty": 1,
        "burning_s": 40_000.0,
        "day_burning_s": 7200.0,
        "switchings": 2,
        "energy_wh": 500.0,
    },
    "air": {
        **{f"aqi_{metric}": 60 for metric in ("pm2_5", "pm10", "o3", "co", "so2", "no2")},
        "aqi": 60,
        "indicative": 1,
    },
}
_SITE_FIELDS: Mapping[str, Mapping[str, Value]] = {
    "streetlight": {
        "lamps_out": 1,
        "day_burners": 2,
        "cycling": 3,
        "energy_wh": 5000.0,
        "night_energy_wh": 5000.0,
        "night_baseline_wh": 8000.0,
        "night_saved_wh": 3000.0,
        "night_saved_low_wh": 2500.0,
        "night_saved_high_wh": 3500.0,
    },
    "parking": {
        "occupancy": 0.7,
        "turnover": 6.5,
        "stays": 40,
        "dwell_median_s": 2400.0,
        "dwell_p90_s": 9000.0,
    },
    "air": {"aqi": 80, "aqi_mean": 60.5},
}


def _places() -> Iterator[tuple[dict[str, str], str]]:
    for county, site in SITES:
        for domain in dictionary():
            yield {"county": county, "site": site}, domain


def _devices() -> Iterator[tuple[dict[str, str], str]]:
    for place, domain in _places():
        yield {**place, "device": f"{place['site']}-{domain}-1"}, domain


def _open_incidents(domain: str, **place: str) -> int:
    """Return how many devices of a domain in a county, or in one of its sites, have one."""
    here = {*place.items()}
    found = {
        number
        for number, (tags, of_domain) in enumerate(_devices())
        if of_domain == domain and here <= tags.items()
    }
    return len(OPEN_INCIDENTS & found)


def _line(measurement: str, tags: Mapping[str, str], fields: Mapping[str, Value], ms: int) -> str:
    """Return line protocol; nothing here needs an escape."""
    labels = "".join(f",{name}={value}" for name, value in sorted(tags.items()))
    shown = ",".join(f"{name}={_shown(value)}" for name, value in fields.items())
    return f"{measurement}{labels} {shown} {ms}000000"


def _shown(value: Value) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value}i" if isinstance(value, int) else repr(value)
