"""One lamp behind an Intesis Modbus-DALI gateway: the kit's table, from the lamp's first register on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from device_drivers.errors import FrameError
from device_drivers.kit import register_table
from device_drivers.kit.driver import Context, Reading
from device_drivers.kit.profile import Profile

Channel = Annotated[int, msgspec.Meta(ge=0, le=8)]
ShortAddress = Annotated[int, msgspec.Meta(ge=0, le=63)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of `[device.settings]`."""

    unit: register_table.Unit = 1
    """The gateway's address on the bus."""
    channel: Channel = 0
    """The gateway's DALI channel, counted from 0."""
    short_address: ShortAddress
    """The lamp's DALI short address."""


def first_register(channel: int, short_address: int) -> int:
    return 7000 * channel + 100 * short_address


class Driver(register_table.TableDriver):
    """One lamp."""

    def __init__(self, profile: Profile, settings: Settings) -> None:
        first = first_register(settings.channel, settings.short_address)
        super().__init__(profile, settings.unit, first)


def decode(profile: Profile, frames: Sequence[bytes], context: Context) -> list[Reading]:
    """Return the readings of answers to reads.

    Shape: as the kit's table; `channel` and `short_address` may be left out, since `start_address` tells
    them.
    """
    start = register_table.whole_number(context, "start_address")
    if start is None:
        raise FrameError("bad_context", "start_address is needed: the answer does not say it")
    channel = register_table.whole_number(context, "channel")
    short_address = register_table.whole_number(context, "short_address")
    told = divmod(start, 7000)
    first = first_register(
        told[0] if channel is None else channel,
        told[1] // 100 if short_address is None else short_address,
    )
    return register_table.decode(profile, frames, context, first)
