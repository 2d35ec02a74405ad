"""The enrolment service: HTTPS, for gateways that have nothing but a code.

It holds the authority's key, so it says little, believes nothing, and need not run when nobody enrols.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import msgspec
from aiohttp import web

from exchange.configuration import check_private
from exchange.enrolment import (
    CA_PATH,
    ENROL_PATH,
    MAX_REQUEST_BYTES,
    EnrolmentRefused,
    Grant,
    Reason,
    Request,
    read_message,
)
from exchange.errors import ConfigError, OnestreetError
from exchange.runtime import log_to_stderr, notify, run, stop_on_signals
from provisioning.authority import AuthorityError
from provisioning.enrolment import grant, read_codes
from provisioning.office import opened

log = logging.getLogger(__name__)

ADDRESS_ATTEMPTS, ADDRESS_S = 10, 30.0
"""Failed attempts in a row from one address, and the seconds that give it one more."""
ALL_ATTEMPTS, ALL_S = 300, 0.5
ADDRESSES = 4096
CONNECTIONS = 200
CONNECTION_S, HANDSHAKE_S, BODY_S = 20.0, 5.0, 5.0
DRAIN_S, LINGER_S = 5.0, 1.0
REFRESH_S = 60.0
_SILENT = logging.getLogger(f"{__name__}.http")
_SILENT.setLevel(logging.CRITICAL + 1)  # aiohttp would quote what it cannot read
_STATUS: dict[Reason, int] = {
    "unknown": 403,
    "withdrawn": 403,
    "used": 409,
    "expired": 410,
    "answer": 400,
    "busy": 429,
}


class Attempts:
    """How often somebody may be wrong: so many times in a row, then now and then; each address, and all together."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.failed = 0
        self._clock = clock
        self._all = _Allowance(ALL_ATTEMPTS, ALL_S)
        self._addresses: OrderedDict[str, _Allowance] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until an address may try; 0 when it may."""
        now_s = self._clock()
        mine = self._addresses.get(_neighbourhood(address))
        return max(self._all.wait_s(now_s), mine.wait_s(now_s) if mine else 0.0)

    def fail(self, address: str) -> None:
        """Note that an address was wrong."""
        self.failed += 1
        now_s, place = self._clock(), _neighbourhood(address)
        mine = self._addresses.pop(place, None) or _Allowance(ADDRESS_ATTEMPTS, ADDRESS_S)
        self._addresses[place] = mine
        if len(self._addresses) > ADDRESSES:
            self._addresses.popitem(last=False)
        mine.take(now_s)
        self._all.take(now_s)


class _Allowance:
    """`most` at once, and one more every `every_s`."""

    def __init__(self, most: int, every_s: float) -> None:
        self._most, self._every_s = most, every_s
        self._left, self._at_s = float(most), 0.0

    def wait_s(self, now_s: float) -> float:
        left = self._refilled(now_s)
        return 0.0 if left >= 1 else (1 - left) * self._every_s

    def take(self, now_s: float) -> None:
        self._left, self._at_s = max(0.0, self._refilled(now_s) - 1), now_s

    def _refilled(self, now_s: float) -> float:
        return min(self._most, self._left + (now_s - self._at_s) / self._every_s)


def _neighbourhood(address: str) -> str:
    """Return what counts as one address: of IPv6, what one customer has."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


