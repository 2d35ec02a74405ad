"""Locked doors: a real Mosquitto on the files that `onestreet town` makes, every denial, and what arrived."""

from __future__ import annotations

import asyncio
import gc
import socket
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import aiomqtt
import pytest

from exchange.errors import UplinkRefused
from exchange.mqtt import Client, Settings
from exchange.tls import Tls
from exchange.towns import Broker
from provisioning.authority import Authority
from provisioning.office import init, opened
from tests.offices import (
    HOST,
    OfficeBroker,
    Party,
    broker_table,
    connect_packet,
    gateway_party,
    lets_in,
    made_party,
    service_party,
    town_text,
)

DEADLINE_S = 15.0
LONG_S = 60.0  # five programs start at once, beside whatever else the machine does
TPE, NWT = "city/v1/tw-tpe/street", "city/v1/tw-nwt/street"
OURS, THEIRS, BY_PASSWORD, ELSEWHERE = (
    f"{TPE}/gw-1",
    f"{TPE}/gw-2",
    f"{TPE}/gw-p",
    f"{NWT}/gw-1",
)
APPLICATIONS = """
[[application]]
id = "lamp-console"
commands = ["streetlight"]
reads = ["state", "results"]

[[application]]
id = "air-map"
reads = ["readings"]
counties = ["tw-nwt"]
"""


class Doors(NamedTuple):
    """An office and its running broker."""

    folder: Path
    settings: Broker
    broker: OfficeBroker
    observer: Party

    def party(self, name: str) -> Party:
        """Return a gateway (`COUNTY/GATEWAY`), a service or an application."""
        county, slash, gateway = name.partition("/")
        if slash:
            return gateway_party(self.folder, self.settings, county, gateway)
        return service_party(self.folder, self.settings, name)

    @property
    def authority_file(self) -> Path:
        return self.folder / "ca" / "ca.pem"

    async def lets_in(self, party: Party) -> bool:
        return await lets_in(party.port, party.context, party.user, party.password)


@contextmanager
def made_doors(folder: Path, *, watched: bool = False) -> Iterator[Doors]:
    """Make an office of two counties and run its broker.

    With `watched` there is, beside the rules under test, an observer who sees everything, and each
    party may say when nothing more comes.
    """
    table = broker_table()
    more = {"gateways": ["gw-1", "gw-2"], "by_password": ["gw-p"], "more": APPLICATIONS}
    (folder / "tw-tpe.toml").write_text(town_text("tw-tpe", table, **more))  # type: ignore[arg-type]  # passed on
    (folder / "tw-nwt.toml").write_text(town_text("tw-nwt", table, gateways=["gw-1"]))
    with init(folder.glob("*.toml"), folder / "office") as office:
        settings = office.towns[0].broker
        observer = service_party(office.folder, settings, "watch")
        if watched:
            observer = made_party(
                office.authority,
                folder / "observer",
                "observer",
                settings.service_port,
                ca_file=office.folder / "ca" / "ca.pem",
            )
    acl = office.folder / "broker" / "acl"
    if watched:
        rules = acl.read_text()
        users = [line.split()[1] for line in rules.splitlines() if line.startswith("user ")]
        ends = [f"user {user}\ntopic readwrite end/{user}" for user in [*users, "observer"]]
        acl.write_text("\n".join([rules, *ends, "topic readwrite #", ""]))
    ports = settings.port, settings.password_port, settings.service_port
    with OfficeBroker(office.folder, ports) as broker:
        yield Doors(office.folder, settings, broker, observer)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """One town for every test that changes nothing."""
    with made_doors(tmp_path_factory.mktemp("doors"), watched=True) as doors:
        yield doors


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[Doors]:
    """A town that a test may change."""
    with made_doors(tmp_path) as made:
        yield made


async def takes_effect(doors: Doors, change: Callable[[], Awaitable[bool]]) -> None:
    """Have the broker read its files again, and return once something is so."""
    with opened(doors.folder) as office:
        assert office.reload_broker(), "the broker of this folder runs"
    async with asyncio.timeout(DEADLINE_S):
        while not await change():  # noqa: ASYNC110 - the broker does not say when it has
            await asyncio.sleep(0.02)


