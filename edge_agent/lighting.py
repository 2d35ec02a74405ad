"""Lamp programmes: which level holds when, by the sun and by the clock, and the switching itself.

A programme gives the steps of each civil day in the town's zone; the step whose moment passed last holds. So after a
start, an outage or a jump of the clock what should hold now is plain, however long ago its moment was. Nothing here
needs the uplink. A command that somebody issued holds until the next step. A lamp that was away is given what holds
again: power that returns has set it to a level of its own. While the clock is not known nothing is switched: the lamps
stay as they are.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as time_of_day
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, Protocol
from zoneinfo import ZoneInfo

import msgspec

from device_drivers.kit.driver import Value
from edge_agent.commands import Outcome, WallClock, unfit
from edge_agent.ledger import Issued, LedgerBlocked
from exchange.errors import ConfigError
from exchange.states import Location, Text
from exchange.topics import END, Level

if TYPE_CHECKING:
    from edge_agent.config import Device

log = logging.getLogger(__name__)

COMMAND: Final = "set_level"
LOOK_EVERY_S = 15.0  # a clock that is set is noticed by then
ORDER_S = 60.0
RETRY_FIRST_S = 2.0
RETRY_LAST_S = 300.0
POWER_CYCLE: Final = "power_cycle"
"""How a metric ends, of whatever maker, that says: power returned, and no level was given since (IEC 62386-102)."""
SLEW_MS = 120_000
"""A clock that goes back by less does not bring back the step before."""
_LOOK_BACK_DAYS = (3, 30, 400)
_HORIZON_DEGREES = {"sunrise": -0.833, "sunset": -0.833, "dawn": -6.0, "dusk": -6.0}
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_AT = re.compile(r"(?:(sunrise|sunset|dawn|dusk)([+-]\d{1,3})?|(\d{1,2}):(\d{2}))")
_DATES = re.compile(r"(?:(\d{4})-)?(\d{2})-(\d{2})")

# ------------------------------------------------------------------------------------------------ configuration


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: no key that nobody reads."""


class Step(_Table, frozen=True, kw_only=True):
    """From `at` on the lamps have this level.

    Shape: `at` is a time of the day, `23:30` (up to `35:59`, which is of the day after), or `sunset`, `sunrise`,
        `dusk`, `dawn` (of civil twilight) with minutes before or after, `sunset+10`.
    Units: `level` in percent; 0 is off.
    """

    at: Annotated[str, msgspec.Meta(pattern=rf"^{_AT.pattern}{END}")]
    level: Annotated[int, msgspec.Meta(ge=0, le=100)]


class Days(_Table, frozen=True, kw_only=True):
    """Days with steps of their own: those that fit both lists; one that is left out fits every day.

    Shape: of `dates` each is one day, `2027-02-05`, or a range with both ends, `2027-02-05..2027-02-20`; without a year
        they are of every year.
    """

    steps: list[Step]
    weekdays: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] = []
    dates: list[
        Annotated[str, msgspec.Meta(pattern=rf"^{_DATES.pattern}(\.\.{_DATES.pattern})?{END}")]
    ] = []

    def fit(self, day: date) -> bool:
        """Whether this civil day is one of them."""
        if self.weekdays and _WEEKDAYS[day.weekday()] not in self.weekdays:
            return False
        return not self.dates or any(_within(day, dates) for dates in self.dates)


class Programme(_Table, frozen=True, kw_only=True):
    """One `[[programme]]`: the lamps that are named, or hang on a cabinet or a circuit that is.

    Shape: the first of `days` that fits a civil day gives its steps, `steps` those of all other days.
    """

    id: Level
    steps: list[Step]
    days: list[Days] = []
    devices: list[Level] = []
    cabinets: list[Text] = []
    circuits: list[Text] = []
    stagger_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.5
    """Between two lamps of one bus, so that polls go on and the mains see no jump."""

    def lamps(self, devices: Sequence[Device]) -> list[Device]:
        """Return the devices that it switches."""
        return [
            device
            for device in devices
            if device.id in self.devices
            or (device.cabinet and device.cabinet in self.cabinets)
            or (device.circuit and device.circuit in self.circuits)
        ]

    def all_steps(self) -> Iterator[tuple[str, Step]]:
        """Yield every step with its key."""
        for index, step in enumerate(self.steps):
            yield f"steps[{index}]", step
        for number, days in enumerate(self.days):
            for index, step in enumerate(days.steps):
                yield f"days[{number}].steps[{index}]", step


