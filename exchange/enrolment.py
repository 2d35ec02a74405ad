"""Enrolment: how a new gateway gets its credentials with a code that works once.

A code is written as an address and 14 groups of 4 characters (Crockford's base 32, which has no I, L, O and U):

    ENROL.TAIPEI.EXAMPLE 04W3-…-9XKQ

The 56 characters are 35 bytes: version, the first half of the SHA-256 of the town's CA certificate, a
random secret, and a CRC over all of it and the address. So a gateway that knows nobody knows from
the code alone whom to believe, and a typing error is found before anything is sent.

The address stands apart with a space: a phone that takes it for a link opens it without the secret.

The service speaks HTTPS: `GET /v1/ca` is the CA certificate, to be believed only when the code's fingerprint
fits; `POST /v1/enrol` takes a `Request` and answers a `Grant` or a `Refusal`.

Source: https://www.crockford.com/base32.html, read 2026-11
"""

from __future__ import annotations

import re
import secrets
import tomllib
import unicodedata
from binascii import crc_hqx
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from exchange.configuration import with_tables
from exchange.errors import OnestreetError
from exchange.gateway_paths import STATE
from exchange.states import Label, Location
from exchange.topics import END

T = TypeVar("T")

PORT = 8443
"""Where the service listens when a code's address says nothing else."""
CA_PATH, ENROL_PATH = "/v1/ca", "/v1/enrol"
MAX_REQUEST_BYTES = 16 * 1024
MAX_CONFIGURATION_BYTES = 3 * 1024 * 1024
"""Of an agent's configuration with its inventories, as JSON: ten thousand devices."""
MAX_ANSWER_BYTES = MAX_CONFIGURATION_BYTES + 64 * 1024
CONFIGURATION = "edge.toml"
_PACE = ("keepalive_s", "timeout_s")
"""What is the gateway's own affair in its table `broker`."""
_INVENTORY = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]{1,100}\.csv")

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {char: value for value, char in enumerate(_ALPHABET)} | {"O": 0, "I": 1, "L": 1}
_VERSION = 1
_FINGERPRINT_BYTES = 16  # a second CA with the same half would take 2^128 attempts
_SECRET_BYTES = 16
_CHARACTERS, _GROUP = 56, 4
_ADDRESS = re.compile(
    r"(?P<host>\[[0-9a-f:.]{2,45}\]|[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)(:(?P<port>[0-9]{1,5}))?"
)

Reason = Literal[
    "mistyped",
    "unknown",
    "expired",
    "used",
    "withdrawn",
    "busy",
    "unreachable",
    "clock",
    "authority",
    "answer",
]

WORDS: dict[Reason, tuple[str, str]] = {
    "mistyped": ("the code has a typing error", "註冊碼輸入有誤"),
    "unknown": ("the town does not know this code", "市府沒有這組註冊碼"),
    "expired": ("the code has expired", "註冊碼已過期"),
    "used": ("the code was used already", "註冊碼已使用過"),
    "withdrawn": ("the town has withdrawn this gateway", "市府已撤銷此閘道器"),
    "busy": ("the service is busy", "註冊服務忙碌中"),
    "unreachable": ("the enrolment service cannot be reached", "無法連上註冊服務"),
    "clock": ("a certificate is not valid at this gateway's time", "憑證在閘道器目前的時間無效"),
    "authority": ("this is not the town that the code is from", "對方不是核發註冊碼的市府"),
    "answer": ("the answer makes no sense", "回應無法解讀"),
}
"""What an installer reads, and what docs/installers explains."""


