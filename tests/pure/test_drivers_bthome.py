"""BTHome: keys, the size table against the profile, and what an attacker on the air may try."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_drivers.ble.bthome.driver import SERVICE_UUID, Driver, Settings
from device_drivers.errors import FrameError
from device_drivers.kit.driver import Advert
from device_drivers.kit.registry import load
from exchange.errors import ConfigError

PACKAGE = load("bthome")
ADDRESS = "54:48:E6:8F:80:A5"
BINDKEY = "231d39c1d7cc1ab1aee224cd096db932"
ENCRYPTED = bytes.fromhex("41a47266c95f730011223378237214")  # the format's own example


def advert(payload: bytes, at_s: float = 0.0) -> Advert:
    return Advert(ADDRESS, -70, {}, {SERVICE_UUID: payload}, at_s)


def driver(**settings: str) -> Driver:
    return Driver(PACKAGE.profile, Settings(address=ADDRESS, **settings))  # type: ignore[arg-type]  # literals


def test_key_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bay-7.key"
    path.write_text(f"{BINDKEY}\n")
    reading = driver(bindkey_file=str(path)).hear(advert(ENCRYPTED))
    assert reading is not None
    assert reading.metrics == {"temperature": 25.06, "humidity": 50.55}


@pytest.mark.parametrize(
    "content", [None, "", "12", BINDKEY + "00", "no hex at all", "\u00e9" * 32]
)
def test_a_key_file_that_is_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "bay-7.key"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bindkey_file.*32 hex digits") as caught:
        driver(bindkey_file=str(path))
    assert not content or content not in str(caught.value)


def test_a_key_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "bay-7.key"
    path.write_text(BINDKEY)
    with pytest.raises(ConfigError):
        driver(bindkey=BINDKEY, bindkey_file=str(path))


def test_a_key_reaches_no_log() -> None:
    assert BINDKEY not in repr(Settings(address=ADDRESS, bindkey=BINDKEY))


def test_every_object_has_a_size() -> None:
    """One object after the other, then a second temperature: no length is wrong by a byte."""
    for point in PACKAGE.profile.points:
        sized = {"text": b"\x03abc", "raw": b"\x00", "command": b"\x02\x01\xff\xff"}
        for size in range(1, 5):
            value = sized.get(point.type, bytes(size))
            payload = b"\x40" + bytes((point.at,)) + value + b"\x25\x01"
            reading = driver().take(payload, 0.0)
            assert reading is not None
            seen = [name for name in reading.metrics if name.endswith(("occupied", "occupied_2"))]
            if seen and seen[-1] == (
                "x-bthome-occupied_2" if "occup" in point.metric else "occupied"
            ):
                break
        else:
            pytest.fail(f"object {point.at:#x}: what follows it is not read")


def test_the_table_has_every_object_of_the_format_once() -> None:
    ids = [point.at for point in PACKAGE.profile.points]
    assert ids == [*range(0x30), *range(0x3A, 0x66), *range(0xF0, 0xF3)]


def test_a_stranger_cannot_make_the_counter_jump() -> None:
    heard = driver(bindkey=BINDKEY)
    forged = ENCRYPTED[:7] + b"\xff\xff\xff\x7f" + ENCRYPTED[-4:]
    with pytest.raises(FrameError, match="decrypt_failed"):
        heard.hear(advert(forged))
    assert heard.hear(advert(ENCRYPTED)) is not None
    assert heard.hear(advert(ENCRYPTED, 60.0)) is None


def test_other_services_are_not_ours() -> None:
    other = Advert(
        ADDRESS, -70, {0x0499: b"\x05"}, {"0000fe95-0000-1000-8000-00805f9b34fb": b"@"}, 0
    )
    assert driver().hear(other) is None


@given(payload=st.binary(max_size=40), key=st.booleans())
def test_the_air_can_say_anything(payload: bytes, key: bool) -> None:
    heard = driver(bindkey=BINDKEY) if key else driver()
    try:
        reading = heard.hear(advert(payload))
    except FrameError:
        return
    assert not key
    assert reading is None or reading.metrics