class _Deaf(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class Service:
    """The HTTPS service of an office."""

    def __init__(self, folder: Path, passphrase_file: Path | None = None) -> None:
        """Look at everything that it will need. Raises: ConfigError, OfficeError."""
        self._folder = folder
        self._passphrase_file = passphrase_file
        self._attempts = Attempts()
        self._one_at_a_time = asyncio.Lock()
        self._under_way = 0
        self._ended = asyncio.Condition()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._ca = b""
        read_codes(folder)  # wrong permissions are said now, not to the first gateway
        self.refresh()

    def refresh(self) -> None:
        """Take up certificates as they are now; new connections get them. Raises: ConfigError, OfficeError."""
        with opened(self._folder, self._passphrase_file) as office:
            folder = office.folder / "enrolment"
            check_private(str(folder), "server.key", folder / "server.key")
            try:
                self._tls.load_cert_chain(folder / "server.pem", folder / "server.key")
            except OSError as error:
                allowed = f"`onestreet town init` makes it and its key: {error}"
                raise ConfigError(str(folder), "server.pem", "unusable", allowed) from error
            self._ca = office.authority.certificate

    async def run(self, host: str, port: int, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then let go on what has begun. Raises: ConfigError."""
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
        app.router.add_get(CA_PATH, self._give_ca)
        app.router.add_post(ENROL_PATH, self._enrol)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_SILENT,
            keepalive_timeout=BODY_S,
            lingering_time=LINGER_S,
            shutdown_timeout=DRAIN_S,
        )
        await runner.setup()
        made = runner.server
        assert made is not None
        loop = asyncio.get_running_loop()

        def connection() -> asyncio.Protocol:
            if len(made.connections) >= CONNECTIONS:
                return _Deaf()
            protocol = made()
            loop.call_later(CONNECTION_S, protocol.force_close)
            return protocol

        try:
            server = await loop.create_server(
                connection, host, port, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_S
            )
        except OSError as error:
            await runner.cleanup()
            where = f"{host}:{port}"
            words = error.strerror or str(error)
            raise ConfigError("enrolment", "--listen", where, f"must be free: {words}") from error
        refreshing = asyncio.create_task(self._keep_fresh())
        taken = server.sockets[0].getsockname()[1]
        log.info("ready", extra={"host": host, "port": taken})
        notify("READY=1")
        try:
            await stop.wait()
        finally:
            notify("STOPPING=1")
            server.close()
            refreshing.cancel()
            # aiohttp would read no further from here on, not even what has begun
            await asyncio.wait({asyncio.create_task(self._settled())}, timeout=DRAIN_S)
            await runner.cleanup()
        log.info("stopped", extra={"failed_attempts": self._attempts.failed})

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await asyncio.to_thread(self.refresh)
            except OnestreetError as error:
                log.warning("not refreshed", extra={"reason": str(error)})

    async def _give_ca(self, _: web.Request) -> web.Response:
        return web.Response(body=self._ca, content_type="application/x-pem-file")

    async def _settled(self) -> None:
        async with self._ended:
            await self._ended.wait_for(lambda: not self._under_way)

    async def _enrol(self, asked: web.Request) -> web.Response:
        self._under_way += 1
        try:
            return await self._answered(asked)
        finally:
            self._under_way -= 1
            async with self._ended:
                self._ended.notify_all()

    async def _answered(self, asked: web.Request) -> web.Response:
        address = asked.remote or ""
        if wait_s := self._attempts.wait_s(address):
            log.warning("busy", extra={"address": address, "wait_s": round(wait_s, 1)})
            return _refused("busy", retry_after_s=wait_s)
        try:
            async with asyncio.timeout(BODY_S):
                body = await asked.read()
            request = read_message(body, Request)
            async with self._one_at_a_time:  # in order of coming: the office's lock has no queue
                given = await asyncio.to_thread(self._grant, request)
        except EnrolmentRefused as error:
            return self._failed(address, error.reason, error.detail)
        except (AuthorityError, web.HTTPException, TimeoutError) as error:
            return self._failed(address, "answer", type(error).__name__)
        except (OnestreetError, OSError) as error:
            log.error("the office is not in order", extra={"reason": str(error)})
            return web.Response(status=503, text="not in order")
        log.info(
            "enrolled", extra={"address": address, "gateway": f"{given.county}/{given.gateway}"}
        )
        return web.json_response(body=msgspec.json.encode(given))

    def _grant(self, request: Request) -> Grant:
        with opened(self._folder, self._passphrase_file) as office:
            return grant(office, request)

    def _failed(self, address: str, reason: Reason, detail: str) -> web.Response:
        self._attempts.fail(address)
        extra = {"address": address, "reason": reason, "detail": detail}
        log.warning("an attempt failed", extra=extra | {"failed_attempts": self._attempts.failed})
        return _refused(reason)


def _refused(reason: Reason, *, retry_after_s: float = 0.0) -> web.Response:
    body = msgspec.json.encode({"v": 1, "reason": reason, "retry_after_s": round(retry_after_s, 1)})
    headers = {"Retry-After": str(math.ceil(retry_after_s))} if retry_after_s else None
    return web.json_response(body=body, status=_STATUS[reason], headers=headers)


async def _serve(service: Service, host: str, port: int) -> int:
    await service.run(host, port, stop_on_signals())
    return 0


def serve(folder: Path, host: str, port: int, passphrase_file: Path | None = None) -> int:
    """Run the service of an office until SIGTERM. Raises: ConfigError, OfficeError."""
    log_to_stderr()
    return run(_serve(Service(folder, passphrase_file), host, port))
