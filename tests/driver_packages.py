"""Driver packages as an integrator installs them: found by their entry point, for as long as a test runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from device_drivers.kit import registry

RADON_PROFILE = """\
completes = "poll"
sources = ["Acme Radon manual 1.0"]
points = [
    { at = 0, field = "a", metric = "x-acme-a", type = "uint8" },
    { at = 1, field = "b", metric = "x-acme-b", type = "uint8" },
]
[identity]
maker = "Acme"
models = ["Radon 1"]
brand_origin = "TW"
description = "A radon sensor that is connected to"
[transport]
kind = "ble"
[timing]
cadence_s = 0.1
"""
RADON_DRIVER = '''\
"""Reads one characteristic."""

import msgspec

from device_drivers.kit.driver import Reading

VALUE = "b42e2a68-ade7-11e4-89d3-123b93f75cba"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    address: str


class Driver:
    def __init__(self, profile, settings):
        self.address = settings.address

    async def read(self, device):
        first, second = await device.read_characteristic(VALUE)
        return Reading({"x-acme-a": first, "x-acme-b": second})
'''
RADON = {"profile.toml": RADON_PROFILE, "driver.py": RADON_DRIVER}
"""A driver that connects (GATT)."""


@contextmanager
def installed(
    driver: str, files: Mapping[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Install a driver's package from its files; yields the driver's id."""
    package = f"{driver}_{folder.name.replace('-', '_')}"  # no other test's
    about = folder / f"{driver}-1.0.dist-info"
    for path, text in (
        (folder / package / "__init__.py", ""),
        *((folder / package / name, text) for name, text in files.items()),
        (about / "METADATA", f"Metadata-Version: 2.1\nName: {driver}\nVersion: 1.0\n"),
        (about / "entry_points.txt", f"[onestreet.drivers]\n{driver} = {package}\n"),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    _forget()
    yield driver
    _forget()


def _forget() -> None:
    registry._packages.cache_clear()
    registry.load.cache_clear()
