"""Receipts: what ingest tells a gateway once the store, or the quarantine, has its samples durably."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from exchange.errors import DeliveryError
from exchange.readings import Whole
from exchange.topics import END

RequirementId = Annotated[str, msgspec.Meta(pattern=rf"^EX-[A-Z]-[0-9]{{3}}{END}")]
Digest = Annotated[str, msgspec.Meta(pattern=rf"^[0-9a-f]{{64}}{END}")]
"""SHA-256 of a payload, in hex."""
Range = tuple[Whole, Whole, Whole]
"""epoch, from, to: seqs, both inclusive."""
RefusedRange = tuple[Whole, Whole, Whole, RequirementId]
"""epoch, from, to, requirement id."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One receipt to one gateway.

    Shape: `stored` and `refused` by device; `unreadable` names by their digest the packs in which no sample
    could be named; `results` pairs of (command id, status).
    """

    v: Literal[1]
    stored: dict[str, list[Range]] = {}
    refused: dict[str, list[RefusedRange]] = {}
    unreadable: list[tuple[Digest, RequirementId]] = []
    results: list[tuple[str, str]] = []


_decoder = msgspec.json.Decoder(Receipt)
_encode = msgspec.json.Encoder().encode


def encode_receipt(receipt: Receipt) -> bytes:
    """Return the receipt as it travels."""
    return _encode(receipt)


def decode_receipt(payload: bytes) -> Receipt:
    """Return the receipt. Raises: DeliveryError (EX-D-001 shape, EX-D-002 a range that runs backwards)."""
    try:
        receipt = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DeliveryError("EX-D-001", f"not a receipt: {error}") from error
    for kind in (receipt.stored, receipt.refused):
        for device, ranges in kind.items():
            for _, first, last, *_ in ranges:
                if first > last:
                    raise DeliveryError(
                        "EX-D-002", f"range {first}…{last} runs backwards", place=device
                    )
    return receipt


def ranges(seqs: Iterable[int]) -> list[tuple[int, int]]:
    """Return ascending inclusive ranges that name exactly these seqs."""
    ordered = sorted(set(seqs))
    if not ordered:
        return []
    if ordered[-1] - ordered[0] == len(ordered) - 1:
        return [(ordered[0], ordered[-1])]  # nearly always
    found: list[tuple[int, int]] = []
    for seq in ordered:
        if found and seq == found[-1][1] + 1:
            found[-1] = (found[-1][0], seq)
        else:
            found.append((seq, seq))
    return found
