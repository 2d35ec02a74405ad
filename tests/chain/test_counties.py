"""Twenty-two counties on one broker: nothing crosses a border, and a query over all is the union of all.

Every gateway in every county has the same name, site, devices, times and sequence numbers, so that whatever is mixed
up meets something else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
import pytest

from exchange.mqtt import Client, Message, Settings, Subscription
from exchange.processes import Child
from exchange.readings import Sample, encode_pack
from exchange.states import State, encode_state
from exchange.tls import Tls
from exchange.topics import DeviceChannel, Topic
from exchange.towns import read_towns
from tests.gateways import until
from tests.influx import Influx, influxd
from tests.offices import OfficeBroker
from tests.ports import free_port

# ISO 3166-2:TW: the code's end, names, living circle, about the middle of it.
COUNTIES = """
tpe Taipei-City      臺北市 north   25.08 121.56
nwt New-Taipei-City  新北市 north   24.95 121.60
kee Keelung-City     基隆市 north   25.12 121.71
tao Taoyuan-City     桃園市 north   24.90 121.25
hsq Hsinchu-County   新竹縣 hsinchu 24.70 121.12
hsz Hsinchu-City     新竹市 hsinchu 24.80 120.95
mia Miaoli-County    苗栗縣 hsinchu 24.49 120.90
txg Taichung-City    臺中市 centre  24.22 120.90
cha Changhua-County  彰化縣 centre  23.99 120.48
nan Nantou-County    南投縣 centre  23.83 120.98
yun Yunlin-County    雲林縣 plain   23.70 120.38
cyq Chiayi-County    嘉義縣 plain   23.46 120.50
cyi Chiayi-City      嘉義市 plain   23.48 120.45
tnn Tainan-City      臺南市 plain   23.14 120.33
khh Kaohsiung-City   高雄市 south   22.95 120.60
pif Pingtung-County  屏東縣 south   22.50 120.62
ila Yilan-County     宜蘭縣 east    24.62 121.65
hua Hualien-County   花蓮縣 east    23.75 121.37
ttt Taitung-County   臺東縣 east    22.87 121.03
pen Penghu-County    澎湖縣 islands 23.57 119.60
kin Kinmen-County    金門縣 islands 24.45 118.37
lie Lienchiang-County 連江縣 islands 26.16 119.95
"""
CIRCLES = {
    "north": "北北基桃", "hsinchu": "竹竹苗", "centre": "中彰投", "plain": "雲嘉南",
    "south": "高屏", "east": "宜花東", "islands": "澎金馬",
}  # fmt: skip
TOWN = """
county = "{county}"
name = {{ en = "{en}", zh-TW = "{zh_tw}" }}
timezone = "Asia/Taipei"
circle = {{ id = "{circle}", en = "{circle}", zh-TW = "{circle_zh}" }}
extent = {{ south = {lat}, west = {lon}, north = {north}, east = {east} }}
townships = [{{ id = "seat", en = "Seat", zh-TW = "縣治" }}]

[broker]
host = "localhost"
port = {ports[0]}
password_port = {ports[1]}
service_port = {ports[2]}

[store]
url = "influxdbs://localhost:{influx}/onestreet/taiwan"

[[site]]
id = "street"
label = {{ en = "Street", zh-TW = "街道" }}
township = "seat"
location = {{ lat = {lat}, lon = {lon} }}

[[gateway]]
id = "gw-key"
site = "street"

