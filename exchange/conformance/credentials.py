"""Credentials: the ways into a broker that the role broker tries, one TOML file; paths are relative to its folder.

Who holds a way in may do what the exchange grants to it, and nothing else: that is what the role proves.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

from exchange.configuration import located, read_toml, secret
from exchange.conformance import witness
from exchange.conformance.witness import Address
from exchange.dictionary import dictionary
from exchange.errors import ConfigError
from exchange.tls import Tls
from exchange.topics import County, Level, Topic

Channel: TypeAlias = Literal["readings", "state", "results"]
Reason: TypeAlias = Literal["expired", "revoked", "from another CA"]
_OF_DEVICES = frozenset({"readings", "state", "results"})


class _Login(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to come in: by user and password, or by certificate and key."""

    broker: str = ""
    """URL, where it is not that of the command line."""
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    client_id: str = ""


class GatewayLogin(_Login, frozen=True, kw_only=True):
    """A gateway."""

    county: County
    site: Level
    id: Level


class IngestLogin(_Login, frozen=True, kw_only=True):
    """An ingest, and the counties that it serves."""

    counties: Annotated[list[County], msgspec.Meta(min_length=1)]


class ApplicationLogin(_Login, frozen=True, kw_only=True):
    """An application, with the domains that it may command and what it may read, there and where it was granted to."""

    id: str
    county: County
    commands: list[str] = []
    reads: list[Channel] = msgspec.field(default_factory=lambda: ["readings", "state", "results"])
    counties: list[County] = []


class RefusedLogin(_Login, frozen=True, kw_only=True):
    """A certificate that must not open the door."""

    reason: Reason


class Credentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    ca_file: Path | None = None
    """Whom to believe, for every login that does not say."""
    gateways: list[GatewayLogin] = msgspec.field(name="gateway")
    ingests: list[IngestLogin] = msgspec.field(name="ingest")
    applications: list[ApplicationLogin] = msgspec.field(name="application")
    refused: list[RefusedLogin] = []


class Party(msgspec.Struct, frozen=True, kw_only=True):
    """Who comes in, and what the exchange grants to it."""

    kind: Literal["gateway", "ingest", "application"]
    name: str
    client_id: str
    address: Address
    counties: frozenset[str]
    """Where it may read, and an ingest write."""
    site: str = ""
    gateway: str = ""
    home: str = ""
    """The county in which an application may command."""
    commands: frozenset[str] = frozenset()
    reads: frozenset[str] = _OF_DEVICES

    @property
    def county(self) -> str:
        """The county of a gateway."""
        return min(self.counties)

    @property
    def writes_in(self) -> frozenset[str]:
        """The counties in which it writes something."""
        return frozenset({self.home}) if self.home else self.counties

    def owns(self, topic: Topic) -> bool:
        """Whether a topic is below a gateway's own branch."""
        own = self.site, self.gateway
        return topic.county in self.counties and (topic.site, topic.gateway) == own

    def may_write(self, topic: Topic) -> bool:
        """Whether the exchange lets it write there."""
        if self.kind == "gateway":
            return self.owns(topic) and topic.channel in _OF_DEVICES
        if self.kind == "ingest":
            return topic.channel == "receipts" and topic.county in self.counties
        home = topic.county == self.home
        return home and topic.channel == "commands" and topic.domain in self.commands

    def must_read(self, topic: Topic) -> bool:
        """Whether it cannot do its work without reading there; an ingest needs no states."""
        return self.may_read(topic) and (self.kind != "ingest" or topic.channel != "state")

    def may_read(self, topic: Topic) -> bool:
        """Whether the exchange lets it read there."""
        if self.kind == "gateway":
            return self.owns(topic) and topic.channel in ("commands", "receipts")
        return topic.county in self.counties and topic.channel in self.reads


class Ways(msgspec.Struct, frozen=True, kw_only=True):
    """Every way in that is tried: the gateways of the county first, a foreign one last."""

    gateways: list[Party]
    foreign: list[Party]
    ingests: list[Party]
    applications: list[Party]
    refused: list[tuple[Reason, Address]]
    nobody: list[Address]
    """Each address of the broker, without credentials."""

    @property
    def parties(self) -> list[Party]:
        """Everybody who may come in."""
        return [*self.gateways, *self.foreign, *self.ingests, *self.applications]


def read_ways(file: Path, broker: str, county: str) -> Ways:
    """Return the ways in. Raises: ConfigError."""
    with located(file):
        return _checked_ways(file, broker, county)


