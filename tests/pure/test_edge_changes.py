"""Changes: what a reload has to end, begin anew and say, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.changes import Changes, changes
from edge_agent.config import Config
from edge_agent.config_reading import read_config

BEFORE = """\
[gateway]
id = "gw-1"
county = "tw-tpe"
site = "street"
state_dir = "state"
location = { lat = 25.0, lon = 121.5 }

[broker]
host = "localhost"

[delivery]
window = 5000

[[bus]]
id = "tty0"
kind = "serial"
port = "/dev/ttyUSB0"

[[bus]]
id = "rs485"
kind = "modbus-rtu"
port = "/dev/ttyUSB1"
baudrate = 9600

[[device]]
id = "aq-1"
domain = "air"
driver = "plantower_pms"
bus = "tty0"
interval_s = 1
cabinet = "C-1"

[[device]]
id = "lamp-1"
domain = "streetlight"
driver = "intesis_dali"
bus = "rs485"
interval_s = 30
settings = { short_address = 1 }
circuit = "K1"

[[programme]]
id = "night"
circuits = ["K1"]
steps = [{ at = "18:00", level = 100 }, { at = "06:00", level = 0 }]
"""
LAMP_2 = """
[[device]]
id = "lamp-2"
domain = "streetlight"
driver = "intesis_dali"
bus = "rs485"
interval_s = 30
settings = { short_address = 2 }
"""
ON_RS485 = Changes(end_buses=["rs485"], begin_buses=["rs485"], republish=True)
SAID = Changes(republish=True)


def read(folder: Path, text: str) -> Config:
    path = folder / "edge.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("", "", Changes()),
        ("[gateway]", "# a comment\n[gateway]", Changes()),
        # a bus: itself, how a device is read
        ("baudrate = 9600", "baudrate = 19200", ON_RS485),
        ("short_address = 1 }", "short_address = 9 }", ON_RS485),
        ("interval_s = 30", "interval_s = 60", ON_RS485),
        # a device more or less, or on another bus
        (
            '\n[[programme]]',
            f"{LAMP_2}\n[[programme]]",
            Changes(end_buses=["rs485"], begin_buses=["rs485"], appeared=["lamp-2"], republish=True),
        ),
        (
            'id = "aq-1"',
            'id = "aq-2"',
            Changes(end_buses=["tty0"], begin_buses=["tty0"], appeared=["aq-2"], disappeared=["aq-1"], republish=True),
        ),
        # what is only said, or only judged: nothing stops
        ('cabinet = "C-1"', 'cabinet = "C-2"', SAID),
        (
            'cabinet = "C-1"',
            'cabinet = "C-1"\nreport = { pm2_5 = { deadband = 1.0 } }',
            SAID,
        ),
        # lamps
        ('level = 100', 'level = 80', Changes()),  # programmes are served anew each time
        ('cabinet = "C-1"', 'cabinet = "C-1"\ncircuit = "K2"', SAID),
        # the gateway
        ("lat = 25.0,", "lat = 25.1,", SAID),
        ('"localhost"', '"127.0.0.1"', Changes(reconnect=["broker.host"])),
        ("[broker]", "[broker]\nkeepalive_s = 20", Changes(reconnect=["broker.keepalive_s"])),
        ('id = "gw-1"', 'id = "gw-2"', Changes(restart=["gateway.id"])),
        ("window = 5000", "window = 10", Changes(restart=["delivery.window"])),
        ('id = "gw-1"', 'id = "gw-1"\ntime_zone = "UTC"', Changes(restart=["gateway.time_zone"])),
    ],
)  # fmt: skip
def test_what_is_to_be_done(tmp_path: Path, old: str, new: str, wanted: Changes) -> None:
    before = read(tmp_path, BEFORE)
    found = changes(before, read(tmp_path, BEFORE.replace(old, new, 1)))
    assert found == wanted


def test_a_bus_without_devices_is_none(tmp_path: Path) -> None:
    head = BEFORE[: BEFORE.index('[[device]]\nid = "lamp-1"')]
    before, after = read(tmp_path, BEFORE), read(tmp_path, head)
    assert changes(before, after) == Changes(
        end_buses=["rs485"], disappeared=["lamp-1"], republish=True
    )
    assert changes(after, before).begin_buses == ["rs485"]


def test_the_order_in_a_file_changes_nothing(tmp_path: Path) -> None:
    lamp_1 = BEFORE[BEFORE.index('[[device]]\nid = "lamp-1"') : BEFORE.index("[[programme]]")]
    one = read(tmp_path, BEFORE + LAMP_2)
    other = read(tmp_path, BEFORE.replace(lamp_1, "") + LAMP_2 + lamp_1)
    assert changes(one, other) == Changes()


INVENTORY = """
[template.lamp]
domain = "streetlight"
driver = "intesis_dali"
bus = "rs485"
interval_s = 30

[[inventory]]
file = "lamps.csv"
template = "lamp"
"""


@pytest.mark.parametrize(("left", "lost_half"), [(6, False), (3, False), (2, True), (1, True)])
def test_less_than_half_of_what_was_there_is_told(
    tmp_path: Path, left: int, lost_half: bool
) -> None:
    """Two devices stand in the file itself, six in an inventory, and as many in another."""

    def lamps(count: int, file: str = "lamps.csv") -> Config:
        rows = "".join(f"l-{number},{number}\n" for number in range(10, 10 + count))
        (tmp_path / file).write_text(f"id,settings.short_address\n{rows}", encoding="utf-8")
        more = '[[inventory]]\nfile = "more.csv"\ntemplate = "lamp"\n'
        return read(tmp_path, BEFORE + INVENTORY.replace("lamps.csv", file) + more)

    rows = "".join(f"m-{number},{number}\n" for number in range(30, 36))
    (tmp_path / "more.csv").write_text(f"id,settings.short_address\n{rows}", encoding="utf-8")

    assert changes(lamps(6), lamps(left)).lost_half == lost_half
    # another inventory is one that somebody named on purpose, none is one that was taken away
    assert not changes(lamps(6), lamps(left, "others.csv")).lost_half
    assert not changes(lamps(6), read(tmp_path, BEFORE)).lost_half