# -------------------------------------------------------------------------------------------- who writes and reads what


NEXT_SITE = "city/v1/tw-tpe/next/gw-1/air/dev-1/readings"


def topics_of(gateway: str) -> list[str]:
    channels = ("readings", "state", "results", "commands", "receipts")
    return [
        f"{gateway}/receipts",
        *(
            f"{gateway}/{domain}/dev-1/{channel}"
            for domain in ("streetlight", "air")
            for channel in channels
        ),
    ]


EVERYTHING = [
    *(topic for gateway in (OURS, THEIRS, BY_PASSWORD, ELSEWHERE) for topic in topics_of(gateway)),
    NEXT_SITE,
    f"{OURS}/air/readings",
    f"{OURS}/air/dev-1/readings/more",
    "city/v1/tw-tpe/street/receipts",
    "elsewhere/altogether",
]


def ending(gateways: list[str], *channels: str, domain: str = "") -> set[str]:
    """Return the topics of devices of some gateways that end in a channel."""
    found = {topic for gateway in gateways for topic in topics_of(gateway) if topic.count("/") == 7}
    return {
        topic
        for topic in found
        if topic.rpartition("/")[2] in channels and (not domain or f"/{domain}/" in topic)
    }


def receipts(*gateways: str) -> set[str]:
    return {f"{gateway}/receipts" for gateway in gateways}


IN_TPE, EVERYWHERE = [OURS, THEIRS, BY_PASSWORD], [OURS, THEIRS, BY_PASSWORD, ELSEWHERE]
OF_DEVICES = ("readings", "state", "results")
WRITES = {
    "tw-tpe/gw-1": ending([OURS], *OF_DEVICES),
    "tw-tpe/gw-p": ending([BY_PASSWORD], *OF_DEVICES),
    "tw-nwt/gw-1": ending([ELSEWHERE], *OF_DEVICES),
    "ingest": receipts(*EVERYWHERE),
    "watch": set[str](),
    "lamp-console": ending(IN_TPE, "commands", domain="streetlight"),
    "air-map": set[str](),
}
READS = {
    "tw-tpe/gw-1": ending([OURS], "commands") | receipts(OURS),
    "tw-tpe/gw-p": ending([BY_PASSWORD], "commands") | receipts(BY_PASSWORD),
    "tw-nwt/gw-1": ending([ELSEWHERE], "commands") | receipts(ELSEWHERE),
    "ingest": ending(EVERYWHERE, "readings", "results") | {NEXT_SITE},
    "watch": ending(EVERYWHERE, "readings", "state") | {NEXT_SITE},
    "lamp-console": ending(IN_TPE, "state", "results"),
    "air-map": ending(EVERYWHERE, "readings") | {NEXT_SITE},
}


async def heard_until(client: aiomqtt.Client, end: str) -> list[str]:
    """Return the topics that come before the end."""
    topics = []
    async with asyncio.timeout(DEADLINE_S):
        async for message in client.messages:
            if message.topic.value == end:
                break
            topics.append(message.topic.value)
    return topics


@pytest.mark.parametrize("name", WRITES)
async def test_what_a_party_writes(watched: Doors, name: str) -> None:
    """EX-A-003, EX-A-005, EX-A-006, EX-A-007: Mosquitto acknowledges what it denies, so look at what arrived."""
    party = watched.party(name)
    async with watched.observer.client() as seeing, party.client() as writer:
        await seeing.subscribe("#", qos=1)
        for topic in [*EVERYTHING, f"end/{party.user}"]:
            await writer.publish(topic, b"x", qos=1)
        assert set(await heard_until(seeing, f"end/{party.user}")) == WRITES[name]


@pytest.mark.parametrize("name", READS)
async def test_what_a_party_reads(watched: Doors, name: str) -> None:
    """EX-A-004, EX-A-007: even to somebody who asks for everything."""
    party = watched.party(name)
    async with party.client() as reader, watched.observer.client() as writer:
        await reader.subscribe("#", qos=1)
        for topic in [*EVERYTHING, f"end/{party.user}"]:
            await writer.publish(topic, b"x", qos=1)
        assert set(await heard_until(reader, f"end/{party.user}")) == READS[name]