[[gateway]]
id = "gw-word"
site = "street"
credential = "password"
"""
OBSERVER = """
[[application]]
id = "observer"
counties = {counties}
"""
GATEWAYS = ("gw-key", "gw-word")
DEVICES = {"gw-key": ("air", "aq-1"), "gw-word": ("parking", "bay-1")}
SAMPLES = 12
EPOCH = 1_750_000_000_777
FORGED = 1_750_000_000_666
"""The epoch of everything that is forged."""
SEED = 22
DEADLINE_S = 30.0
ONESTREET = (sys.executable, "-m", "onestreet.cli")


class County(NamedTuple):
    """A county of the table."""

    county: str
    en: str
    zh_tw: str
    circle: str
    lat: float
    lon: float


def counties() -> list[County]:
    rows = [line.split() for line in COUNTIES.strip().splitlines()]
    return [
        County(f"tw-{code}", en.replace("-", " "), zh, circle, float(lat), float(lon))
        for code, en, zh, circle, lat, lon in rows
    ]


def write_towns(folder: Path, chosen: list[County], influx_port: int) -> list[Path]:
    """Write a file a county, and nothing else."""
    ports = [free_port() for _ in range(3)]
    folder.mkdir()
    for county in chosen:
        text = TOWN.format(
            **county._asdict(),
            circle_zh=CIRCLES[county.circle],
            north=county.lat + 0.5,
            east=county.lon + 0.5,
            ports=ports,
            influx=influx_port,
        )
        if county is chosen[0]:
            others = [other.county for other in chosen[1:]]
            text += OBSERVER.format(counties=json.dumps(others))
        (folder / f"{county.county}.toml").write_text(text, encoding="utf-8")
    return sorted(folder.iterdir())


@pytest.fixture(params=["locked", "open"])
def doors(request: pytest.FixtureRequest) -> str:
    """With open doors, in a few counties, everything that is looked for is found: the search is good."""
    return str(request.param)


@pytest.fixture
def chosen(doors: str) -> list[str]:
    """Which counties there are."""
    return [one.county for one in counties()][: None if doors == "locked" else 3]


@pytest.fixture
def influx(tmp_path: Path, chosen: list[str], doors: str) -> Iterator[Influx]:
    """An office of the counties, and its InfluxDB, set up."""
    office = tmp_path / "office"
    (tmp_path / "influxd").mkdir()
    server = Influx(influxd(), tmp_path / "influxd", office=office)
    here = [one for one in counties() if one.county in chosen]
    told("init", *write_towns(tmp_path / "towns", here, server.port), "--into", office)
    if doors == "open":
        (office / "broker" / "acl").write_text("pattern readwrite #\n")
    server.start()
    try:
        told("store", "--into", office)
        yield server
    finally:
        server.kill()


def told(*words: object) -> None:
    """Run a command of the office."""
    done = subprocess.run(
        [*ONESTREET, "town", *map(str, words)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr + done.stdout


@asynccontextmanager
async def running(office: Path) -> AsyncIterator[int]:
    """Run the broker and ingest of an office; yield the port of its services."""
    settings = read_towns((office / "towns").glob("*.toml"))[0].broker
    ports = (settings.port, settings.password_port, settings.service_port)
    file = office / "services" / "ingest" / "ingest.toml"
    ingest = Child("ingest", [*ONESTREET, "ingest", "run", str(file)], office)
    with OfficeBroker(office, ports):
        try:
            await ingest.start()
            yield settings.service_port
            assert ingest.restarts == 0
        finally:
            await ingest.stop(DEADLINE_S)


class Party:
    """Who connects, asks for everything, and keeps what it gets."""

    def __init__(self, folder: Path, port: int, name: str, *, by_key: bool = True) -> None:
        self.got: list[tuple[str, bytes]] = []
        self._settings = Settings(
            host="localhost",
            port=port,
            client_id=name,
            username=None if by_key else name,
            password=None if by_key else (folder / "password").read_text(),
        )
        tls = Tls(
            ca_file=Path("ca.pem"),
            certificate_file=Path("certificate.pem") if by_key else None,
            key_file=Path("key.pem") if by_key else None,
        ).anchored(folder)
        self._tls = partial(tls.context, str(folder), "tls")
        self._client: Client

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connect anew: what the broker has retained comes again."""
        self._client = Client(self._settings, [Subscription("#")], self._take, tls=self._tls)
        running = asyncio.create_task(self._client.run())
        try:
            await self._client.wait_connected(DEADLINE_S)
            yield
        finally:
            await self._client.stop(1.0)
            await running

    async def say(self, topic: Topic | str, payload: bytes, *, retain: bool = False) -> None:
        """Publish, denied or not, as fast as the broker takes it."""
        while not self._client.publish_soon(str(topic), payload, retain=retain):
            await self._client.drain(DEADLINE_S)

    def _take(self, messages: list[Message], generation: int) -> None:
        self.got += [(message.topic, bytes(message.payload)) for message in messages]
        self._client.acknowledge([message.packet_id for message in messages], generation)


