"""The table `[broker]` of a configuration: where a broker is, and as whom to go there."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated, Self

import msgspec
from msgspec.structs import replace

from exchange.configuration import secret
from exchange.errors import ConfigError
from exchange.tls import Tls, check_plain
from exchange.topics import END

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
# Names of at most 253 characters in labels of at most 63, or an address: what a resolver takes.
Host = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^[^\x00-\x20\x7f.]{{1,63}}(\.[^\x00-\x20\x7f.]{{1,63}})*\.?{END}", max_length=253
    ),
]
Username = Annotated[str, msgspec.Meta(pattern=rf"^[^\x00-\x1f\x7f]*{END}", max_length=1024)]


class BrokerTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every program says of its broker. The password is in a file or an environment variable, never here.

    Only a broker on loopback goes without `tls`. The port is 1883, or 8883 with TLS, unless given.
    """

    host: Host
    port: Port | None = None
    tls: Tls | None = None
    username: Username = ""
    password_file: Path | None = None
    password_env: str = ""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port or (8883 if self.tls else 1883)

    def check(self, file: str) -> None:
        """Check that the keys go together. Raises: ConfigError."""
        check_plain(file, "broker", self.host, self.tls)
        if self.password_file and self.password_env:
            allowed = "must be left out beside password_file 只能擇一"
            raise ConfigError(file, "broker.password_env", self.password_env, allowed)
        if (self.password_file or self.password_env) and not self.username:
            allowed = "a password needs a username 有密碼就要有帳號"
            raise ConfigError(file, "broker.username", self.username, allowed)

    def anchored(self, folder: Path) -> Self:
        """Return it with every path absolute, seen from a folder."""
        word = self.password_file and folder / self.password_file
        return replace(self, password_file=word, tls=self.tls and self.tls.anchored(folder))

    def password(self, file: str) -> str | None:
        """Return the secret. Raises: ConfigError when the file or the variable is not there."""
        return secret(file, "broker", self.password_file, self.password_env)

    def context(self, file: str) -> ssl.SSLContext | None:
        """Return TLS for one connection. Raises: ConfigError when a file is missing or no secret."""
        return None if self.tls is None else self.tls.context(file, "broker.tls")