@pytest.mark.parametrize("name", ["tw-tpe/gw-1", "tw-tpe/gw-p"])
async def test_a_will_reaches_nobody_elsewhere(watched: Doors, name: str) -> None:
    """EX-A-003: a will is judged when it is sent."""
    party = watched.party(name)
    own = OURS if name == "tw-tpe/gw-1" else BY_PASSWORD
    async with watched.observer.client() as seeing:
        await seeing.subscribe("#", qos=1)
        for topic in (f"{THEIRS}/air/dev-1/state", f"{OURS}/receipts", f"{own}/air/dev-1/state"):
            await die(party, aiomqtt.Will(topic, b"gone", qos=1))
        assert await heard_until(seeing, f"{own}/air/dev-1/state") == []


async def test_what_is_larger_than_the_limit_ends_the_connection(watched: Doors) -> None:
    """Before it was sent. What is larger than a pack may be still comes, to be refused with a receipt."""
    party, topic = watched.party("tw-tpe/gw-1"), f"{OURS}/air/dev-1/readings"
    reader, writer = await asyncio.open_connection(HOST, party.port, ssl=party.context)
    async with asyncio.timeout(DEADLINE_S):
        writer.write(connect_packet())
        assert await reader.readexactly(4) == b"\x20\2\0\0"
        writer.write(b"\x32\x80\x80\x80\2")  # a publish of 4 MiB begins
        assert await reader.read() == b""
    writer.transport.abort()
    async with watched.observer.client() as seeing, party.client() as gateway:
        await seeing.subscribe(topic, qos=1)
        await gateway.publish(topic, bytes(2 << 20), qos=1)
        async with asyncio.timeout(DEADLINE_S):
            message = await anext(aiter(seeing.messages))
        assert isinstance(message.payload, bytes)
        assert len(message.payload) == 2 << 20


async def die(party: Party, will: aiomqtt.Will) -> None:
    """Connect with a will, and break off without a word."""
    client = party.client(will=will)
    await client.__aenter__()
    raw = client._client.socket()
    assert isinstance(raw, socket.socket)
    raw.shutdown(socket.SHUT_RDWR)
    with suppress(aiomqtt.MqttError):  # it may have noticed, or not yet
        await client.__aexit__(None, None, None)


@pytest.mark.parametrize(
    ("thief", "listener"),
    [
        ("tw-tpe/gw-2", "port"),
        ("tw-tpe/gw-2", "service_port"),
        ("tw-tpe/gw-p", "password_port"),
        ("lamp-console", "service_port"),
        ("lamp-console", "port"),
    ],
)
async def test_nobody_takes_over_anothers_session(
    watched: Doors, thief: str, listener: str
) -> None:
    """EX-A-008: the client id that a client names does not matter, on whatever port."""
    victim, taker = watched.party("tw-tpe/gw-1"), watched.party(thief)
    taker = taker._replace(port=getattr(watched.settings, listener))
    async with victim.client(victim.user) as mine, taker.client(victim.user) as other:
        await mine.subscribe("#", qos=1)
        await other.subscribe("#", qos=1)
        async with watched.observer.client() as writer:
            for topic in (f"{OURS}/receipts", f"end/{victim.user}", f"end/{taker.user}"):
                await writer.publish(topic, b"x", qos=1)
        assert await heard_until(mine, f"end/{victim.user}") == [f"{OURS}/receipts"]
        assert await heard_until(other, f"end/{taker.user}") == []


# ------------------------------------------------------------------------------------------------------- who gets in


async def test_everybody_with_good_credentials_gets_in(watched: Doors) -> None:
    for name in WRITES:
        assert await watched.lets_in(watched.party(name)), name


async def test_no_listener_talks_without_tls(watched: Doors) -> None:
    """EX-A-001."""
    gateway = watched.party("tw-tpe/gw-p")
    for port in (
        watched.settings.port,
        watched.settings.password_port,
        watched.settings.service_port,
    ):
        assert not await lets_in(port, None, gateway.user, gateway.password)


