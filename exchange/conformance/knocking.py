"""Knocking: one CONNECT, and whether the door opens; written in bytes, so that a no is seen at once and as it is.

Source: MQTT Version 3.1.1, OASIS Standard, sections 3.1 and 3.2
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress

from exchange.conformance.witness import Address

HEAR_S = 5.0
_CONNACK = 0x20
_CLEAN, _USERNAME, _PASSWORD = 0x02, 0x80, 0x40
_ACCEPTED = b"\x20\x02\x00\x00"


async def knock(address: Address) -> tuple[bool, str]:
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
    _, words = await knock(Address(host=host, port=port))
    return words.startswith("CONNACK")


async def _answer(address: Address) -> bytes:
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=address.tls)
    try:
        writer.write(_connect(address))
        return await reader.read(4)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _connect(address: Address) -> bytes:
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