def _checked_ways(file: Path, broker: str, county: str) -> Ways:
    read = read_toml(file, Credentials)
    _check(file, read, county)
    _check_refused(file, read, broker)
    found = _Reader(file, broker, read.ca_file)
    gateways = [found.gateway(index, one) for index, one in enumerate(read.gateways)]
    return Ways(
        gateways=[one for one in gateways if one.county == county],
        foreign=[one for one in gateways if one.county != county],
        ingests=[found.ingest(index, one) for index, one in enumerate(read.ingests)],
        applications=[found.application(index, one) for index, one in enumerate(read.applications)],
        refused=[
            (one.reason, found.address(f"refused[{index}]", one))
            for index, one in enumerate(read.refused)
        ],
        nobody=found.nobody(),
    )


class _Reader:
    def __init__(self, file: Path, broker: str, ca_file: Path | None) -> None:
        self._file, self._broker, self._ca_file = file, broker, ca_file
        self._urls: dict[str, Path | None] = {}

    def gateway(self, index: int, one: GatewayLogin) -> Party:
        name = f"{one.county}.{one.id}"
        return Party(
            kind="gateway",
            name=f"gateway {name}",
            client_id=one.client_id or one.username or name,
            address=self.address(f"gateway[{index}]", one),
            counties=frozenset({one.county}),
            site=one.site,
            gateway=one.id,
        )

    def ingest(self, index: int, one: IngestLogin) -> Party:
        return Party(
            kind="ingest",
            name=f"ingest {'+'.join(one.counties)}",
            client_id=one.client_id or one.username or f"conform-ingest-{index}",
            address=self.address(f"ingest[{index}]", one),
            counties=frozenset(one.counties),
        )

    def application(self, index: int, one: ApplicationLogin) -> Party:
        return Party(
            kind="application",
            name=f"application {one.id}",
            client_id=one.client_id or one.username or f"app.{one.id}",
            address=self.address(f"application[{index}]", one),
            counties=frozenset({one.county, *one.counties}),
            home=one.county,
            commands=frozenset(one.commands),
            reads=frozenset(one.reads),
        )

    def address(self, table: str, one: _Login) -> Address:
        """Return where a login goes, and as whom. Raises: ConfigError."""
        file, folder = str(self._file), self._file.parent
        url = one.broker or self._broker
        password_file = None if one.password_file is None else folder / one.password_file
        password = secret(file, table, password_file, None)
        ca_file = one.ca_file or self._ca_file
        self._urls.setdefault(url, ca_file)
        context = None
        if ca_file is not None and url.startswith("mqtts:"):
            context = (
                Tls(ca_file=ca_file, certificate_file=one.certificate_file, key_file=one.key_file)
                .anchored(folder)
                .context(file, table)
            )
        address = witness.address(url, password=password, tls=context)
        return msgspec.structs.replace(address, username=one.username)

    def nobody(self) -> list[Address]:
        """Return every address that was named, as nobody."""
        return [
            self.address("nobody", _Login(broker=url, ca_file=ca_file))
            for url, ca_file in self._urls.items()
        ]


def _check(file: Path, read: Credentials, county: str) -> None:
    ours = [one for one in read.gateways if one.county == county]
    applications = [one for one in read.applications if one.county == county and one.commands]
    for table, fits, allowed in (
        ("gateway", len(ours) >= 2, f"two of {county} are needed, a gateway and its neighbour"),
        ("gateway", len(ours) < len(read.gateways), "one of another county is needed"),
        ("ingest", _some(read.ingests, county), f"one that serves {county} is needed"),
        ("application", applications, f"one of {county} is needed that may command some domain"),
    ):
        if not fits:
            raise ConfigError(str(file), table, None, allowed)
    for index, one in enumerate(read.applications):
        for domain in one.commands:
            if domain not in dictionary():
                allowed = f"one of {', '.join(dictionary())}"
                raise ConfigError(str(file), f"application[{index}].commands", domain, allowed)


def _check_refused(file: Path, read: Credentials, broker: str) -> None:
    """Check that a certificate is refused where another is taken: a door that is not there refuses all."""
    taken = {
        one.broker or broker
        for one in (*read.gateways, *read.ingests, *read.applications)
        if one.certificate_file
    }
    for index, one in enumerate(read.refused):
        if (one.broker or broker) not in taken:
            allowed = (
                f"must be where a good certificate is tried, one of {', '.join(sorted(taken))}"
            )
            raise ConfigError(str(file), f"refused[{index}].broker", one.broker or broker, allowed)


def _some(ingests: Iterable[IngestLogin], county: str) -> bool:
    return any(county in one.counties for one in ingests)
