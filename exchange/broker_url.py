"""A broker on a command line: `mqtt[s]://[user@]host[:port]`."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from exchange.errors import ConfigError

PORTS = {"mqtt": 1883, "mqtts": 8883}
ALLOWED = (
    "mqtt[s]://[user@]host[:port]; a password comes from a file, never from here"
    " 密碼須放在檔案中，不可寫在此處"
)


class BrokerUrl(NamedTuple):
    """What it says."""

    host: str
    port: int
    username: str | None
    is_tls: bool


def read_broker_url(url: str, file: str, key: str) -> BrokerUrl:
    """Return what a URL says. Raises: ConfigError about `key`; what may be a secret is not in it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # no port, or half an IPv6 address; which part it is may be a secret's
        raise ConfigError(file, key, shown(url), ALLOWED) from None
    beyond = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in PORTS or not parts.hostname or beyond or parts.password is not None:
        raise ConfigError(file, key, shown(url), ALLOWED)
    return BrokerUrl(
        host=parts.hostname,
        port=port or PORTS[parts.scheme],
        username=unquote(parts.username) if parts.username else None,
        is_tls=parts.scheme == "mqtts",
    )


def shown(url: str) -> str:
    """Return a URL without whom it names, and with what word."""
    return re.sub(r"^([^/]*//)?.*@", r"\1…@", url, flags=re.DOTALL)
