"""Judgement: how a device is, from what was heard of it and of its gateway."""

from __future__ import annotations

import msgspec

from ingest.continuity import Continuity
from ingest.registry import DeviceId, Registered, Registry
from ingest.watch.figures import Calendar
from ingest.watch.incidents import Book, Cause
from ingest.watch.liveness import ALIVE, LATE_GRACE_S, Losses, Status, down_s, late_s
from ingest.watch.maintenance import Schedule
from ingest.watch.moments import NEVER_S, Now
from ingest.watch.sites import Site


class Gateway(msgspec.Struct, eq=False):
    """What is known of a gateway beside its state. Times are of the monotonic clock."""

    heard_s: float = NEVER_S
    back_s: float = NEVER_S
    is_silent: bool = False
    gone_s: float | None = None


class Watched(msgspec.Struct, gc=False, eq=False):
    """A device between its first state and its retirement. Times in seconds are of the monotonic clock."""

    known: Registered
    site: Site
    gateway: Gateway
    calendar: Calendar
    begun_s: float
    since_ms: int
    written_s: float
    due_s: float = 0.0
    heard_s: float = NEVER_S
    changed_s: float = NEVER_S
    status: Status = Status.UNKNOWN
    flapping: bool = False
    has_today: bool = False
    has_before: bool = False
    losses: Losses | None = None
    continuity: Continuity = msgspec.field(default_factory=Continuity)
    drops: list[float] | None = None

    @property
    def name(self) -> DeviceId:
        return self.known.name

    @property
    def patience_s(self) -> float:
        """After how much silence it is down."""
        return down_s(self.known.interval_s, self.losses)


class Judge:
    """Says how devices are. `seeing_s` is since when the watch hears them, None while it does not."""

    def __init__(self, registry: Registry, devices: dict[DeviceId, Watched], book: Book) -> None:
        self.seeing_s: float | None = None
        self.schedule = Schedule()
        self._registry = registry
        self._devices = devices
        self._book = book

    def status(self, watched: Watched, now: Now) -> tuple[Status, Cause | None]:
        """Return how a device is, and what it is down of, if it is."""
        known, gateway = watched.known, watched.gateway
        county, device = known.name
        if self.schedule.covers(county, known.site, known.gateway, device, now.ms):
            return Status.MAINTENANCE, None
        if known.is_gateway:
            if not known.online:
                return Status.DOWN, "gateway_offline"
            if gateway.is_silent:
                return Status.DOWN, "gateway_silent"
            return Status.UP, None
        if self.is_away(watched):
            return Status.UNKNOWN, None
        if not known.online:
            return Status.DOWN, "gateway_says"
        # Compared as `next_s` adds, to the last bit: who is looked at when it is due, is due.
        if now.s < watched.heard_s + late_s(known.interval_s):
            return Status.UP, None
        patience_s = watched.patience_s
        if now.s < watched.heard_s + patience_s:
            return Status.LATE, None
        if now.s < self.listened_since_s(watched) + patience_s:
            return Status.UNKNOWN, None
        return Status.DOWN, "silent"

    def next_s(self, watched: Watched, now_s: float) -> float:
        """Return when a device will be another way if nothing is heard of it; infinity, when never."""
        late_from_s = watched.heard_s + late_s(watched.known.interval_s)
        if now_s < late_from_s:
            return late_from_s
        patience_s = watched.patience_s
        moments = (
            watched.heard_s + patience_s,
            self.listened_since_s(watched) + patience_s,
        )
        return min((moment for moment in moments if moment > now_s), default=float("inf"))

    def is_away(self, watched: Watched) -> bool:
        """Whether nothing can be known of a device because of its gateway."""
        gateway = watched.gateway
        return (
            gateway.gone_s is not None
            or gateway.is_silent
            or self._registry.gateway_online(*watched.known.behind) is False
        )

    def gateway_is_silent(self, watched: Watched, now_s: float) -> bool:
        """Whether a device's silence is its gateway's: of all that should have been heard too, nothing was."""
        known, others = watched.known, 0
        if self._registry.gateway_online(*known.behind) is None:
            return False
        for name in self._registry.behind(*known.behind):
            other = self._devices[name]
            interval_s = other.known.interval_s
            if other is watched or not other.known.online or interval_s > known.interval_s:
                continue
            if now_s - other.heard_s <= interval_s + LATE_GRACE_S:
                return False
            others += self._is_missed(other, now_s)
        return others > 0

    def _is_missed(self, other: Watched, now_s: float) -> bool:
        """Whether the silence of a device is news: it was well, or it is called down within an interval.

        An interval, since states that came together are not of one moment. Who was down before is no witness.
        """
        if other.status is not Status.UNKNOWN:
            return other.heard_s > NEVER_S and other.status in ALIVE
        down_from_s = self.listened_since_s(other) + other.patience_s
        is_due = now_s + other.known.interval_s >= down_from_s
        return is_due and self._book.get(other.name, "device_down") is None

    def says_nothing(self, watched: Watched, now_s: float) -> bool:
        """Whether a gateway that told of itself has long told of nothing, neither itself nor a device."""
        since_s = self.nothing_since_s(watched)
        return watched.heard_s > NEVER_S and now_s >= since_s + watched.patience_s

    def nothing_since_s(self, watched: Watched) -> float:
        """Return since when nothing came of a device's gateway, as far as that could have been heard."""
        return max(watched.gateway.heard_s, self.listened_since_s(watched))

    def is_steady(self, watched: Watched) -> bool:
        """Whether nothing but losses explains the silence since a device's last sample."""
        return (
            watched.status in (*ALIVE, Status.DOWN)
            and watched.known.online
            and watched.heard_s > self.listened_since_s(watched)
        )

    def listened_since_s(self, watched: Watched) -> float:
        """Return since when a device would have been heard."""
        seeing_s = NEVER_S if self.seeing_s is None else self.seeing_s
        return max(watched.begun_s, watched.gateway.back_s, seeing_s)
