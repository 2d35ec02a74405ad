"""The agents' configurations that an office keeps: what a new gateway gets with its code.

In `configurations/{county}/{gateway}/`: `edge.toml`, and beside it the inventories that it names. What a town says of
a gateway (its name, its broker) is put in when it is handed over, whatever stands there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from exchange.configuration import TomlFile, toml_value
from exchange.enrolment import (
    CONFIGURATION,
    MAX_CONFIGURATION_BYTES,
    is_inventory,
    with_towns_word,
)
from exchange.errors import ConfigError
from provisioning.files import write_public
from provisioning.office import Office


def folder_of(office: Office, county: str, gateway: str) -> Path:
    """Return where a gateway's configuration is kept."""
    return office.folder / "configurations" / county / gateway


def keep(office: Office, county: str, gateway: str, file: Path) -> list[str]:
    """Keep a gateway's `edge.toml` and its inventories in place of what was kept; return their names.

    Raises: ConfigError.
    """
    office.gateway(county, gateway)
    files = _read(file)
    folder = folder_of(office, county, gateway)
    for name, text in files.items():
        write_public(folder / name, text)
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    return sorted(files)


def kept(office: Office, county: str, gateway: str) -> dict[str, str]:
    """Return a gateway's configuration by file; nothing when none is kept. Raises: ConfigError when it is damaged."""
    file = folder_of(office, county, gateway) / CONFIGURATION
    return _read(file) if file.exists() else {}


def handed(office: Office, county: str, gateway: str) -> dict[str, str]:
    """Return a gateway's configuration with the town's word on whose it is, and on the broker. Raises: ConfigError."""
    files = kept(office, county, gateway)
    if not files:
        return {}
    whose = {"id": gateway, "county": county, "site": office.gateway(county, gateway).site}
    text = with_towns_word(files[CONFIGURATION], whose, office.broker_keys(county, gateway))
    return files | {CONFIGURATION: text}


def rename(office: Office, county: str, old: str, new: str) -> None:
    """Keep a gateway's configuration for another name."""
    source, target = folder_of(office, county, old), folder_of(office, county, new)
    if source.exists():
        shutil.rmtree(target, ignore_errors=True)
        source.rename(target)


def _read(file: Path) -> dict[str, str]:
    toml = TomlFile(file)
    files = {CONFIGURATION: file.read_text(encoding="utf-8-sig")}
    listed = toml.data.get("inventory", [])
    for index, table in enumerate(listed if isinstance(listed, list) else ()):
        name = table.get("file") if isinstance(table, dict) else None
        key = f"inventory[{index}].file"
        if not isinstance(name, str) or not is_inventory(name):
            allowed = f"must be a file beside it whose name ends in .csv, such as {toml_value('lamps.csv')}"
            raise ConfigError(toml.name, key, name, allowed, line=toml.line_of(key))
        try:
            files[name] = (file.parent / name).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            allowed = f"must be a readable file in UTF-8: {error}"
            raise ConfigError(toml.name, key, name, allowed, line=toml.line_of(key)) from error
    size = len(msgspec.json.encode(files))
    if size > MAX_CONFIGURATION_BYTES:
        allowed = f"must be of {MAX_CONFIGURATION_BYTES} bytes at most, with its inventories"
        raise ConfigError(toml.name, "file", size, allowed)
    return files