def check(programme: Programme, devices: Mapping[str, Device], *, located: bool = True) -> None:
    """Check what types cannot say; `located` says that the gateway's place is known.

    Raises: ConfigError with the key in the programme's table, without a file.
    """
    for index, name in enumerate(programme.devices):
        if name not in devices:
            raise ConfigError(
                "", f"devices[{index}]", name, "must be the id of a device 必須是設備代號"
            )
    lamps = programme.lamps(list(devices.values()))
    if not lamps:
        allowed = "devices, cabinets or circuits must name at least one device 至少須指定一個設備"
        raise ConfigError("", "devices", programme.devices, allowed)
    for lamp in lamps:
        if COMMAND not in lamp.package.profile.commands:
            allowed = (
                f"takes no command {COMMAND}, its driver is {lamp.driver} 此設備不接受調光命令"
            )
            raise ConfigError("", "devices", lamp.id, allowed)
    steps = list(programme.all_steps())
    if not steps:
        raise ConfigError("", "steps", [], "must have at least one step 至少須有一個時段")
    for key, step in steps:
        anchor, _, hours, minutes = _AT.fullmatch(step.at).groups()  # type: ignore[union-attr]  # the type's pattern
        if anchor is None and (int(hours) > 35 or int(minutes) > 59):
            raise ConfigError(
                "", f"{key}.at", step.at, "a time from 00:00 to 35:59 時間須介於 00:00 至 35:59"
            )
        if anchor is not None and not located:
            allowed = "the sun's times need gateway.location 日出日落須設定 gateway.location"
            raise ConfigError("", f"{key}.at", step.at, allowed)
    for number, days in enumerate(programme.days):
        for index, dates in enumerate(days.dates):
            key = f"days[{number}].dates[{index}]"
            try:
                first, last = _ends(dates, 2028)  # a leap year: 02-29 is a day
            except ValueError as error:
                raise ConfigError(
                    "", key, dates, f"must be days of the calendar 日期有誤: {error}"
                ) from error
            years = {_DATES.fullmatch(end)[1] is None for end in dates.split("..")}  # type: ignore[index]  # the type's pattern
            if len(years) > 1 or (first > last and years == {False}):
                allowed = "from the earlier to the later day, both with a year or both without 起訖日期有誤"
                raise ConfigError("", key, dates, allowed)


def _ends(dates: str, year: int) -> tuple[date, date]:
    """Return first and last day; those without a year are of `year`. Raises: ValueError."""
    first, _, last = dates.partition("..")
    return _day(first, year), _day(last or first, year)


def _day(text: str, year: int) -> date:
    given, month, day = _DATES.fullmatch(text).groups()  # type: ignore[union-attr]  # the type's pattern
    return date(int(given or year), int(month), int(day))


def _within(day: date, dates: str) -> bool:
    """Compared as text, since an end of 02-29 is no day in most years."""
    first, _, last = dates.partition("..")
    last = last or first
    text = day.isoformat()[-len(first) :]
    if first <= last:
        return first <= text <= last
    return text >= first or text <= last  # without a year, over its end


# ----------------------------------------------------------------------------------------------------- the times


class Due(NamedTuple):
    """A step of one day. Units: `moment_ms` since 1970 UTC, `level` in percent."""

    moment_ms: int
    level: int


class Timeline:
    """The steps of a programme, one after the other, over all days."""

    def __init__(self, programme: Programme, zone: ZoneInfo, place: Location | None) -> None:
        """Without a place the sun's steps fall away."""
        self._programme, self._zone, self._place = programme, zone, place

    def holding(self, now_ms: int) -> Due | None:
        """Return the step that holds: the last one whose moment has passed. None when there is none in a year."""
        today = self._today(now_ms)
        for back in _LOOK_BACK_DAYS:
            first = today - timedelta(days=back)
            passed = [due for due in self._steps(first, today) if due.moment_ms <= now_ms]
            if passed:
                return passed[-1]
        return None

    def next(self, now_ms: int) -> Due | None:
        """Return the next step to come."""
        today = self._today(now_ms)
        for ahead in _LOOK_BACK_DAYS:
            steps = self._steps(today - timedelta(days=2), today + timedelta(days=ahead))
            for due in steps:
                if due.moment_ms > now_ms:
                    return due
        return None

    def _today(self, now_ms: int) -> date:
        return datetime.fromtimestamp(now_ms / 1000, self._zone).date()

    def _steps(self, first: date, last: date) -> list[Due]:
        """Return the steps of these days and their neighbours, in order; of one moment the later in the file counts."""
        found = []
        for number in range(-2, (last - first).days + 2):  # a step may lie in a neighbouring day
            day = first + timedelta(days=number)
            for step in self._of(day):
                moment = _moment(step.at, day, self._zone, self._place)
                if moment is not None:
                    found.append(Due(round(moment.timestamp() * 1000), step.level))
        return sorted(found, key=lambda due: due.moment_ms)

    def _of(self, day: date) -> list[Step]:
        fitting = (days.steps for days in self._programme.days if days.fit(day))
        return next(fitting, self._programme.steps)