async def test_a_password_listener_takes_right_passwords_only(watched: Doors) -> None:
    """EX-A-002: nobody without, with a wrong one, or with the name of a gateway that goes by certificate."""
    good = watched.party("tw-tpe/gw-p")
    assert await watched.lets_in(good)
    for user, password in (
        (None, None),
        (good.user, None),
        (good.user, "wrong"),
        ("tw-tpe.gw-1", good.password),
        ("tw-tpe.gw-1", ""),
        ("ingest", good.password),
    ):
        assert not await lets_in(good.port, good.context, user, password), user


async def test_a_certificate_listener_takes_certificates_only(watched: Doors) -> None:
    """EX-A-002: a password opens neither of them."""
    good = watched.party("tw-tpe/gw-p")
    for port in (watched.settings.port, watched.settings.service_port):
        assert not await lets_in(port, good.context, good.user, good.password)


async def test_certificates_that_open_no_door(watched: Doors, tmp_path: Path) -> None:
    """EX-A-009: expired, of another authority, of no authority, a server's."""
    user, port = "tw-tpe.gw-1", watched.settings.port
    ca_file = watched.authority_file
    ours = Authority.load(watched.folder / "ca")
    theirs = Authority.create(tmp_path / "other", "Other")
    good = made_party(ours, tmp_path / "good", user, port, ca_file=ca_file)
    expired = made_party(ours, tmp_path / "expired", user, port, ca_file=ca_file, days=-1)
    foreign = made_party(theirs, tmp_path / "foreign", user, port, ca_file=ca_file)
    servers = good._replace(
        tls=Tls(
            ca_file=ca_file,
            certificate_file=watched.folder / "broker" / "server.pem",
            key_file=watched.folder / "broker" / "server.key",
        )
    )
    assert await watched.lets_in(good)
    for name, party in (("expired", expired), ("foreign", foreign), ("server's", servers)):
        for listener in (port, watched.settings.service_port):
            assert not await watched.lets_in(party._replace(port=listener)), name