class EnrolmentError(OnestreetError):
    """A gateway was not enrolled. `detail` holds no secret."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        """Say why, in both languages."""
        super().__init__(f"{' '.join(WORDS[reason])}{': ' + detail if detail else ''}")
        self.reason, self.detail = reason, detail


class EnrolmentRefused(EnrolmentError):
    """Trying again with the same code does not help."""


class EnrolmentDelayed(EnrolmentError):
    """Nothing is decided yet: try again, not before `retry_after_s`."""

    def __init__(self, reason: Reason, detail: str = "", *, retry_after_s: float = 0.0) -> None:
        """Keep the seconds beside the words."""
        super().__init__(reason, detail)
        self.retry_after_s = retry_after_s


# ---------------------------------------------------------------------------------------------------------- codes


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """A one-time code. Its secret is in `text` and nowhere else."""

    host: str
    port: int = PORT
    fingerprint: bytes
    secret: bytes

    @property
    def address(self) -> str:
        """Host and port, as both are written in a code."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORT else f"{host}:{self.port}"

    @property
    def text(self) -> str:
        """The code as it is shown, typed and scanned; upper case, which makes a smaller QR code."""
        inner = bytes([_VERSION]) + self.fingerprint + self.secret
        number = int.from_bytes(inner + _check(self.address, inner), "big")
        chars = [_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_CHARACTERS))]
        return f"{self.address} {'-'.join(_groups(chars))}".upper()

    @property
    def digest(self) -> str:
        """What the town keeps of the secret."""
        return secret_digest(self.secret)

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Everything but the secret, for logs and tracebacks."""
        return [("address", self.address), ("fingerprint", self.fingerprint.hex())]

    def __repr__(self) -> str:
        """Like `__rich_repr__`."""
        return f"Code({self.address}, {self.fingerprint.hex()})"


def new_code(address: str, ca_certificate: bytes) -> Code:
    """Return a code with a new secret; the certificate is DER. Raises: EnrolmentRefused for the address."""
    host, port = _split(address)
    secret = secrets.token_bytes(_SECRET_BYTES)
    return Code(host=host, port=port, fingerprint=fingerprint(ca_certificate), secret=secret)


def read_code(text: str) -> Code:
    """Return the code that somebody typed or scanned.

    Shape: lower case, other dashes, spaces and line breaks, full-width characters and O, I, L for 0, 1, 1 are taken.
    Raises: EnrolmentRefused that says which group looks wrong, never what it was.
    """
    address, *rest = unicodedata.normalize("NFKC", text).split() or [""]
    host, port = _split(address)
    typed = re.sub(r"[\W_]", "", "".join(rest).upper())
    for place, char in enumerate(typed):
        if char not in _VALUES:
            detail = f"group {place // _GROUP + 1} has a character that no code has"
            raise EnrolmentRefused("mistyped", f"{detail} 第 {place // _GROUP + 1} 組有無效字元")
    values = [_VALUES[char] for char in typed]
    if len(values) != _CHARACTERS:
        counts = f"{len(values)} / {_CHARACTERS}"
        raise EnrolmentRefused("mistyped", f"characters after the address 位址後的字元數 {counts}")
    code = Code(host=host, port=port, fingerprint=b"", secret=b"")
    inner = _decoded(values, code.address)
    if inner is None:
        raise EnrolmentRefused("mistyped", _suspect(values, code.address))
    if inner[0] != _VERSION:
        detail = f"version {inner[0]}; this software is too old 軟體版本過舊"
        raise EnrolmentRefused("mistyped", detail)
    found, secret = inner[1 : 1 + _FINGERPRINT_BYTES], inner[1 + _FINGERPRINT_BYTES :]
    return Code(host=host, port=port, fingerprint=found, secret=secret)


def fingerprint(ca_certificate: bytes) -> bytes:
    """Return what a code says of a CA certificate (DER)."""
    return sha256(ca_certificate).digest()[:_FINGERPRINT_BYTES]


def secret_digest(secret: bytes) -> str:
    """Return what is kept of a secret; 128 random bits need no slow hash."""
    return sha256(b"onestreet enrolment\0" + secret).hexdigest()


def _split(address: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(address.lower())
    port = int(match["port"] or PORT) if match else 0
    if match is None or not 0 < port < 65536:
        detail = "it begins with an address, such as ENROL.EXAMPLE.ORG 註冊碼開頭應為位址"
        raise EnrolmentRefused("mistyped", detail)
    return match["host"].strip("[]"), port


def _check(address: str, inner: bytes) -> bytes:
    # A CRC finds every single wrong character and every swap of neighbours, a short hash only most.
    return crc_hqx(address.encode() + inner, 0xFFFF).to_bytes(2, "big")


def _decoded(values: list[int], address: str) -> bytes | None:
    """Return what is inside when the check fits."""
    number = 0
    for value in values:
        number = number << 5 | value
    data = number.to_bytes(_CHARACTERS * 5 // 8, "big")
    inner, check = data[:-2], data[-2:]
    return inner if check == _check(address, inner) else None


def _suspect(values: list[int], address: str) -> str:
    """Say which group would make the code right if one character, or two neighbours, were others."""
    wrong = set()
    for place, value in enumerate(values):
        tries = [[*values[:place], other, *values[place + 1 :]] for other in range(32)]
        if place:
            tries.append([*values[: place - 1], value, values[place - 1], *values[place + 1 :]])
        if any(_decoded(each, address) for each in tries):
            wrong.add(place // _GROUP + 1)
    if len(wrong) != 1:
        return "compare it with what you were given 請與收到的註冊碼逐一核對"
    (group,) = wrong
    return f"look at group {group} first 請先核對第 {group} 組"


def _groups(chars: list[str]) -> Iterator[str]:
    for start in range(0, len(chars), _GROUP):
        yield "".join(chars[start : start + _GROUP])


# ------------------------------------------------------------------------------------------------------- messages


def read_message(data: bytes, shape: type[T]) -> T:
    """Return what one side said to the other. Raises: EnrolmentRefused with nothing of it."""
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EnrolmentRefused("answer", type(error).__name__) from None


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a gateway asks: its secret in hex, and a certificate request in PEM for a key that it keeps."""

    v: Literal[1] = 1
    secret: Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{2 * _SECRET_BYTES}}}{END}")]
    request: Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Nothing of it."""
        return []

    def __repr__(self) -> str:
        """Like `__rich_repr__`."""
        return "Request(***)"


class BrokerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the gateway's samples go, and as whom."""

    host: str
    port: int
    username: str