@lru_cache(maxsize=4096)
def _moment(at: str, day: date, zone: ZoneInfo, place: Location | None) -> datetime | None:
    """Return when a step of this civil day is; None when the sun does not rise, or set, on it.

    A time that the clocks leave out comes as much later; of one that they show twice the first counts.
    """
    anchor, shift, hours, minutes = _AT.fullmatch(at).groups()  # type: ignore[union-attr]  # the type's pattern
    if anchor is None:
        over, hour = divmod(int(hours), 24)
        wall = time_of_day(hour, int(minutes))
        return datetime.combine(day + timedelta(days=over), wall, zone).astimezone(UTC)
    if place is None:
        return None
    moment = _of_the_sun(anchor, day, zone, place)
    return None if moment is None else moment + timedelta(minutes=int(shift or 0))


def _of_the_sun(anchor: str, day: date, zone: ZoneInfo, place: Location) -> datetime | None:
    """Return when the sun rises or sets on a civil day; None when it does not."""
    # By the sun's own clock it sets before midnight everywhere, so that a day has the sunset that follows its noon.
    solar = timezone(timedelta(minutes=round(4 * place.lon)))
    noon = datetime.combine(day, time_of_day(12), solar)
    noon += timedelta(days=(day - noon.astimezone(zone).date()).days)
    sun = _sun()
    observer = sun.Observer(place.lat, place.lon, 0.0)
    try:
        moment: datetime = getattr(sun, anchor)(observer, date=noon.date(), tzinfo=solar)
    except ValueError:
        # all day above the horizon, or below: it rose, or set, when the day began
        is_up = sun.elevation(observer, noon) > _HORIZON_DEGREES[anchor]
        if is_up != (anchor in ("sunrise", "dawn")):
            return None
        moment = noon - timedelta(hours=12)
    return moment.astimezone(UTC)


@cache
def _sun() -> Any:
    """Return astral, which is loaded only where a programme goes by the sun."""
    import astral.sun

    return astral.sun


# ------------------------------------------------------------------------------------------------- the switching


class Order(Protocol):
    """Has a device carry out an order of the gateway's own."""

    async def __call__(
        self,
        device_id: str,
        name: str,
        args: Mapping[str, Value],
        *,
        by: str,
        deadline_s: float,
        again: bool,
    ) -> Outcome: ...


class _Lamp(msgspec.Struct, eq=False):
    """What is known of one lamp."""

    device: Device
    programme: Programme
    timeline: Timeline
    settled: Due | None = None
    """The step that it has, or that was overridden."""
    disturbed: int = 0
    """How often something else than its programme may have changed its level."""
    is_power_new: bool = False
    """Whether it says itself that power has returned."""
    tries: int = 0
    retry_s: float = 0.0


