"""A lookout that tests drive: time passes when they say so."""

from __future__ import annotations

from random import Random
from zoneinfo import ZoneInfo

from exchange.readings import Sample
from exchange.states import Descriptor, Location, State
from exchange.topics import Topic
from ingest.days import Days
from ingest.registry import DeviceId
from ingest.stores import Point
from ingest.watch.figures import Figures
from ingest.watch.liveness import Status
from ingest.watch.lookout import Lookout, Now

COUNTY, SITE = "tw-tpe", "street"
NOON_MS = 1_795_000_000_000
EPOCH = 1_790_000_000_777
LIMIT = 1_000_000


def status_of(lookout: Lookout, device: str) -> Status | None:
    """Return how a device of the county is, None when it is not known."""
    watched = lookout._watched.get(DeviceId(COUNTY, device))
    return None if watched is None else watched.status


class Street:
    """One county. Shape: `now_s` is the monotonic clock; UTC is `begun_ms` and as much later."""

    def __init__(
        self,
        *,
        zone: str = "Asia/Taipei",
        begun_ms: int = NOON_MS,
        every_s: float = 300.0,
        flaps_per_h: int = 6,
        is_seeing: bool = True,
    ) -> None:
        self.begun_ms = begun_ms
        self.now_s = 0.0
        days = Days(ZoneInfo(zone))
        self.lookout = Lookout(
            lambda _county: days,
            every_s=every_s,
            flaps_per_h=flaps_per_h,
            random=Random(1),
        )
        self.written: list[Point] = []
        self._seqs: dict[str, int] = {}
        if is_seeing:
            self.lookout.seeing(self.now, continued=False)

    @property
    def now(self) -> Now:
        return Now(self.now_s, self.begun_ms + round(1000 * self.now_s))

    def state(
        self,
        device: str,
        gateway: str = "gw-1",
        *,
        online: bool = True,
        interval_s: float = 60.0,
        epoch: int = EPOCH,
        transport: str = "modbus",
        location: Location | None = None,
        site: str = SITE,
    ) -> None:
        """Have a gateway state a device; itself, when they have one name."""
        descriptor = Descriptor(transport=transport, location=location)
        state = State(v=1, online=online, interval_s=interval_s, epoch=epoch, descriptor=descriptor)
        self.lookout.take_state(self.topic(device, gateway, "state", site), state, self.now)

    def empty(self, device: str, gateway: str = "gw-1", *, site: str = SITE) -> None:
        self.lookout.take_state(self.topic(device, gateway, "state", site), None, self.now)

    def hear(
        self, device: str, gateway: str = "gw-1", *, age_s: float = 0.0, epoch: int = EPOCH
    ) -> None:
        """Take one sample, the next one of the device."""
        seq = self._seqs.get(device, -1) + 1
        self._seqs[device] = seq
        sample = Sample(self.now.ms - round(1000 * age_s), epoch, seq, {})
        self.lookout.take_readings(self.topic(device, gateway, "readings"), [sample], self.now)

    def skip(self, device: str, samples: int = 1) -> None:
        """Lose samples for ever."""
        self._seqs[device] = self._seqs.get(device, -1) + samples

    def pass_time(self, seconds: float, *, step_s: float = 0.25) -> None:
        """Let time pass, sweeping and writing."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s = min(self.now_s + step_s, end_s)
            self.lookout.sweep(self.now)
            self.written += self.lookout.rows(self.now, LIMIT)
            self.written += self.lookout.day_rows(self.now, step_s)

    def status(self, device: str) -> Status | None:
        return status_of(self.lookout, device)

    def figures(self, device: str) -> Figures:
        """Return a device's figures of today so far."""
        watched = self.lookout._watched[DeviceId(COUNTY, device)]
        self.lookout._spend(watched, self.now)
        return watched.calendar.today

    def rows(self, measurement: str, device: str | None = None) -> list[Point]:
        """Return what was written, as a store holds it: one row a key."""
        self.written += self.lookout.rows(self.now, LIMIT)
        found: dict[object, Point] = {}
        for point in self.written:
            if point.series.measurement == measurement and device in (None, point.series.device):
                found[point.series, point.time_ns] = point
        return list(found.values())

    def incidents(self, kind: str | None = None, *, still: bool | None = None) -> list[Point]:
        """Return the rows of incidents: all, or those that are open or not any more."""
        return [
            row
            for row in self.rows("incident")
            if kind in (None, row.fields["kind"]) and still in (None, bool(row.fields["open"]))
        ]

    @staticmethod
    def topic(device: str, gateway: str, channel: str, site: str = SITE) -> Topic:
        domain = "gateway" if device == gateway else "air"
        return Topic(COUNTY, site, gateway, domain, device, channel)  # type: ignore[arg-type]  # the test's word
