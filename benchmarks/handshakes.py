"""TLS against plain at one Mosquitto: connections per second, CPU of each, and CPU per message once connected.

The broker has two listeners: a plain one, and one as an office configures it (TLS, both sides by
certificate, revocation list). The client is the services' own, `exchange.mqtt`, with a context made
for each connection and uvloop, as they do it. Both are measured in turns (plain, TLS, plain, TLS, …).

A connection: TCP, TLS 1.3 in full (nothing is resumed), CONNECT, CONNACK, DISCONNECT. A message: QoS 1
from an offline session, handed over in lists and acknowledged, as ingest takes it, and nothing else done with it.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from benchmarks.backlog import Load, fill, forget_session, keep_session
from benchmarks.consumers import Onestreet
from benchmarks.processes import BenchmarkFailed, cpu_s
from exchange.mqtt import Client, Message, Settings, Subscription
from exchange.tls import Tls
from provisioning.authority import Authority
from provisioning.files import write_private, write_public
from tests.brokers import Mosquitto
from tests.ports import free_port

Way = Literal["plain", "TLS"]
WAYS: tuple[Way, ...] = ("plain", "TLS")
AT_ONCE = 8
_DEADLINE_S = 120.0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """So many connections, or messages, one way."""

    way: Way
    times: int
    wall_s: float
    broker_cpu_s: float
    client_cpu_s: float


class Handshakes(msgspec.Struct, frozen=True):
    """Every run, in order, and what TLS was."""

    tls: str
    connecting: list[Run]
    taking: list[Run]


class Stage:
    """A broker with both listeners, and a client's certificate."""

    def __init__(self, folder: Path) -> None:
        """Make keys and certificates; nothing runs yet."""
        authority = Authority.create(folder / "ca", "benchmark")
        for name, kind in (("server", "server"), ("ingest", "client")):
            names = ["localhost", "127.0.0.1"] if kind == "server" else []
            key, certificate = authority.issue(name, kind, names=names)  # type: ignore[arg-type]  # as listed
            write_private(folder / f"{name}.key", key)
            write_public(folder / f"{name}.pem", certificate)
        self._ports = {way: free_port() for way in WAYS}
        self.tls = Tls(
            ca_file=folder / "ca" / "ca.pem",
            certificate_file=folder / "ingest.pem",
            key_file=folder / "ingest.key",
        )
        self.broker = Mosquitto(folder, self._lines(folder))
        self.broker.port = self._ports["plain"]

    def _lines(self, folder: Path) -> list[str]:
        return [
            f"listener {self._ports['plain']} 127.0.0.1",
            f"listener {self._ports['TLS']} 127.0.0.1",
            f"cafile {folder / 'ca' / 'ca.pem'}",
            f"crlfile {folder / 'ca' / 'crl.pem'}",
            f"certfile {folder / 'server.pem'}",
            f"keyfile {folder / 'server.key'}",
            "require_certificate true",
            "use_identity_as_username true",
            "tls_version tlsv1.2",
            "max_queued_messages 0",
            "max_queued_bytes 0",
            "max_inflight_messages 0",
            "memory_limit 0",
        ]

    def context(self, way: Way) -> Callable[[], ssl.SSLContext] | None:
        """Return what makes a client's contexts."""
        return None if way == "plain" else lambda: self.tls.context("benchmark", "tls")

    def client(
        self,
        way: Way,
        client_id: str,
        subscriptions: Sequence[Subscription] = (),
        on_messages: Callable[[list[Message], int], None] = lambda _messages, _generation: None,
        *,
        session_s: int = 0,
    ) -> Client:
        settings = Settings(
            host="127.0.0.1",
            port=self._ports[way],
            client_id=client_id,
            session_expiry_s=session_s,
            clean_start=not session_s,
            receive_maximum=10_000,
            fail_fast=True,
        )
        return Client(settings, subscriptions, on_messages, tls=self.context(way))

    async def connect(self, way: Way, connections: int) -> Run:
        """Connect and disconnect, so many in a row in each of some lanes."""

        async def lane(number: int) -> None:
            for _ in range(connections // AT_ONCE):
                client = self.client(way, f"lane-{number}")
                running = asyncio.create_task(client.run())
                await client.wait_connected(_DEADLINE_S)
                await client.stop(_DEADLINE_S)
                await running

        broker_s, own_s, began_s = cpu_s(self.broker.pid), time.process_time(), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(AT_ONCE):
                group.create_task(lane(number))
        return Run(
            way=way,
            times=connections // AT_ONCE * AT_ONCE,
            wall_s=time.monotonic() - began_s,
            broker_cpu_s=cpu_s(self.broker.pid) - broker_s,
            client_cpu_s=time.process_time() - own_s,
        )

    async def take(self, way: Way, load: Load) -> Run:
        """Take a backlog in. Raises: BenchmarkFailed when it does not all come."""
        port, client_id = self._ports["plain"], f"taker-{way.lower()}"
        source = Onestreet()
        await keep_session(port, client_id, source.topic_filter)
        await fill(port, source.payloads(load))
        taken, all_came = 0, asyncio.Event()

        def take(messages: list[Message], generation: int) -> None:
            nonlocal taken
            taken += len(messages)
            client.acknowledge([message.packet_id for message in messages], generation)
            if taken >= load.messages:
                all_came.set()

        subscriptions = [Subscription(source.topic_filter)]
        client = self.client(way, client_id, subscriptions, take, session_s=3600)
        broker_s, own_s, began_s = cpu_s(self.broker.pid), time.process_time(), time.monotonic()
        running = asyncio.create_task(client.run())
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await all_came.wait()
        except TimeoutError:
            raise BenchmarkFailed(f"{way}: {taken} of {load.messages} messages came") from None
        wall_s, own_s = time.monotonic() - began_s, time.process_time() - own_s
        await client.stop(_DEADLINE_S)
        await running
        broker_s = cpu_s(self.broker.pid) - broker_s
        await forget_session(port, client_id)
        return Run(way=way, times=taken, wall_s=wall_s, broker_cpu_s=broker_s, client_cpu_s=own_s)

    async def version(self) -> str:
        """Return what both sides agree on."""
        context = self.tls.context("benchmark", "tls")
        _, writer = await asyncio.open_connection("127.0.0.1", self._ports["TLS"], ssl=context)
        found = writer.get_extra_info("ssl_object")
        words = f"{found.version()}, {found.cipher()[0]}, {ssl.OPENSSL_VERSION}"
        writer.transport.abort()
        return words


@contextmanager
def _stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="onestreet-bench-") as name:
        stage = Stage(Path(name))
        with stage.broker:
            yield stage