class Lighting:
    """Switches the lamps of all programmes, for as long as `run` runs."""

    def __init__(
        self,
        clock: WallClock,
        order: Order,
        last_issued: Callable[[str, str], Awaitable[Issued | None]],
    ) -> None:
        """`last_issued` tells a device's last command that somebody issued and it carried out."""
        self._clock = clock
        self._order = order
        self._last_issued = last_issued
        self._lamps: dict[str, _Lamp] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}

    def serve(
        self,
        programmes: Sequence[Programme],
        devices: Sequence[Device],
        zone: ZoneInfo,
        place: Location | None,
    ) -> None:
        """These are the programmes from now on. A device of several has the first."""
        before, self._lamps = self._lamps, {}
        for programme in programmes:
            timeline = Timeline(programme, zone, place)
            for device in programme.lamps(devices):
                if device.id in self._lamps:
                    other = self._lamps[device.id].programme.id
                    log.error(
                        "a device of two programmes has the first",
                        extra={"device": device.id, "first": other, "second": programme.id},
                    )
                    continue
                lamp = _Lamp(device, programme, timeline)
                if (known := before.get(device.id)) is not None:
                    lamp.settled, lamp.is_power_new = known.settled, known.is_power_new
                self._lamps[device.id] = lamp

    def overridden(self, device: str, name: str, at_ms: int) -> None:
        """Somebody's command was carried out: it holds until the next step."""
        lamp = self._lamps.get(device)
        if lamp is not None and name == COMMAND:
            lamp.settled = lamp.timeline.holding(at_ms)
            lamp.tries, lamp.retry_s = 0, 0.0
            lamp.disturbed += 1

    def heard(self, device: str, metrics: Mapping[str, Value], *, was_away: bool) -> None:
        """A device was read; one that was away, or had no power, is given its level again."""
        lamp = self._lamps.get(device)
        if lamp is None:
            return
        is_power_new = any(value for name, value in metrics.items() if name.endswith(POWER_CYCLE))
        if was_away or (is_power_new and not lamp.is_power_new):
            lamp.settled, lamp.retry_s = None, 0.0
            lamp.disturbed += 1
        lamp.is_power_new = is_power_new

    async def run(self) -> None:
        """See to it, for ever, that every lamp has the level that holds."""
        try:
            while True:
                for bus in {lamp.device.bus for lamp in self._lamps.values()}:
                    if bus not in self._looking and self._pending(bus):
                        task = asyncio.create_task(self._switch(bus))
                        self._looking[bus] = task
                        task.add_done_callback(partial(self._over, bus))
                await asyncio.sleep(self._pause_s())
        finally:
            for task in self._looking.values():
                task.cancel()

    def _over(self, bus: str, task: asyncio.Task[None]) -> None:
        del self._looking[bus]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("lamps were not switched", extra={"bus": bus}, exc_info=error)

    def _pause_s(self) -> float:
        """Return how long there is nothing to do: to the next step, if it is near."""
        if not self._clock.known:
            return LOOK_EVERY_S
        now_ms = self._clock.now_ms()
        steps = {id(one.timeline): one.timeline for one in self._lamps.values()}.values()
        comes_ms = [due.moment_ms for line in steps if (due := line.next(now_ms)) is not None]
        left_s = [(ms - now_ms) / 1000 for ms in comes_ms]
        retries_s = [lamp.retry_s - time.monotonic() for lamp in self._lamps.values()]
        left_s += [wait_s for wait_s in retries_s if wait_s > 0]  # others are under way, or settled
        return max(0.05, min([LOOK_EVERY_S, *left_s]))

    def _pending(self, bus: str) -> list[tuple[_Lamp, Due]]:
        """Return the lamps of a bus that do not have what holds, and may be tried now."""
        if not self._clock.known:
            return []
        now_ms, now_s = self._clock.now_ms(), time.monotonic()
        lines = {id(lamp.timeline): lamp.timeline for lamp in self._lamps.values()}
        holding = {name: line.holding(now_ms) for name, line in lines.items()}
        found = []
        for lamp in self._lamps.values():
            if lamp.device.bus != bus or lamp.retry_s > now_s:
                continue
            due = holding[id(lamp.timeline)]
            if due is None or due == lamp.settled:
                continue
            if lamp.settled and now_ms < lamp.settled.moment_ms < now_ms + SLEW_MS:
                continue  # the clock went back a little
            found.append((lamp, due))
        return found

    async def _switch(self, bus: str) -> None:
        """Switch the lamps of one bus, one after the other."""
        while pending := self._pending(bus):
            lamp, due = pending[0]
            try:
                await self._set(lamp, due)
            except Exception:  # the lamps behind it are not to stay dark
                if not lamp.tries:
                    log.exception("a lamp met an error", extra={"device": lamp.device.id})
                _again_later(lamp)
            await asyncio.sleep(lamp.programme.stagger_s)

    async def _overriding(self, lamp: _Lamp, due: Due) -> Issued | None:
        """Return somebody's command that came after this step, and so holds."""
        try:
            issued = await self._last_issued(lamp.device.id, COMMAND)
        except LedgerBlocked:  # light is better than asking on
            return None
        if issued is None or not due.moment_ms <= issued.at_ms <= self._clock.now_ms():
            return None
        if unfit(lamp.device, COMMAND, issued.args):  # a lamp that refuses it would stay as it is
            return None
        return issued

    async def _set(self, lamp: _Lamp, due: Due) -> None:
        before = lamp.disturbed
        args: dict[str, Value] = {"level": due.level}
        by = f"programme {lamp.programme.id}"
        if (issued := await self._overriding(lamp, due)) is not None:
            args, by = issued.args, f"command {issued.id}"
        outcome = await self._order(
            lamp.device.id,
            COMMAND,
            args,
            by=by,
            deadline_s=ORDER_S,
            again=lamp.tries > 0,
        )
        if lamp.disturbed != before:
            lamp.settled = None  # a command may have been overruled, power may have returned since
            return
        about = {"device": lamp.device.id, "percent": args["level"], "reason": outcome.reason}
        if outcome.status == "done" and lamp.tries:
            log.info("a lamp could be switched again", extra=about)
        elif outcome.status != "done" and not lamp.tries:
            log.warning("a lamp could not be switched", extra=about)
        if outcome.status in ("done", "rejected"):
            lamp.settled, lamp.tries, lamp.retry_s = due, 0, 0.0
        else:
            _again_later(lamp)


def _again_later(lamp: _Lamp) -> None:
    wait_s = min(RETRY_FIRST_S * 2 ** min(lamp.tries, 10), RETRY_LAST_S)
    lamp.tries += 1
    lamp.retry_s = time.monotonic() + wait_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
