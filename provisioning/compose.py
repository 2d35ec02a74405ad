"""What docker-compose.yml needs of an office: the variables in `compose.env`, and the folders that it writes to."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from exchange.errors import ConfigError
from exchange.tls import is_loopback
from exchange.towns import Town
from provisioning.files import make_folder, write_private, write_public
from provisioning.store import places

ENVIRONMENT = "compose.env"
WRITTEN = ("broker/data", "store/data", "services/grafana/data", "street")
"""Folders behind named volumes, beside those of ingest and watch."""


def prepare(office: Path, towns: Sequence[Town]) -> Path:
    """Make an office ready for containers and return the file of variables.

    Raises: ConfigError saying why these towns cannot run in containers of one machine.
    """
    variables = _variables(office, towns)
    for name in WRITTEN:
        make_folder(office / name)
    make_folder(Path(variables["ONESTREET_BACKUPS"]))
    grafana = office / "services" / "grafana"
    write_public(grafana / "ca.pem", (office / "ca" / "ca.pem").read_bytes())
    if not (grafana / "admin.password").exists():
        write_private(grafana / "admin.password", secrets.token_urlsafe(24))
    lines = [f"{name}='{value}'\n" for name, value in variables.items()]
    write_public(office / ENVIRONMENT, "".join(lines))
    return office / ENVIRONMENT


def _variables(office: Path, towns: Sequence[Town]) -> dict[str, str]:
    broker, store, file = towns[0].broker, towns[0].store, str(office / "towns")
    _check_host(file, "broker.host", broker.host)
    if len(places(towns)) > 1 or store.bucket is None or not store.url.startswith("influxdbs:"):
        allowed = "in containers the towns share one store, influxdbs://HOST:PORT/ORG/BUCKET"
        raise ConfigError(file, "store.url", store.url, allowed)
    address = urlsplit(store.bucket.url)
    host = address.hostname or ""
    _check_host(file, "store.url", host)
    about = office.stat()
    if about.st_uid == 0:
        allowed = "must be an ordinary user's: nothing in a container runs as root"
        raise ConfigError(str(office), "owner", "root", allowed)
    folder = str(office.resolve())
    if not folder.isprintable() or set(folder) & set("'$:"):
        raise ConfigError(folder, "folder", folder, "must be a path without quotes, $ and colons")
    return {
        "ONESTREET_OFFICE": folder,
        "ONESTREET_BACKUPS": f"{folder}-backups",
        "ONESTREET_UID": str(about.st_uid),
        "ONESTREET_GID": str(about.st_gid),
        "ONESTREET_BROKER_HOST": broker.host,
        "ONESTREET_BROKER_PORT": str(broker.port),
        "ONESTREET_BROKER_PASSWORD_PORT": str(broker.password_port),
        "ONESTREET_BROKER_SERVICE_PORT": str(broker.service_port),
        "ONESTREET_STORE_HOST": host,
        "ONESTREET_STORE_PORT": str(address.port),
        "ONESTREET_STORE_BUCKET": store.bucket.bucket,
    }


def _check_host(file: str, key: str, host: str) -> None:
    if is_loopback(host):
        allowed = (
            "must be a name that is not loopback: in a container, that is the container itself"
        )
        raise ConfigError(file, key, host, allowed)