def is_inventory(name: str) -> bool:
    """Whether a name is one that an inventory may have: of a file beside the configuration, and of no other kind."""
    return _INVENTORY.fullmatch(name) is not None


def with_towns_word(
    text: str, gateway: Mapping[str, Any], broker: Mapping[str, Any], state_dir: str = ""
) -> str:
    """Return a kept edge.toml with a town's word for whose it is and for the broker, comments and all.

    What else it says of the gateway, such as its place, is nearer to the truth than what the town knows of the site;
    a `state_dir` that is given goes before its own.
    Shape: `gateway` and `broker` are those tables as the town would write them.
    Raises: ValueError, RecursionError when the text is no TOML.
    """
    found = tomllib.loads(text)
    its_gateway, its_broker = (
        table if isinstance(table := found.get(name), Mapping) else {}
        for name in ("gateway", "broker")
    )
    whose = {key: gateway[key] for key in ("id", "county", "site")}
    if state_dir:
        whose["state_dir"] = state_dir
    pace = {key: its_broker[key] for key in _PACE if key in its_broker}
    tables = {
        "gateway": {"state_dir": str(STATE), **gateway, **its_gateway, **whose},
        "broker": {**broker, **pace},
    }
    return with_tables(text, tables)


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What an enrolled gateway is and has: a certificate, or a password where it cannot hold a key.

    Shape: `files` is the agent's configuration where the town keeps one: `edge.toml` and inventories, by name.
    Units: `intervals` are seconds, by domain.
    """

    v: Literal[1] = 1
    county: str
    site: str
    gateway: str
    broker: BrokerAddress
    ca: str
    certificate: str = ""
    password: str = ""
    label: Label = Label()
    location: Location | None = None
    township: str = ""
    intervals: dict[str, float] = {}
    files: dict[str, str] = {}

    def __post_init__(self) -> None:
        """A town may bring nothing but these files, wherever it is put."""
        for name in self.files:
            if name != CONFIGURATION and not is_inventory(name):
                raise ValueError("a file that is no configuration")

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Whose it is, for logs and tracebacks."""
        return [("gateway", f"{self.county}/{self.gateway}")]

    def __repr__(self) -> str:
        """Like `__rich_repr__`."""
        return f"Grant({self.county}/{self.gateway})"


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why not; `retry_after_s` is of `busy`."""

    v: Literal[1] = 1
    reason: Literal["unknown", "expired", "used", "withdrawn", "busy", "answer"]
    retry_after_s: float = 0.0
