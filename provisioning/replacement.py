"""A broken gateway's place is taken by a new one: under its own name, or under another.

The devices keep their names, so their history goes on; the new gateway's outbox begins new epochs, so that nothing
that the old one still holds is taken for theirs. First the old one's doors are closed, then the new one's are opened:
killed at any moment, no two gateways are let in, and the same command again goes on.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from exchange.errors import ConfigError, UplinkLost
from exchange.mqtt import Client, Message, Settings, Subscription
from exchange.tls import Tls
from exchange.topics import LEVEL, PREFIX, Topic
from provisioning import enrolment, kept_configurations
from provisioning.access import OFFICE, gateway_user
from provisioning.authority import serial_of
from provisioning.files import write_private, write_public
from provisioning.office import Office

CALL_S = 10.0
"""How long the broker may take for each step."""


def replace_gateway(
    office: Office, county: str, old: str, new: str, *, hand_out: bool = False
) -> str:
    """Lock a gateway out and have a new one in its place; return the site where both stand.

    The broker has to be reloaded after this. Without `hand_out` the new one waits for its code.

    Raises: ConfigError when there is no such gateway, or the new name is taken.
    """
    one = office.gateway(county, old)
    if new != old:
        _check_free(office, county, new)
    enrolment.forget_codes(office, county, old)
    if new == old:
        if not office.is_revoked(county, old):
            office.revoke_gateway(county, old)
    else:
        kept_configurations.rename(office, county, old, new)
        try:
            office.rename_gateway(county, old, new)
        except ConfigError:
            kept_configurations.rename(office, county, new, old)
            raise
    office.admit_gateway(county, new, hand_out=hand_out)
    return one.site


def _check_free(office: Office, county: str, name: str) -> None:
    if not LEVEL.fullmatch(name):
        allowed = f"a gateway's name: {LEVEL.pattern} 小寫英數與連字號"
    elif any(one.id == name for one in office.town(county).gateways):
        allowed = "is another gateway's name already 名稱已使用"
    else:
        return
    raise ConfigError("command line", "NEW", name, allowed)


def evict(office: Office, county: str, gateway: str, *, host: str = "") -> None:
    """End a gateway's connection and its session at the broker; what waited for it there is gone.

    A broker that reads a revocation list anew leaves open what is open; whoever comes by the same name throws the
    other out. Raises: UplinkError.
    """
    user = gateway_user(county, gateway)
    port = office.town(county).broker.port
    with _visit(office, user) as tls:
        settings = _settings(office, county, user, port, host)
        asyncio.run(_drop_session(settings, tls))


def clear_states(office: Office, county: str, site: str, gateway: str, *, host: str = "") -> int:
    """Empty every state that the broker retains of a gateway that is no more; return how many there were.

    Raises: UplinkError; ConfigError when somebody may still speak for the gateway.
    """
    check_gone(office, county, gateway)
    port = office.town(county).broker.service_port
    with _visit(office, OFFICE) as tls:
        settings = _settings(office, county, OFFICE, port, host)
        own = Topic(county, site, gateway, "gateway", gateway, "state")
        return asyncio.run(_empty(settings, tls, own))


def check_gone(office: Office, county: str, gateway: str) -> None:
    """Check that nobody may speak for a gateway any more. Raises: ConfigError."""
    known = any(one.id == gateway for one in office.town(county).gateways)
    if known and not office.is_revoked(county, gateway):
        allowed = "must be revoked, or gone from the town's file: its states are its own"
        raise ConfigError("command line", "gateway", gateway, allowed)


@contextmanager
def _visit(office: Office, user: str) -> Iterator[Tls]:
    """Have a certificate for the time of a visit to the broker; it is revoked afterwards."""
    key, certificate = office.authority.issue(user, "client", days=1)
    try:
        with tempfile.TemporaryDirectory(prefix=".visit-", dir=office.folder) as name:
            folder = Path(name)
            write_private(folder / "key.pem", key)
            write_public(folder / "certificate.pem", certificate)
            yield Tls(
                ca_file=office.folder / "ca" / "ca.pem",
                certificate_file=folder / "certificate.pem",
                key_file=folder / "key.pem",
            )
    finally:
        office.authority.revoke(serial_of(certificate))


def _settings(office: Office, county: str, user: str, port: int, host: str) -> Settings:
    return Settings(
        host=host or office.town(county).broker.host,
        port=port,
        client_id=user,
        clean_start=True,
        connect_timeout_s=CALL_S,
        fail_fast=True,
    )


async def _drop_session(settings: Settings, tls: Tls) -> None:
    client = Client(settings, [], lambda _messages, _generation: None, tls=partial(_context, tls))
    await _visited(client, lambda: client.end_session(CALL_S))


def _context(tls: Tls) -> ssl.SSLContext:
    return tls.context("office", "tls")


async def _visited(client: Client, work: Callable[[], Awaitable[None]]) -> None:
    """Do something at the broker. Raises: UplinkError."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(client.run())
            await client.wait_connected(CALL_S)
            await work()
            await client.stop(CALL_S)
    except BaseExceptionGroup as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, TimeoutError):
            raise UplinkLost("the broker does not say what it retains: reload it first") from errors
        raise error from errors


async def _empty(settings: Settings, tls: Tls, own: Topic) -> int:
    """Empty the states below a gateway's name. Its own is emptied first: when that comes back, all were heard."""
    found: set[str] = set()
    heard_all = asyncio.Event()

    def hear(messages: list[Message], _generation: int) -> None:
        for message in messages:
            if message.payload:
                found.add(message.topic)
            elif message.topic == str(own):
                heard_all.set()

    below = f"{PREFIX}/{own.county}/{own.site}/{own.gateway}/+/+/state"
    client = Client(settings, [Subscription(below)], hear, tls=partial(_context, tls))

    async def work() -> None:
        await client.publish(str(own), b"", retain=True, deadline_s=CALL_S)
        async with asyncio.timeout(CALL_S):
            await heard_all.wait()
        for topic in sorted(found - {str(own)}):
            await client.publish(topic, b"", retain=True, deadline_s=CALL_S)

    await _visited(client, work)
    return len(found)
