"""Topics: where a message of the exchange travels.

city/v1/{county}/{site}/{gateway}/{domain}/{device}/{channel}   and   city/v1/{county}/{site}/{gateway}/receipts
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

import msgspec

from exchange.dictionary import dictionary
from exchange.errors import TopicError

Channel = Literal["readings", "state", "commands", "results", "receipts"]
DeviceChannel = Literal["readings", "state", "commands", "results"]

PREFIX = "city/v1"
# The end of a text in Python as in JSON Schema: `$` alone lets Python take a line feed more.
END = r"$(?!\n)"
LEVEL = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
COUNTY = re.compile(r"[a-z]{2}-[a-z0-9]{1,3}")
County = Annotated[str, msgspec.Meta(pattern=f"^{COUNTY.pattern}{END}")]
Level = Annotated[str, msgspec.Meta(pattern=f"^{LEVEL.pattern}{END}")]
_DEVICE_CHANNELS = frozenset(get_args(DeviceChannel))


class Topic(msgspec.Struct, frozen=True):
    """A parsed topic. `domain` and `device` are empty on a gateway's `receipts`."""

    county: str
    site: str
    gateway: str
    domain: str
    device: str
    channel: Channel

    def __str__(self) -> str:
        """Return the topic as MQTT carries it."""
        head = f"{PREFIX}/{self.county}/{self.site}/{self.gateway}"
        return (
            f"{head}/receipts"
            if self.channel == "receipts"
            else f"{head}/{self.domain}/{self.device}/{self.channel}"
        )

    @property
    def receipts(self) -> str:
        """The topic on which the gateway of this topic gets its receipts."""
        return f"{PREFIX}/{self.county}/{self.site}/{self.gateway}/receipts"


def parse_topic(text: str) -> Topic:
    """Return the parsed topic. Raises: TopicError with the requirement it breaks."""
    levels = text.split("/")
    if levels[:2] != ["city", "v1"]:
        raise TopicError("EX-T-001", f"expected a topic under {PREFIX}/", place=text)
    match levels[2:]:
        case [county, site, gateway, "receipts"]:
            domain = device = ""
            channel = "receipts"
        case [county, site, gateway, domain, device, channel]:
            pass
        case _:
            raise TopicError(
                "EX-T-001",
                f"expected {PREFIX}/county/site/gateway/domain/device/channel or …/gateway/receipts",
                place=text,
            )
    for name, level in (("county", county), ("site", site), ("gateway", gateway)):
        _check_level(name, level, text)
    if not COUNTY.fullmatch(county):
        raise TopicError(
            "EX-T-003",
            f"county {county!r} is not ISO 3166-2 in lower case, such as tw-tpe",
            place=text,
        )
    if channel == "receipts" and not device:
        return Topic(county, site, gateway, "", "", "receipts")
    _check_level("device", device, text)
    if domain not in dictionary():
        raise TopicError(
            "EX-T-004", f"domain {domain!r} is not one of {', '.join(dictionary())}", place=text
        )
    if channel not in _DEVICE_CHANNELS:
        raise TopicError(
            "EX-T-005",
            f"channel {channel!r} is not one of {', '.join(sorted(_DEVICE_CHANNELS))}",
            place=text,
        )
    if domain == "gateway" and device != gateway:
        raise TopicError("EX-T-006", f"the gateway's own device id must be {gateway!r}", place=text)
    return Topic(county, site, gateway, domain, device, channel)  # type: ignore[arg-type]  # just checked


def _check_level(name: str, level: str, text: str) -> None:
    if not LEVEL.fullmatch(level):
        raise TopicError(
            "EX-T-002", f"{name} {level!r} does not match [a-z0-9][a-z0-9-]{{0,47}}", place=text
        )