class Gateway(Party):
    """A gateway: honest with its own samples, and a burglar everywhere else."""

    def __init__(self, office: Path, county: str, name: str, dice: random.Random) -> None:
        folder = office / "gateways" / county / name
        port = tomllib.loads((folder / "broker.toml").read_text())["broker"]["port"]
        super().__init__(folder, port, f"{county}.{name}", by_key=name == "gw-key")
        self.topic = readings_topic(county, name)
        self._dice = dice
        self.samples = [
            Sample(EPOCH + 1000 * (seq + 1), EPOCH, seq, values(self.topic.domain, dice))
            for seq in range(SAMPLES)
        ]
        half = SAMPLES // 2
        halves = self.samples[:half], self.samples[half:]
        self.packs = [encode_pack(self.topic, samples) for samples in halves]
        self.state = encode_state(State(v=1, online=True, interval_s=60, epoch=EPOCH))

    @property
    def sent(self) -> list[tuple[str, bytes]]:
        """What it had reason to send."""
        packs = [(str(self.topic), pack) for pack in self.packs]
        return [*packs, (str(beside(self.topic, "state")), self.state)]

    async def break_in(self, victims: Sequence[Topic]) -> None:
        """Write what the victims could send, and what they could get."""
        for topic in victims:
            forged = Sample(EPOCH + 500, FORGED, 0, values(topic.domain, self._dice))
            state = State(v=1, online=False, interval_s=60, epoch=FORGED)
            receipt = {"v": 1, "stored": {topic.device: [[FORGED, 0, 99]]}}
            command = {"id": str(FORGED), "name": "set_level", "args": {"level": 0}}
            result = {"v": 1, "id": str(FORGED), "status": "done"}
            await self.say(topic, encode_pack(topic, [forged]))
            await self.say(beside(topic, "state"), encode_state(state), retain=True)
            await self.say(beside(topic, "results"), json.dumps(result).encode())
            await self.say(beside(topic, "commands"), json.dumps(command).encode())
            await self.say(topic.receipts, json.dumps(receipt).encode())

    async def deliver(self, part: int) -> None:
        """Send half of its own samples, and wait for their receipts."""
        if part == 0:
            await self.say(beside(self.topic, "state"), self.state, retain=True)
        await self.say(self.topic, self.packs[part])
        wanted = {sample.seq for sample in self.samples[: (part + 1) * SAMPLES // 2]}
        await until(lambda: wanted <= self.receipted())

    def receipted(self) -> set[int]:
        """Return the seqs of its own samples that are stored, as far as it was told."""
        return {
            seq
            for topic, payload in self.got
            if topic == self.topic.receipts
            for epoch, first, last in json.loads(payload)
            .get("stored", {})
            .get(self.topic.device, [])
            if epoch == EPOCH
            for seq in range(first, last + 1)
        }

    def rows(self) -> list[Row]:
        """Return what a query about its device has to show."""
        return [
            row(
                self.topic.county,
                self.topic.device,
                sample.time_ms * 1_000_000 + EPOCH % 1_000_000,
                {**sample.metrics, "epoch": EPOCH, "seq": sample.seq},
            )
            for sample in self.samples
        ]


def readings_topic(county: str, gateway: str) -> Topic:
    domain, device = DEVICES[gateway]
    return Topic(county, "street", gateway, domain, device, "readings")


def beside(topic: Topic, channel: DeviceChannel) -> Topic:
    return msgspec.structs.replace(topic, channel=channel)


def victims_of(gateway: Gateway, chosen: Sequence[str]) -> list[Topic]:
    """Return its namesake in every other county, and its neighbour."""
    county, name = gateway.topic.county, gateway.topic.gateway
    others = [readings_topic(other, name) for other in chosen if other != county]
    [neighbour] = [other for other in GATEWAYS if other != name]
    return [*others, readings_topic(county, neighbour)]


Row = tuple[str, str, int, tuple[tuple[str, float], ...]]
"""County, device, time in nanoseconds, fields."""


def row(county: str, device: str, time_ns: int, fields: dict[str, Any]) -> Row:
    return (
        county,
        device,
        time_ns,
        tuple(sorted((name, float(value)) for name, value in fields.items())),
    )


def values(domain: str, dice: random.Random) -> dict[str, Any]:
    if domain == "parking":
        return {"occupied": dice.random() < 0.5, "distance": dice.randint(20, 300) / 100}
    return {"pm2_5": dice.randint(0, 5000) / 10, "co2": float(dice.randint(350, 5000))}


def asked(influx: Influx, office: Path, domain: str, county: str = "") -> list[Row]:
    """Return what Grafana gets to see of a county, or of all, in the order of `row`."""
    where = f" WHERE county = '{county}'" if county else ""
    words = f"SELECT * FROM {domain}{where}"  # noqa: S608 - the test's own
    query = urlencode({"db": "taiwan", "epoch": "ns", "q": words})
    token = (office / "services" / "grafana" / "influx.token").read_text()
    [result] = influx.call("GET", f"/query?{query}", token=token)["results"]
    found = []
    for series in result.get("series", []):
        for cells in series["values"]:
            fields = dict(zip(series["columns"], cells, strict=True))
            assert fields.pop("site") == "street"
            key = fields.pop("county"), fields.pop("device"), fields.pop("time")
            found.append(
                row(*key, {name: value for name, value in fields.items() if value is not None})
            )
    return sorted(found)


async def test_nothing_crosses_a_border_and_all_is_the_union(
    influx: Influx, chosen: list[str], doors: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "exchange.mqtt")  # thousands of refusals
    assert influx.office is not None
    office, dice = influx.office, random.Random(SEED)
    gateways = [Gateway(office, county, name, dice) for county in chosen for name in GATEWAYS]
    async with running(office) as service_port, AsyncExitStack() as watching:
        observer = Party(office / "services" / "observer", service_port, "app.observer")
        await watching.enter_async_context(observer.connected())
        for part in (0, 1):
            async with AsyncExitStack() as stack:
                await asyncio.gather(
                    *(stack.enter_async_context(gateway.connected()) for gateway in gateways)
                )
                if part == 0:  # ahead of what is honest: that has arrived when this would have
                    await asyncio.gather(
                        *(gateway.break_in(victims_of(gateway, chosen)) for gateway in gateways)
                    )
                await asyncio.gather(*(gateway.deliver(part) for gateway in gateways))
        sent = Counter(message for gateway in gateways for message in gateway.sent)
        await until(lambda: not sent - Counter(observer.got))

    union = sorted(found for gateway in gateways for found in gateway.rows())
    stored = sorted(asked(influx, office, "air") + asked(influx, office, "parking"))
    strangers = [
        (gateway.topic.county, topic)
        for gateway in gateways
        for topic, payload in gateway.got
        if topic != gateway.topic.receipts or str(FORGED).encode() in payload
    ]
    quarantine = office / "services" / "ingest" / "data" / "quarantine.sqlite"
    if doors == "open":
        assert quarantine.exists()
        assert set(union) < set(stored)
        assert Counter(observer.got) - sent
        assert {county for county, _ in strangers} == set(chosen)
        return
    assert strangers == []
    assert Counter(observer.got) == sent
    assert not quarantine.exists()
    assert len(union) == len(chosen) * len(GATEWAYS) * SAMPLES == 528
    assert stored == union
    for county in chosen:
        own = sorted(found for found in union if found[0] == county)
        rows = asked(influx, office, "air", county) + asked(influx, office, "parking", county)
        assert sorted(rows) == own
