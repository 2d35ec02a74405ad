"""Mutants: the publisher of docs/examples with one breach each, which the kit must find - that one and no other.

Each runs in a thread of its own against a real broker.
"""

# The example has no types: it is plain on purpose.
# mypy: allow-subclassing-any

from __future__ import annotations

import copy
import importlib.util
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "foreign_publisher.py"
COUNTY, ELSEWHERE = "tw-tpe", "tw-khh"
INTERVAL_S = 0.4
STOP_S = 10.0
SINS_AT = 3  # the seq at which a mutant sins that does so once
HOUR_MS = 3_600_000


def _loaded() -> Any:
    spec = importlib.util.spec_from_file_location("foreign_publisher", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example: Any = _loaded()
Publisher: Any = example.Publisher
Records = list[dict[str, Any]]


class Mutant(NamedTuple):
    """A publisher that breaks these requirements, and no other. Its judge is told that it states `window`."""

    name: str
    breaks: frozenset[str]
    publisher: Any
    window: int = 5000


@contextmanager
def running(
    publisher: Any, name: str, port: int, *, scale: float = 1.0, interval_s: float = INTERVAL_S
) -> Iterator[Any]:
    """Run a publisher as a gateway of this name, with one lamp `{name}-lamp` and its back-offs at `scale`."""
    settings = {
        "gateway": name,
        "lamp": f"{name}-lamp",
        "interval_s": interval_s,
        "backoff_first_s": scale * publisher.backoff_first_s,
        "backoff_last_s": scale * publisher.backoff_last_s,
        "silence_s": scale * publisher.silence_s,
    }
    one = type(publisher.__name__, (publisher,), settings)("127.0.0.1", port)
    thread = threading.Thread(target=one.run, name=name)
    thread.start()
    try:
        yield one
    finally:
        one.stopped.set()
        thread.join(STOP_S)
        assert not thread.is_alive()


# ------------------------------------------------------------------------------------------------ kinds of mutants


def packing(change: Callable[[Any, Records], Records], *, always: bool = False) -> Any:
    """Change a pack of the lamp."""

    class Packing(Publisher):
        def pack(self, device: str, seq: int, time_ms: int, records: Records) -> Records:
            found: Records = super().pack(device, seq, time_ms, records)
            if device == self.lamp and (always or seq == SINS_AT):
                found = change(self, copy.deepcopy(found))
            return found

    return Packing


def record(**labels: Any) -> Any:
    """Add a record to a pack."""
    return packing(lambda _, records: [*records, labels])


def altered(name: str, **labels: Any) -> Any:
    """Change labels of one record of a pack; None takes one away."""

    def change(_: Any, records: Records) -> Records:
        for one in records:
            if one["n"] == name:
                one.update(labels)
                for label in [label for label, value in one.items() if value is None]:
                    del one[label]
        return records

    return packing(change)


def without(*names: str, always: bool = False) -> Any:
    """Leave records out of a pack."""
    return packing(
        lambda _, records: [one for one in records if one["n"] not in names], always=always
    )


def timed(shift_ms: Callable[[int], int]) -> Any:
    """Shift the time of the lamp's samples, by its seq."""

    class Timed(Publisher):
        def pack(self, device: str, seq: int, time_ms: int, records: Records) -> Records:
            moved_ms = shift_ms(seq) if device == self.lamp else 0
            found: Records = super().pack(device, seq, time_ms + moved_ms, records)
            return found

    return Timed


def beside(topic: Callable[[Any, str], str]) -> Any:
    """Publish the lamp's readings a second time, somewhere else."""

    class Beside(Publisher):
        def publish(self, where: str, payload: bytes, retain: bool = False) -> None:
            super().publish(where, payload, retain)
            if where == self.topic(self.lamp, "readings"):
                super().publish(topic(self, where), payload)

    return Beside


def stating(change: Callable[[dict[str, Any]], object]) -> Any:
    """Change the lamp's state."""

    class Stating(Publisher):
        def state(self, device: str, online: bool = True) -> dict[str, Any]:
            found: dict[str, Any] = super().state(device, online)
            if device == self.lamp:
                change(found)
            return found

    return Stating


def carrying(channel: str, *, qos: int = 1, retain: bool | None = None) -> Any:
    """Publish one channel with another QoS, or retained or not."""

    class Carrying(Publisher):
        def publish(self, where: str, payload: bytes, wanted: bool = False) -> None:
            if where == self.topic(self.lamp, channel):
                asked = wanted if retain is None else retain
                self.client.publish(where, payload, qos=qos, retain=asked)
            else:
                super().publish(where, payload, wanted)

        def say_states(self) -> None:
            for device in (self.gateway, self.lamp):
                payload = json.dumps(self.state(device)).encode()
                self.publish(self.topic(device, "state"), payload, True)

        def measure(self) -> None:
            super().measure()
            if self.is_connected:
                self.say_states()  # so that the kit sees one as it comes

    return Carrying


# ---------------------------------------------------------------------------------------------------------- devices


def _crowded(_: Any, records: Records) -> Records:
    return records + [{"n": f"x-acme-n{number:06}", "v": number} for number in range(8000)]


def _backwards(_: Any, records: Records) -> Records:
    """A second sample that is earlier than the first; its seq comes again, as it should be, in the next pack."""
    return [
        *records,
        {"n": "seq", "v": SINS_AT + 1, "t": -0.1},
        {"n": "lit", "vb": True, "t": -0.1},
    ]


class TwoValues(Publisher):
    """Sends one sample twice, with two values."""

    def send(self, one: Any, now_s: float) -> None:
        super().send(one, now_s)
        if one.key[0] == self.lamp and one.key[2] == SINS_AT and one.resends == 0:
            payload = json.loads(one.payload)
            payload[-1]["v"] += 1
            self.publish(one.topic, json.dumps(payload).encode())


class Gap(Publisher):
    """Leaves out a seq."""

    def measure(self) -> None:
        if self.seqs[self.lamp] == SINS_AT:
            self.seqs[self.lamp] += 1
        super().measure()


class Silent(Publisher):
    """Says online and sends nothing more."""

    def measure(self) -> None:
        if self.seqs[self.lamp] <= SINS_AT:
            super().measure()


class Stateless(Publisher):
    """Has no state of its lamp."""

    def say_states(self) -> None:
        payload = json.dumps(self.state(self.gateway)).encode()
        self.publish(self.topic(self.gateway, "state"), payload, retain=True)


class Shapeless(Publisher):
    """Answers commands with results that lack when."""

    def answer(self, result: dict[str, Any]) -> None:
        super().answer({key: value for key, value in result.items() if key != "at"})


class Eager(Publisher):
    """Executes a command as often as it comes."""

    def take_command(self, payload: bytes) -> None:
        self.executed.clear()
        super().take_command(payload)

    def answer(self, result: dict[str, Any]) -> None:
        payload = json.dumps(result).encode()
        self.keep(
            example.Waiting(self.topic(self.lamp, "results"), payload, (result["id"], uuid4()))
        )


class Late(Publisher):
    """Executes a command that has expired."""

    def take_command(self, payload: bytes) -> None:
        super().take_command(payload.replace(b'"expires_at":"20', b'"expires_at":"21'))


class Mute(Publisher):
    """Does not answer a command that it does not know."""

    def take_command(self, payload: bytes) -> None:
        if b"unknown" not in payload:
            super().take_command(payload)


class Credulous(Publisher):
    """Executes a command that lacks what every command has."""

    def take_command(self, payload: bytes) -> None:
        if b"issued_at" in payload and b"expires_at" not in payload:
            payload = payload.replace(b'"issued_at":"20', b'"expires_at":"21')
        super().take_command(payload)


class Offended(Publisher):
    """Takes no command any more after one that it cannot read."""

    is_offended = False

    def take_command(self, payload: bytes) -> None:
        self.is_offended |= b"expires_at" not in payload
        if not self.is_offended:
            super().take_command(payload)


def _level(number: int, word: str) -> Callable[[Any, str], str]:
    """Replace one level of a topic."""

    def change(_: Any, topic: str) -> str:
        levels = topic.split("/")
        return "/".join([*levels[:number], word, *levels[number + 1 :]])

    return change


def _drop(*path: str) -> Callable[[dict[str, Any]], object]:
    """Take something out of a state."""

    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


DEVICE: list[tuple[str, str, Any]] = [
    ("EX-T-001", "nine levels", beside(lambda _, topic: f"{topic}/more")),
    ("EX-T-001", "version 2", beside(_level(1, "v2"))),
    ("EX-T-002", "a capital letter", beside(_level(3, "Street"))),
    ("EX-T-003", "no county", beside(_level(2, "taipei"))),
    ("EX-T-004", "an unknown domain", beside(_level(5, "lamps"))),
    ("EX-T-005", "an unknown channel", beside(_level(7, "telemetry"))),
    ("EX-T-007", "another county", beside(_level(2, ELSEWHERE))),
    ("EX-T-009", "readings with QoS 0", carrying("readings", qos=0)),
    ("EX-T-009", "readings with QoS 2", carrying("readings", qos=2)),
    ("EX-T-009", "readings retained", carrying("readings", retain=True)),
    ("EX-T-009", "state with QoS 0", carrying("state", qos=0)),
    ("EX-T-009 EX-S-002", "state not retained", carrying("state", retain=False)),
    ("EX-R-001", "a record without a value", record(n="frequency")),
    ("EX-R-002", "a large pack", packing(_crowded)),
    ("EX-R-003", "another bn", altered("epoch", bn="tw-tpe:somebody:")),
    ("EX-R-004", "a label of its own", record(n="frequency", v=60, ut=1)),
    ("EX-R-005", "a relative time", altered("epoch", bt=-5)),
    ("EX-R-006", "no epoch", altered("epoch", n="x-acme-epoch", v=1)),
    ("EX-R-006", "half an epoch", altered("epoch", v=1.5)),
    ("EX-R-007", "no seq", without("seq")),
    ("EX-R-008", "backwards in a pack", packing(_backwards)),
    ("EX-R-009", "an unknown metric", record(n="brightness", v=1)),
    ("EX-R-010", "a number for a boolean", altered("lit", v=1, vb=None)),
    ("EX-R-011", "150 %", altered("level", v=150)),
    ("EX-R-012", "power in volts", altered("power", u="V")),
    ("EX-R-013", "secondary without bver", altered("epoch", bver=None)),
    ("EX-R-015", "a quality of its own", record(n="quality", vs="so-so")),
    ("EX-R-016", "a huge number", altered("power", v=1e300)),
    ("EX-R-017", "a metric twice", record(n="lit", vb=True)),
    ("EX-R-018", "bver 5", altered("epoch", bver=5)),
    ("EX-R-019", "two values", TwoValues),
    ("EX-R-020", "backwards", timed(lambda seq: -10_000 if seq == SINS_AT else 0)),
    ("EX-R-021", "a gap", Gap),
    ("EX-R-023", "an hour ahead", timed(lambda _: HOUR_MS)),
    ("EX-R-023", "an hour behind", timed(lambda _: -HOUR_MS)),
    ("EX-R-025", "no power", without("power", always=True)),
    ("EX-S-001", "no version", stating(_drop("v"))),
    ("EX-S-002", "no state", Stateless),
    ("EX-S-006", "another epoch", stating(lambda state: state.update(epoch=state["epoch"] - 1))),
    ("EX-S-007", "an unnamed metric", stating(_drop("descriptor", "metrics", "power"))),
    ("EX-S-008", "silent", Silent),
    ("EX-S-009", "no asset id", stating(_drop("descriptor", "asset_id"))),
    ("EX-S-011", "two gateways", beside(_level(4, "other-gateway"))),
    ("EX-C-003", "results without a time", Shapeless),
    ("EX-C-004", "again and again", Eager),
    ("EX-C-005", "too late", Late),
    ("EX-C-006", "unknown commands", Mute),
    ("EX-C-009", "half a command", Credulous),
    ("EX-C-009", "offended", Offended),
]


# --------------------------------------------------------------------------------------------------------- gateways


class Forgetful(Publisher):
    """Sends every sample once."""

    def send(self, one: Any, now_s: float) -> None:
        if one.resends and isinstance(one.key, tuple):
            one.sent_s = now_s
        else:
            super().send(one, now_s)


class Hasty(Publisher):
    """Backs off for a third of the time."""

    def send(self, one: Any, now_s: float) -> None:
        super().send(one, now_s)
        one.wait_s /= 3


class Steady(Publisher):
    """Does not double its back-off."""

    def send(self, one: Any, now_s: float) -> None:
        super().send(one, now_s)
        one.wait_s = 1.1 * self.backoff_first_s


class Startled(Publisher):
    """Sends everything again on every connect."""

    def say_states(self) -> None:
        super().say_states()
        for one in self.outbox:
            if one.sent_s is not None:
                self.send(one, time.monotonic())


class Doubting(Publisher):
    """Sends a sample once more after its receipt."""

    def take_receipt(self, payload: bytes) -> None:
        before = list(self.outbox)
        super().take_receipt(payload)
        now_s = time.monotonic()
        self.doubted = [*getattr(self, "doubted", []), *set(before) - set(self.outbox)]
        for one in [one for one in self.doubted if now_s - one.sent_s > self.backoff_first_s]:
            self.doubted.remove(one)
            if isinstance(one.key, tuple):
                self.publish(one.topic, one.payload)


class Loud(Publisher):
    """Sends everything again when nobody answers."""

    def send_due(self) -> None:
        self.last_receipt_s = time.monotonic()
        super().send_due()


class Resigned(Publisher):
    """Sends nothing again when nobody answers."""

    def send_due(self) -> None:
        now_s = time.monotonic()
        if now_s - self.last_receipt_s < 0.8 * self.silence_s:
            super().send_due()
        else:
            for one in [one for one in self.outbox if one.sent_s is None]:
                self.send(one, now_s)


class Trusting(Publisher):
    """Takes a receipt for what it has not sent: `drops` says whether before sending or right after."""

    drops = True

    def take_receipt(self, payload: bytes) -> None:
        super().take_receipt(payload)
        try:
            stored = json.loads(payload)["stored"]
            ranges = [(device, *one) for device, found in stored.items() for one in found]
        except (ValueError, TypeError, LookupError):
            return
        self.trusted = [
            *getattr(self, "trusted", []),
            *(one for one in ranges if self.is_early(one)),
        ]

    def is_early(self, named: Any) -> bool:
        return bool(named[2] >= self.seqs.get(named[0], 0))

    def keep(self, waiting: Any) -> None:
        trusted = any(example.is_in(waiting.key, one) for one in getattr(self, "trusted", []))
        if not trusted:
            super().keep(waiting)
        elif not self.drops:
            self.publish(waiting.topic, waiting.payload)


class Offhand(Trusting):
    """Sends such samples, and forgets them at once."""

    drops = False


class Deaf(Publisher):
    """Takes no receipt any more after one that it cannot read."""

    is_deaf = False

    def take_receipt(self, payload: bytes) -> None:
        self.is_deaf |= payload == b"{"
        if not self.is_deaf:
            super().take_receipt(payload)


class Crashed(Publisher):
    """Ends at a receipt that it cannot read."""

    def take_receipt(self, payload: bytes) -> None:
        if payload == b"{":
            self.stopped.set()
        super().take_receipt(payload)


class Nameless(Publisher):
    """Has no state of its own."""

    def say_states(self) -> None:
        payload = json.dumps(self.state(self.lamp)).encode()
        self.publish(self.topic(self.lamp, "state"), payload, retain=True)


class Careless(Publisher):
    """Publishes the state of its lamp on the first connect only."""

    has_said = False

    def say_states(self) -> None:
        if not self.has_said:
            super().say_states()
        else:
            payload = json.dumps(self.state(self.gateway)).encode()
            self.publish(self.topic(self.gateway, "state"), payload, retain=True)
        self.has_said = True


class Offered(Publisher):
    """Sends a result once."""

    def send(self, one: Any, now_s: float) -> None:
        if one.resends and not isinstance(one.key, tuple):
            one.sent_s = now_s
        else:
            super().send(one, now_s)


def willing(
    change: Callable[[dict[str, Any]], object], *, qos: int = 1, retain: bool = True
) -> Any:
    """Have another last will."""

    class Willing(Publisher):
        def connect(self) -> None:
            topic, state = self.will()
            change(state)
            self.client.will_set(topic, json.dumps(state), qos=qos, retain=retain)
            self.client.connect(*self.address, keepalive=30)

    return Willing


class Immortal(Publisher):
    """Has no last will."""

    def connect(self) -> None:
        self.client.connect(*self.address, keepalive=30)


def _nothing(_: dict[str, Any]) -> None:
    return None


GATEWAY: list[tuple[str, str, Any, int]] = [
    (
        "EX-T-006",
        "a gateway by another name",
        beside(lambda _, topic: topic.replace("/streetlight/", "/gateway/")),
        5000,
    ),
    ("EX-D-004", "once", Forgetful, 5000),
    ("EX-D-005", "hasty", Hasty, 5000),
    ("EX-D-005", "steady", Steady, 5000),
    ("EX-D-005", "startled", Startled, 5000),
    ("EX-D-006", "doubting", Doubting, 5000),
    ("EX-D-007", "a larger window", Publisher, 20),
    ("EX-D-008", "loud", Loud, 5000),
    ("EX-D-008", "resigned", Resigned, 5000),
    ("EX-D-009", "trusting", Trusting, 5000),
    ("EX-D-009", "offhand", Offhand, 5000),
    ("EX-D-010", "deaf", Deaf, 5000),
    ("EX-D-010", "crashed", Crashed, 5000),
    ("EX-S-003", "no state", Nameless, 5000),
    ("EX-S-004", "no will", Immortal, 5000),
    ("EX-S-004", "a bare will", willing(lambda state: state.pop("descriptor")), 5000),
    (
        "EX-S-004",
        "a will with since",
        willing(lambda state: state.update(since="2026-01-01T00:00:00Z")),
        5000,
    ),
    ("EX-S-004", "a will with QoS 0", willing(_nothing, qos=0), 5000),
    ("EX-S-004", "a will not retained", willing(_nothing, retain=False), 5000),
    ("EX-S-005", "states once", Careless, 5000),
    ("EX-C-007", "a result once", Offered, 5000),
]


def device_mutants() -> list[Mutant]:
    """Return the mutants that a look at one device shows."""
    return [
        Mutant(f"{broken}: {name}", frozenset(broken.split()), publisher)
        for broken, name, publisher in DEVICE
    ]


def gateway_mutants() -> list[Mutant]:
    """Return the mutants that only a gateway's judge finds."""
    return [
        Mutant(f"{broken}: {name}", frozenset(broken.split()), publisher, window)
        for broken, name, publisher, window in GATEWAY
    ]


# ----------------------------------------------------------------------------------------------------- applications


def commands(topic: str) -> list[tuple[str, str, bytes]]:
    """Return what an application may do wrong: the requirement, the topic and the payload. The first is right."""
    right: dict[str, Any] = {
        "id": str(uuid4()),
        "name": "set_level",
        "args": {"level": 40},
        "issued_at": "2026-05-01T08:00:00.000Z",
        "expires_at": "2026-05-01T08:01:00.000Z",
        "issued_by": "duty desk",
    }
    return [
        ("", topic, json.dumps(right).encode()),
        ("EX-T-001", f"{topic}/more", json.dumps(right).encode()),
        ("EX-C-001", topic, json.dumps({**right, "id": 7}).encode()),
        ("EX-C-002", topic, json.dumps({**right, "expires_at": right["issued_at"]}).encode()),
        ("EX-C-008", topic, json.dumps({**right, "name": "self_destruct"}).encode()),
    ]
