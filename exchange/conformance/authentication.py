"""Authentication: who may not come in tries to; one CONNECT, in bytes, so that a no is seen at once and as it is.

Source: MQTT Version 3.1.1, OASIS Standard, sections 3.1 and 3.2
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby

import msgspec

from exchange.conformance.credentials import Ways
from exchange.conformance.judgement import Judge
from exchange.conformance.witness import Address
from exchange.tls import is_loopback

HEAR_S = 5.0
_CONNACK = 0x20
_CLEAN, _USERNAME, _PASSWORD = 0x02, 0x80, 0x40
_ACCEPTED = b"\x20\x02\x00\x00"


async def connects(address: Address) -> tuple[bool, str]:
    """Return whether a broker lets somebody in, and what it did."""
    try:
        async with asyncio.timeout(HEAR_S):
            answer = await _answer(address)
    except TimeoutError:
        return False, f"no answer within {HEAR_S:g} s"
    except OSError as error:  # of TLS, too
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        return False, f"{reason or type(error).__name__}"
    if not answer:
        return False, "closed without an answer"
    if answer[0] != _CONNACK:
        return False, f"answered with {answer.hex()}, not by MQTT"
    return answer == _ACCEPTED, f"CONNACK {answer[-1]}"


async def speaks_mqtt(host: str, port: int) -> bool:
    """Return whether MQTT in plain text is spoken there, be the answer yes or no."""
    _, words = await connects(Address(host=host, port=port))
    return words.startswith("CONNACK")


async def judge_plain(judge: Judge, addresses: Iterable[Address], ports: Iterable[int]) -> None:
    """Look for MQTT in plain text, where TLS is spoken and on further ports."""
    for host, group in groupby(sorted(addresses, key=_host), key=_host):
        if is_loopback(host):
            judge.apart("EX-A-001", f"{host} is loopback, where plain text is allowed")
            continue
        for port in sorted({*ports, *(one.port for one in group)}):
            if await speaks_mqtt(host, port):
                judge.broken("EX-A-001", f"{host}:{port} answers a CONNECT in plain text")
            else:
                judge.kept("EX-A-001", f"{host}:{port} answers no CONNECT in plain text")


async def judge_strangers(judge: Judge, ways: Ways) -> None:
    """Try as nobody, with wrong passwords, and with certificates that must not be believed."""
    for address in ways.nobody:
        await _judge_attempt(judge, "EX-A-002", f"at {address} without credentials", address)
        for party in ways.parties:
            if (party.address.host, party.address.port) != (address.host, address.port):
                continue
            name = party.address.username or party.client_id
            wrong = [secrets.token_urlsafe(12), ""]
            wrong += [
                one.address.password
                for one in ways.parties
                if one.address.password and one is not party
            ]
            for password in wrong:
                as_it = msgspec.structs.replace(address, username=name, password=password)
                await _judge_attempt(
                    judge, "EX-A-002", f"as the {party.name}, a wrong password", as_it
                )
            break
    if not ways.refused:
        judge.apart("EX-A-009", "the credentials hold no certificate that must be refused")
    for reason, address in ways.refused:
        await _judge_attempt(
            judge, "EX-A-009", f"at {address} by a certificate that is {reason}", address
        )
    missing = {"expired", "revoked", "from another CA"} - {reason for reason, _ in ways.refused}
    if ways.refused and missing:
        judge.notes.append(f"EX-A-009: not tried: a certificate that is {', '.join(missing)}")


async def _judge_attempt(judge: Judge, requirement: str, words: str, address: Address) -> None:
    is_in, answer = await connects(address)
    if is_in:
        judge.broken(requirement, f"{words}: let in")
    else:
        judge.kept(requirement, f"{words}: {answer}")


async def _answer(address: Address) -> bytes:
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=address.tls)
    try:
        writer.write(_connect_packet(address))
        return await reader.read(4)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _host(address: Address) -> str:
    return address.host


def _connect_packet(address: Address) -> bytes:
    flags = _CLEAN
    body = _text("")  # the broker gives a client id
    for value, flag in ((address.username, _USERNAME), (address.password, _PASSWORD)):
        if value is not None:
            flags |= flag
            body += _text(value)
    body = _text("MQTT") + bytes([4, flags, 0, 60]) + body
    assert len(body) < 128 * 128
    length = [len(body)] if len(body) < 128 else [len(body) % 128 | 0x80, len(body) // 128]
    return bytes([0x10, *length]) + body


def _text(value: str) -> bytes:
    encoded = value.encode()
    return len(encoded).to_bytes(2, "big") + encoded
