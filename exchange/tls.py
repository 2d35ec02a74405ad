"""TLS for everything that connects: which authority to believe, and who we are.

Contexts are made anew for each connection, so that a renewed certificate needs no restart.
"""

from __future__ import annotations

import ipaddress
import ssl
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from exchange.configuration import check_private
from exchange.errors import ConfigError


class Tls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table `tls` of a configuration file. Without a certificate only the other side proves who it is."""

    ca_file: Path
    certificate_file: Path | None = None
    key_file: Path | None = None

    def anchored(self, folder: Path) -> Tls:
        """Return it with every path seen from a folder."""
        certificate, key = self.certificate_file, self.key_file
        return Tls(
            ca_file=folder / self.ca_file,
            certificate_file=None if certificate is None else folder / certificate,
            key_file=None if key is None else folder / key,
        )

    def context(self, config: str, table: str) -> ssl.SSLContext:
        """Return a client's context: TLS 1.2 or newer, names checked.

        Shape: `config` and `table` are where the keys stand, for the error.
        Raises: ConfigError naming the key whose file is missing, unreadable or readable by others.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            context.load_verify_locations(self.ca_file)
        except (OSError, ssl.SSLError) as error:
            allowed = f"must be a readable file of certificates in PEM: {_words(error)}"
            raise ConfigError(config, f"{table}.ca_file", str(self.ca_file), allowed) from error
        if self.certificate_file is None and self.key_file is None:
            return context
        for key, file in (
            ("certificate_file", self.certificate_file),
            ("key_file", self.key_file),
        ):
            if file is None:
                allowed = "certificate_file and key_file belong together"
                raise ConfigError(config, f"{table}.{key}", None, allowed)
            try:
                file.open("rb").close()  # loading both at once does not say which is not there
            except OSError as error:
                allowed = f"must be a readable file in PEM: {_words(error)}"
                raise ConfigError(config, f"{table}.{key}", str(file), allowed) from error
        assert self.certificate_file is not None
        assert self.key_file is not None
        check_private(config, f"{table}.key_file", self.key_file)
        try:
            context.load_cert_chain(self.certificate_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            allowed = f"must be a certificate in PEM that fits key_file: {_words(error)}"
            found = str(self.certificate_file)
            raise ConfigError(config, f"{table}.certificate_file", found, allowed) from error
        return context


def is_loopback(host: str) -> bool:
    """Whether a host is this machine to itself, the one place where plain text is allowed."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def check_host(host: str) -> None:
    """Check that a name can be asked for: no part of it is empty or too long. Raises: ValueError."""
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f"{host} is no host: its parts have 1 to 63 letters") from None


def check_https(config: str, key: str, url: str) -> None:
    """Check that a token sent to this URL stays secret: HTTPS, or HTTP to this machine. Raises: ConfigError."""
    scheme = host = ""
    with suppress(ValueError):  # a port that is none, half a bracket
        parts = urlsplit(url)
        if parts.port != 0:
            check_host(parts.hostname or "")
            scheme, host = parts.scheme, parts.hostname or ""
    if not host or not (scheme == "https" or (scheme == "http" and is_loopback(host))):
        allowed = "must be https://HOST:PORT (http:// on loopback): a token goes there"
        raise ConfigError(config, key, url, allowed)


def check_plain(config: str, table: str, host: str, tls: Tls | None) -> None:
    """Check that only loopback goes without TLS. Raises: ConfigError."""
    if tls is None and not is_loopback(host):
        allowed = (
            f"this table is required (ca_file, …): {host} is not loopback, and goes by TLS only"
        )
        raise ConfigError(config, f"{table}.tls", None, allowed)


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