async def measure(connections: int, load: Load, *, rounds: int) -> Handshakes:
    """Measure both ways in turns. Raises: BenchmarkFailed."""
    with _stage() as stage:
        found = Handshakes(await stage.version(), [], [])
        if not found.tls.startswith("TLSv1.3"):
            raise BenchmarkFailed(f"TLS 1.3 was to be measured, not {found.tls}")
        for way in WAYS:
            await stage.connect(
                way, 10 * AT_ONCE
            )  # the first ones load what the others find loaded
        for _ in range(rounds):
            for way in WAYS:
                found.connecting.append(await stage.connect(way, connections))
                rate = found.connecting[-1].times / found.connecting[-1].wall_s
                print(f"{way}: {rate:.0f} connections/s", file=sys.stderr, flush=True)
            for way in WAYS:
                found.taking.append(await stage.take(way, load))
                rate = found.taking[-1].times / found.taking[-1].wall_s
                print(f"{way}: {rate:,.0f} messages/s", file=sys.stderr, flush=True)
    return found


def table(found: Handshakes) -> str:
    """Return the comparison for people."""
    connections, messages = found.connecting[0].times, found.taking[0].times
    lines = [
        f"{found.tls}; {len(found.taking) // len(WAYS)} rounds",
        f"{connections} connections, {AT_ONCE} at a time; {messages} messages",
        "",
        f"{'median (lowest – highest)':28}{'plain':>30}{'TLS, mutual':>30}{'TLS : plain':>14}",
    ]
    for what, runs, unit, per_s in (
        ("connection", found.connecting, "ms", 1e3),
        ("message", found.taking, "µs", 1e6),
    ):
        lines.append(_line(f"{what}s/s", [(run.way, run.times / run.wall_s) for run in runs]))
        for whose in ("broker", "client"):
            each = [
                (run.way, per_s * float(getattr(run, f"{whose}_cpu_s")) / run.times) for run in runs
            ]
            lines.append(_line(f"{whose} CPU {unit}/{what}", each))
    return "\n".join(lines)


def _line(title: str, values: Sequence[tuple[Way, float]]) -> str:
    plain, tls = ([value for way, value in values if way == wanted] for wanted in WAYS)
    ratio = f"{median(tls) / median(plain):.2f}" if median(plain) else "–"
    return f"{title:28}{_span(plain):>30}{_span(tls):>30}{ratio:>14}"


def _span(values: Sequence[float]) -> str:
    digits = 0 if median(values) >= 100 else 2
    return "{:,.{d}f} ({:,.{d}f} – {:,.{d}f})".format(
        median(values), min(values), max(values), d=digits
    )