@pytest.mark.filterwarnings(  # paho leaves the socket of a refused handshake to the collector
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
async def test_a_broker_of_another_authority_is_not_believed(
    watched: Doors, tmp_path: Path
) -> None:
    Authority.create(tmp_path / "other", "Other")
    party = watched.party("tw-tpe/gw-1")
    wrong = party._replace(tls=stranger(party.tls, tmp_path / "other" / "ca.pem"))
    with pytest.raises(aiomqtt.MqttError, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify"):
        async with wrong.client():
            pass
    assert "certificate: self-signed certificate" in await refusal(wrong)
    gc.collect()


async def test_a_gateways_certificate_does_not_serve_as_the_brokers(
    watched: Doors, tmp_path: Path
) -> None:
    """Even one with the broker's name in it."""
    authority = Authority.load(watched.folder / "ca")
    for kind, believed in (("client", False), ("server", True)):
        key, certificate = authority.issue("tw-tpe.gw-1", kind, names=[HOST])  # type: ignore[arg-type]  # both are
        (tmp_path / "pair.pem").write_bytes(key + certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "pair.pem")
        server = await asyncio.start_server(hang_up, HOST, 0, ssl=context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            found = await refusal(watched.party("tw-tpe/gw-2")._replace(port=port))
        assert ("unsuitable certificate purpose" not in found) == believed, found


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def stranger(tls: Tls, ca_file: Path) -> Tls:
    return Tls(ca_file=ca_file, certificate_file=tls.certificate_file, key_file=tls.key_file)


async def refusal(party: Party) -> str:
    """Return what our services' client says when it does not get through."""
    settings = Settings(host=HOST, port=party.port, client_id="x", fail_fast=True)
    client = Client(settings, [], lambda *_: None, tls=lambda: party.context)
    try:
        async with asyncio.timeout(2):
            await client.run()
    except UplinkRefused as error:
        return str(error)
    except TimeoutError:
        pass
    return str(client.last_error)


# ------------------------------------------------------------------------------------------------- a broker that runs


async def test_a_revoked_gateway_is_out_at_once(doors: Doors) -> None:
    """EX-A-009: its certificate opens nothing, and what it has open is deaf and mute; nobody else notices."""
    stolen, neighbour = doors.party("tw-tpe/gw-1"), doors.party("tw-tpe/gw-2")
    context, sign = stolen.context, doors.party("tw-tpe/gw-p")
    async with stolen.client() as thief, neighbour.client() as other:
        await thief.subscribe("#", qos=1)
        await other.subscribe("#", qos=1)
        with opened(doors.folder) as office:
            assert [one.name for one in office.revoke_gateway("tw-tpe", "gw-1")] == ["tw-tpe.gw-1"]
            office.revoke_gateway("tw-tpe", "gw-p")

        async def is_told() -> bool:  # to ask with the stolen key would end the connection it has
            return not await doors.lets_in(sign)

        await takes_effect(doors, is_told)
        async with doors.party("watch").client() as watch:
            await watch.subscribe(f"{TPE}/+/+/+/readings", qos=1)
            await thief.publish(f"{OURS}/air/dev-1/readings", b"forged", qos=1)
            await other.publish(f"{THEIRS}/air/dev-1/readings", b"true", qos=1)
            assert await heard_until(watch, f"{THEIRS}/air/dev-1/readings") == []
        async with doors.party("lamp-console").client() as console:
            for gateway in (OURS, THEIRS):
                await console.publish(f"{gateway}/streetlight/dev-1/commands", b"x", qos=1)
        assert await heard_until(other, f"{THEIRS}/streetlight/dev-1/commands") == []
        await thief.subscribe("answered/after", qos=1)  # what went out before, has come before
        assert len(thief.messages) == 0
    assert await doors.lets_in(neighbour)
    assert not await lets_in(stolen.port, context)
    doors.broker.restart()
    assert not await lets_in(stolen.port, context)


async def test_a_revoked_password_ends_the_connection(doors: Doors) -> None:
    stolen = doors.party("tw-tpe/gw-p")
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(aiomqtt.MqttError):
            async with stolen.client() as thief:
                with opened(doors.folder) as office:
                    office.revoke_gateway("tw-tpe", "gw-p")

                async def is_refused() -> bool:
                    return not await doors.lets_in(stolen)

                await takes_effect(doors, is_refused)
                async for _ in thief.messages:
                    pass
    assert not (doors.folder / "gateways" / "tw-tpe" / "gw-p" / "password").exists()


async def test_a_gateway_is_added_while_the_broker_runs(doors: Doors) -> None:
    """First with a certificate, then with a password; then one that was revoked comes back."""
    async with doors.party("watch").client() as watch:
        await watch.subscribe(f"{TPE}/+/+/+/readings", qos=1)
        with opened(doors.folder) as office:
            office.add_gateway("tw-tpe", "gw-9", "street")
            office.add_gateway("tw-tpe", "gw-8", "street", credential="password")
            office.revoke_gateway("tw-tpe", "gw-1")
            office.add_gateway("tw-tpe", "gw-1", "")
        for name in ("gw-9", "gw-8", "gw-1"):
            party = doors.party(f"tw-tpe/{name}")

            async def gets_in(party: Party = party) -> bool:
                return await doors.lets_in(party)

            await takes_effect(doors, gets_in)
            async with party.client() as gateway:
                await gateway.publish(f"{TPE}/{name}/air/dev-1/readings", b"x", qos=1)
            assert await heard_until(watch, f"{TPE}/{name}/air/dev-1/readings") == []
    text = (doors.folder / "towns" / "tw-tpe.toml").read_text()
    assert text.startswith("# tw-tpe, a comment that stays")


async def test_a_rotated_key_opens_and_the_old_one_until_its_days_are_over(doors: Doors) -> None:
    old = doors.party("tw-tpe/gw-1").context
    with opened(doors.folder) as office:
        office.rotate_gateway("tw-tpe", "gw-1")
    new = doors.party("tw-tpe/gw-1")
    assert await doors.lets_in(new)
    assert await lets_in(new.port, old)
    with opened(doors.folder) as office:
        [first, second] = office.authority.valid("tw-tpe.gw-1")
        assert second.superseded_until is None
        first.superseded_until = first.not_before  # its thirty days are over
        assert [one.serial for one in office.regenerate()] == [first.serial]

    async def is_refused() -> bool:
        return not await lets_in(new.port, old)

    await takes_effect(doors, is_refused)
    assert await doors.lets_in(new)


async def test_the_broker_shows_a_rotated_certificate_without_a_restart(doors: Doors) -> None:
    async with doors.party("tw-tpe/gw-1").client() as connected:
        with opened(doors.folder) as office:
            office.rotate_service("broker")
            serial = office.authority.valid("broker")[-1].serial

        async def is_shown() -> bool:
            context = doors.party("tw-tpe/gw-1").context
            _, writer = await asyncio.open_connection(HOST, doors.settings.port, ssl=context)
            shown = writer.get_extra_info("peercert")["serialNumber"]
            writer.transport.abort()
            return int(shown, 16) == int(serial, 16)

        await takes_effect(doors, is_shown)
        await connected.publish(f"{OURS}/air/dev-1/readings", b"x", qos=1)


async def test_the_authority_is_rotated_with_an_overlap(doors: Doors) -> None:
    """Old and new are believed until the end; nobody is left behind unsaid."""
    before = {name: doors.party(name).context for name in ("tw-tpe/gw-1", "tw-tpe/gw-2")}
    with opened(doors.folder) as office:
        office.rotate_authority()
        office.rotate_gateway("tw-tpe", "gw-1")
        assert office.left_behind() == ["tw-nwt.gw-1", "tw-tpe.gw-2"]
        with pytest.raises(Exception, match=r"tw-nwt\.gw-1, tw-tpe\.gw-2"):
            office.retire_authority()
    rotated = doors.party("tw-tpe/gw-1")

    async def gets_in() -> bool:
        return await doors.lets_in(rotated)

    await takes_effect(doors, gets_in)
    for context in before.values():  # they know the old authority only
        assert await lets_in(doors.settings.port, context)
    with opened(doors.folder) as office:
        for county, gateway in (("tw-tpe", "gw-2"), ("tw-nwt", "gw-1")):
            office.rotate_gateway(county, gateway)
        office.retire_authority()
    doors.broker.restart()
    for name in WRITES:
        assert await doors.lets_in(doors.party(name)), name
    for context in before.values():
        assert not await lets_in(doors.settings.port, context)


# ----------------------------------------------------------------------------------------------------------- secrets


def secrets_of(office: Path) -> dict[str, str]:
    """Return every secret of an office by its file: passwords, and each full line of a key."""
    found = {}
    for file in office.rglob("*"):
        if file.name == "password":
            found[str(file)] = file.read_text().strip()
        elif file.suffix == ".key" or file.name == "key.pem":
            for number, line in enumerate(file.read_text().splitlines()[1:-1]):
                found[f"{file} line {number}"] = line
    return found


def process(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, "-m", *argv], stdout=out, stderr=out)


def edge_file(folder: Path, gateway: str) -> Path:
    lines = [
        "bus = []",
        "device = []",
        "[gateway]",
        f'id = "{gateway}"',
        'county = "tw-tpe"',
        'site = "street"',
        'state_dir = "state"',
        "interval_s = 0.5",
        (folder / "broker.toml").read_text(),
    ]
    (folder / "edge.toml").write_text("\n".join(lines))
    return folder / "edge.toml"


@pytest.mark.timeout(5 * LONG_S)
async def test_a_town_runs_from_its_files_and_tells_no_secret(doors: Doors, tmp_path: Path) -> None:
    """EX-A-010: agents, ingest, watch and broker on the generated files, until samples of each are stored."""
    gateways, services = doors.folder / "gateways" / "tw-tpe", doors.folder / "services"
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for name in ("broker.toml", "ca.pem"):
        (wrong / name).write_bytes((gateways / "gw-p" / name).read_bytes())
    (wrong / "password").touch(0o600)
    (wrong / "password").write_text("this-password-is-mistaken")
    secrets = secrets_of(doors.folder) | {"mistaken": "this-password-is-mistaken"}
    logs = tmp_path / "logs"
    logs.mkdir()
    store = services / "ingest" / "data" / "town.sqlite"
    commands = {
        "ingest": ["onestreet.cli", "ingest", "run", str(services / "ingest" / "ingest.toml")],
        "watch": ["onestreet.cli", "watch", "run", str(services / "watch" / "ingest.toml")],
        "wrong": ["onestreet.cli", "edge", "run", str(edge_file(wrong, "gw-p"))],
    } | {
        name: ["onestreet.cli", "edge", "run", str(edge_file(gateways / name, name))]
        for name in ("gw-1", "gw-p")
    }
    with ExitStack() as stack:
        running = {}
        for name, argv in commands.items():
            running[name] = child = process(argv, logs / name)
            stack.callback(child.wait, LONG_S)
            stack.callback(child.terminate)
        async with asyncio.timeout(LONG_S):
            while stored_devices(store) != {"gw-1", "gw-p"} or "uplink" not in said(logs, "wrong"):
                dead = [name for name, child in running.items() if child.poll() is not None]
                assert not dead, said(logs, dead[0])
                await asyncio.sleep(0.05)
        lines = told_by_kernel(doors.broker.pid, *(child.pid for child in running.values()))
    texts = {file.name: file.read_text(errors="replace") for file in logs.iterdir()}
    texts |= {"broker": doors.broker.log} | {f"process {n}": text for n, text in enumerate(lines)}
    assert all(texts.values())
    for where, text in texts.items():
        assert [name for name, secret in secrets.items() if secret in text] == [], where


def told_by_kernel(*pids: int) -> list[str]:
    """Return the command lines and environments of processes."""
    files = [Path(f"/proc/{pid}/{name}") for pid in pids for name in ("cmdline", "environ")]
    return [file.read_text(errors="replace") for file in files]


def said(logs: Path, name: str) -> str:
    return (logs / name).read_text(errors="replace")


def stored_devices(store: Path) -> set[str]:
    if not store.exists():
        return set()
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        words = (
            "select distinct device from points where measurement = 'gateway'"  # not the watch's
        )
        return {row[0] for row in connection.execute(words)}
    except sqlite3.OperationalError:
        return set()  # not made yet
    finally:
        connection.close()


@pytest.mark.parametrize("name", ["gw-1", "gw-p"])
def test_a_secret_that_others_can_read_is_refused(
    watched: Doors, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file in (watched.folder / "gateways" / "tw-tpe" / name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
        (folder / file.name).chmod(0o644)
    secret = folder / ("key.pem" if name == "gw-1" else "password")
    config = edge_file(folder, name)
    words = check(config)
    assert f"'{secret}': must be private" in words
    assert secret.read_text().splitlines()[-1] not in words
    secret.chmod(0o600)
    assert "good" in check(config)


def check(config: Path) -> str:
    argv = [sys.executable, "-m", "onestreet.cli", "edge", "check", str(config)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    return done.stdout + done.stderr


def test_the_authoritys_key_is_in_its_own_folder_only(watched: Doors) -> None:
    key = (watched.folder / "ca" / "ca.key").read_text().splitlines()[1]
    holders = [
        file.relative_to(watched.folder)
        for file in watched.folder.rglob("*")
        if file.is_file() and key in file.read_text(errors="replace")
    ]
    assert holders == [Path("ca/ca.key")]
    with opened(watched.folder) as office:
        assert key.encode() not in office.bundle("tw-tpe", "gw-1")


def test_what_holds_a_secret_is_its_owners_alone(watched: Doors) -> None:
    """Every file of the office below a folder that nobody else enters, and secrets by themselves, too."""
    assert watched.folder.stat().st_mode & 0o777 == 0o700
    secret = {Path(name.partition(" line ")[0]) for name in secrets_of(watched.folder)}
    secret.add(watched.folder / "broker" / "passwords")
    assert len(secret) > 8
    assert {oct(file.stat().st_mode & 0o777) for file in secret} == {"0o600"}
