"""What docker-compose.yml needs of an office: the variables in `compose.env`, and the folders that it writes to."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from exchange.errors import ConfigError
from exchange.tls import is_loopback
from exchange.towns import Town
from provisioning.files import make_folder, write_private, write_public
from provisioning.store import places

ENVIRONMENT = "compose.env"
WRITTEN = ("broker/data", "store/data", "services/grafana/data", "street")
"""Folders behind named volumes, beside those of ingest and watch."""
Alerts: TypeAlias = Callable[[Path, Sequence[Town]], Mapping[Path, str]]
"""Takes a folder and towns, returns the files of alert rules that are to be written there."""
_OF_GRAFANA = """\
# Variables of Grafana, this office's own. Mail for alerts (the password in a file beside this one, of its owner alone):
#GF_SMTP_ENABLED=true
#GF_SMTP_HOST=mail.example.org:587
#GF_SMTP_FROM_ADDRESS=onestreet@example.org
#GF_SMTP_USER=onestreet
#GF_SMTP_PASSWORD__FILE=/office/services/grafana/smtp.password
# Where people reach it: links in alerts begin so.
#GF_SERVER_ROOT_URL=https://grafana.example.org/
"""


def prepare(office: Path, towns: Sequence[Town], alerts: Alerts | None = None) -> Path:
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
    if not (grafana / "grafana.env").exists():
        write_private(grafana / "grafana.env", _OF_GRAFANA)
    rules = make_folder(grafana / "alerting")
    for file, text in alerts(rules, towns).items() if alerts else ():
        write_public(file, text)
    for service in ("ingest", "watch", "rollups"):
        folder = office / "services" / service
        inside = _from_inside((folder / "ingest.toml").read_text(encoding="utf-8"), variables)
        write_public(folder / "compose.toml", inside)
    lines = [f"{name}='{value}'\n" for name, value in variables.items()]
    write_public(office / ENVIRONMENT, "".join(lines))
    return office / ENVIRONMENT


def _variables(office: Path, towns: Sequence[Town]) -> dict[str, str]:
    broker, store, file = towns[0].broker, towns[0].store, str(office / "towns")
    if len(places(towns)) > 1 or store.bucket is None or not store.url.startswith("influxdbs:"):
        allowed = "in containers the towns share one store, influxdbs://HOST:PORT/ORG/BUCKET"
        raise ConfigError(file, "store.url", store.url, allowed)
    user, group = _owner(office)
    if user == 0:
        allowed = "must be an ordinary user's: nothing in a container runs as root"
        raise ConfigError(str(office), "owner", "root", allowed)
    folder = str(office.resolve())
    if not folder.isprintable() or set(folder) & set("'$:"):
        raise ConfigError(folder, "folder", folder, "must be a path without quotes, $ and colons")
    address = urlsplit(store.bucket.url)
    return {
        "ONESTREET_OFFICE": folder,
        "ONESTREET_BACKUPS": f"{folder}-backups",
        "ONESTREET_UID": str(user),
        "ONESTREET_GID": str(group),
        "ONESTREET_BROKER_HOST": _name(broker.host, "broker"),
        "ONESTREET_BROKER_PORT": str(broker.port),
        "ONESTREET_BROKER_PASSWORD_PORT": str(broker.password_port),
        "ONESTREET_BROKER_SERVICE_PORT": str(broker.service_port),
        "ONESTREET_STORE_HOST": _name(address.hostname or "", "store"),
        "ONESTREET_STORE_PORT": str(address.port),
        "ONESTREET_STORE_BUCKET": store.bucket.bucket,
    }


def _owner(office: Path) -> tuple[int, int]:
    about = office.stat()
    return about.st_uid, about.st_gid


def _name(host: str, service: str) -> str:
    """Return the name of a server among containers: loopback would be the container that asks."""
    return service if is_loopback(host) else host


def _from_inside(text: str, variables: Mapping[str, str]) -> str:
    """Return an ingest.toml with the names that servers have among containers."""
    store = f"{variables['ONESTREET_STORE_HOST']}:{variables['ONESTREET_STORE_PORT']}"
    for pattern, words in (
        (r"(?m)^host = .*$", f'host = "{variables["ONESTREET_BROKER_HOST"]}"'),
        (r'(?m)^store = "influxdbs://[^/]+/', f'store = "influxdbs://{store}/'),
    ):
        text, times = re.subn(pattern, words, text)
        assert times == 1, pattern  # the office wrote it
    return text
