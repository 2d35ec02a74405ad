"""The agent's configuration: what is wrong is named, and `onestreet edge check` says it to the installer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.advice import advice
from edge_agent.config import Config, SerialBus
from edge_agent.config_reading import examine, load_config, read_config
from exchange.configuration import MAX_MISTAKES
from exchange.errors import ConfigError
from exchange.tls import Tls
from onestreet.cli import main
from tests.driver_packages import RADON, installed

GOOD = """\
[gateway]
id = "gw-1"
county = "tw-tpe"
site = "street"
state_dir = "/tmp/state"

[broker]
host = "localhost"

[[bus]]
id = "tty0"
kind = "serial"
port = "/dev/ttyUSB0"

[[bus]]
id = "rs485"
kind = "modbus-rtu"
port = "/dev/ttyUSB1"

[[bus]]
id = "hci0"
kind = "ble"

[[device]]
id = "aq-1"
domain = "air"
driver = "plantower_pms"
bus = "tty0"
interval_s = 1

[[device]]
id = "lamp-1"
domain = "streetlight"
driver = "intesis_dali"
bus = "rs485"
interval_s = 2
settings = { short_address = 1 }

[[device]]
id = "bay-1"
domain = "parking"
driver = "bthome"
bus = "hci0"
interval_s = 1
settings = { address = "C0:FF:EE:00:00:01" }
"""


def write(folder: Path, *edits: tuple[str, str], more: str = "") -> Path:
    text = GOOD
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} must stand in the file once"
        text = text.replace(old, new)
    path = folder / "edge.toml"
    path.write_text(text + more, encoding="utf-8")
    return path


def device(**keys: str) -> str:
    return "\n[[device]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())


LAMP = {
    "id": '"lamp-2"',
    "domain": '"streetlight"',
    "driver": '"intesis_dali"',
    "bus": '"rs485"',
    "interval_s": "2",
    "settings": "{ short_address = 2 }",
}


def test_a_good_file(tmp_path: Path) -> None:
    config: Config = read_config(write(tmp_path, more=device(**LAMP)))
    assert [one.id for one in config.device] == ["aq-1", "lamp-1", "bay-1", "lamp-2"]
    assert config.bus_of(config.device[0]) == SerialBus(id="tty0", port="/dev/ttyUSB0")
    assert config.delivery.window == 5000
    assert config.broker.password("x") is None


@pytest.mark.parametrize(
    "example", sorted((Path(__file__).parents[2] / "docs").rglob("edge*.toml"))
)
def test_the_examples_of_the_documentation_are_good(example: Path) -> None:
    assert read_config(example).device


BAY = 'settings = { address = "C0:FF:EE:00:00:01" }'


@pytest.mark.parametrize(
    ("edits", "more", "key", "value", "allowed"),
    [
        # the gateway
        ([('id = "gw-1"\n', "")], "", "gateway.id", None, "required"),
        ([('"gw-1"', '"GW 1"')], "", "gateway.id", "GW 1", "matching regex"),
        ([('"gw-1"', '"gw-1\\n"')], "", "gateway.id", "gw-1\n", "matching regex"),
        ([('"tw-tpe"', '"taipei"')], "", "gateway.county", "taipei", "matching regex"),
        ([('"street"', '"main street"')], "", "gateway.site", "main street", "matching regex"),
        ([('"/tmp/state"', '""')], "", "gateway.state_dir", "", "length >= 1"),
        ([("[broker]", "label = { en = 3 }\n[broker]")], "", "gateway.label.en", 3, "`str`"),
        (
            [("[broker]", "location = { lat = 91, lon = 0 }\n[broker]")],
            "",
            "gateway.location.lat",
            91,
            "<= 90",
        ),
        (
            [("[broker]", "interval_s = inf\n[broker]")],
            "",
            "gateway.interval_s",
            float("inf"),
            "<= 604800",
        ),
        # the broker
        ([('host = "localhost"', "")], "", "broker.host", None, "required"),
        (
            [('host = "localhost"', 'hosts = "b"')],
            "",
            "broker.hosts",
            "b",
            "did you mean host?",
        ),
        (
            [('[[bus]]\nid = "tty0"', 'port = 70000\n[[bus]]\nid = "tty0"')],
            "",
            "broker.port",
            70000,
            "<= 65535",
        ),
        ([('"localhost"', '"b"\nport = "1883"')], "", "broker.port", "1883", "Expected `int`"),
        (
            [('"localhost"', '"localhost"\npassword_file = "p"')],
            "",
            "broker.username",
            "",
            "needs a username",
        ),
        (
            [
                (
                    '"localhost"',
                    '"localhost"\nusername = "u"\npassword_file = "p"\npassword_env = "E"',
                )
            ],
            "",
            "broker.password_env",
            "E",
            "left out beside password_file",
        ),
        ([('host = "localhost"', 'host = "mqtt.example"')], "", "broker.tls", None, "TLS only"),
        ([('"localhost"', '"localhost"\ntls = {}')], "", "broker.tls.ca_file", None, "is required"),
        # delivery
        ([], "[delivery]\nwindow = 9\n", "delivery.window", 9, ">= 10"),
        ([], '[delivery]\nformat = "xml"\n', "delivery.format", "xml", "one of cbor, json"),
        ([], "[delivery]\ndrain_s = -1\n", "delivery.drain_s", -1, ">= 0"),
        # buses
        (
            [('kind = "ble"', 'kind = "bluetooth"')],
            "",
            "bus[2].kind",
            "bluetooth",
            "one of serial, modbus-rtu, modbus-tcp, ble",
        ),
        ([('kind = "ble"\n', "")], "", "bus[2].kind", None, "required: one of serial, modbus-rtu"),
        (
            [('kind = "ble"', 'kind = "ble"\nadaptor = "hci1"')],
            "",
            "bus[2].adaptor",
            "hci1",
            "did you mean adapter?",
        ),
        (
            [('kind = "ble"', 'kind = "ble"\nadapter = "usb0"')],
            "",
            "bus[2].adapter",
            "usb0",
            "matching regex",
        ),
        (
            [('"/dev/ttyUSB1"', '"/dev/ttyUSB1"\nparity = "X"')],
            "",
            "bus[1].parity",
            "X",
            "one of E, N, O",
        ),
        (
            [('"/dev/ttyUSB1"', '"/dev/ttyUSB1"\nbaudrate = 50')],
            "",
            "bus[1].baudrate",
            50,
            ">= 300",
        ),
        (
            [('"/dev/ttyUSB1"', '"/dev/ttyUSB0"')],
            "",
            "bus[1].port",
            "/dev/ttyUSB0",
            "must be unique: bus[0]",
        ),
        ([('id = "hci0"', 'id = "tty0"')], "", "bus[2].id", "tty0", "must be unique: bus[0]"),
        (
            [],
            '[[bus]]\nid = "hci1"\nkind = "ble"\n',
            "bus[3].adapter",
            "hci0",
            "must be unique: bus[2]",
        ),
        # devices
        ([('domain = "air"', 'domain = "noise"')], "", "device[0].domain", "noise", "air, parking"),
        (
            [('domain = "air"', 'domain = "gateway"')],
            "",
            "device[0].domain",
            "gateway",
            "air, parking",
        ),
        (
            [('"plantower_pms"', '"plantower"')],
            "",
            "device[0].driver",
            "plantower",
            "one of bthome, intesis_dali, plantower_pms",
        ),
        (
            [('bus = "tty0"', 'bus = "tty9"')],
            "",
            "device[0].bus",
            "tty9",
            "one of tty0, rs485, hci0",
        ),
        (
            [('bus = "tty0"', 'bus = "hci0"')],
            "",
            "device[0].bus",
            "hci0",
            "needs a bus of kind serial",
        ),
        (
            [('bus = "rs485"', 'bus = "hci0"')],
            "",
            "device[1].bus",
            "hci0",
            "modbus-rtu or modbus-tcp",
        ),
        (
            [('id = "bay-1"', 'id = "aq-1"')],
            "",
            "device[2].id",
            "aq-1",
            "must be unique: device[0]",
        ),
        (
            [('id = "bay-1"', 'id = "gw-1"')],
            "",
            "device[2].id",
            "gw-1",
            "must differ from gateway.id",
        ),
        ([("interval_s = 2", "interval_s = 0")], "", "device[1].interval_s", 0, ">= 0.01"),
        (
            [("interval_s = 2", "interval = 2")],
            "",
            "device[1].interval",
            2,
            "did you mean interval_s?",
        ),
        (
            [],
            device(**LAMP | {"driver": '"plantower_pms"', "bus": '"tty0"', "settings": "{}"}),
            "device[3].bus",
            "tty0",
            "a serial line has one device: device[0]",
        ),
        (
            [],
            device(**LAMP | {"installed": "2024-05-01"}),
            "device[3].installed",
            None,
            "Expected `str`",
        ),
        (
            [],
            device(**LAMP | {"asset_id": f'"{"x" * 201}"'}),
            "device[3].asset_id",
            "x" * 201,
            "length <= 200",
        ),
        (
            [],
            device(**LAMP | {"label": '{ de = "Lampe" }'}),
            "device[3].label.de",
            "Lampe",
            "unknown key",
        ),
        (
            [],
            device(**LAMP | {"location": "{ lat = 25.0, lon = 121.5, latt = 1 }"}),
            "device[3].location.latt",
            1,
            "unknown key",
        ),
        # settings of drivers
        (
            [("{ short_address = 1 }", "{}")],
            "",
            "device[1].settings.short_address",
            None,
            "required",
        ),
        (
            [("{ short_address = 1 }", "{ short_address = 64 }")],
            "",
            "device[1].settings.short_address",
            64,
            "<= 63",
        ),
        (
            [("{ short_address = 1 }", "{ short_adress = 1 }")],
            "",
            "device[1].settings.short_adress",
            1,
            "did you mean short_address?",
        ),
        (
            [("{ short_address = 1 }", "{ short_address = [1] }")],
            "",
            "device[1].settings.short_address",
            [1],
            "Expected `int`",
        ),
        (
            [(BAY, 'settings = { address = "nowhere" }')],
            "",
            "device[2].settings.address",
            "nowhere",
            "matching regex",
        ),
        (
            [(BAY, BAY.replace(" }", ', bindkey = "12" }'))],
            "",
            "device[2].settings.bindkey",
            "12",
            "matching regex",
        ),
        (
            [(BAY, BAY.replace(" }", ', bindkey_file = "/nowhere" }'))],
            "",
            "device[2].settings.bindkey_file",
            "/nowhere",
            "a readable file of 32 hex digits",
        ),
        (
            [],
            device(**LAMP | {"settings": "{ short_address = 1, unit = 1 }"}),
            "device[3].settings",
            None,
            "must be unique on its bus: device[1] is the same",
        ),
        (
            [],
            device(
                id='"bay-2"',
                domain='"parking"',
                driver='"bthome"',
                bus='"hci0"',
                interval_s="1",
                settings='{ address = "c0:ff:ee:00:00:01" }',
            ),
            "device[3].settings",
            "C0:FF:EE:00:00:01",
            "device[2] is the same",
        ),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path,
    edits: list[tuple[str, str]],
    more: str,
    key: str,
    value: object,
    allowed: str,
) -> None:
    path = write(tmp_path, *edits, more=more)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    error = caught.value
    assert (error.file, error.key) == (str(path), key)
    assert error.value == value or value is None
    assert allowed in error.allowed


def test_paths_are_seen_from_the_file(tmp_path: Path) -> None:
    lines = 'password_file = "word"\ntls = { ca_file = "ca.pem", key_file = "/k.pem" }'
    config = read_config(broker_with(tmp_path, lines))
    assert config.broker.tls == Tls(ca_file=tmp_path / "ca.pem", key_file=Path("/k.pem"))
    assert config.broker.password_file == tmp_path / "word"
    assert config.broker.address == ("localhost", 8883)


def broker_with(tmp_path: Path, lines: str) -> Path:
    return write(tmp_path, ('"localhost"', f'"localhost"\nusername = "u"\n{lines}'))


def test_passwords_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3 cret \n", encoding="utf-8")
    secret.chmod(0o600)
    config = read_config(broker_with(tmp_path, f'password_file = "{secret}"'))
    assert config.broker.password("x") == "s3 cret "
    monkeypatch.setenv("A_SECRET", "word")
    config = read_config(broker_with(tmp_path, 'password_env = "A_SECRET"'))
    assert config.broker.password("x") == "word"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"\n", "it is empty"), (b"\xff\xfe", "can't decode")],
)
def test_a_password_file_that_holds_none(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
        secret.chmod(0o600)
    config = read_config(broker_with(tmp_path, f'password_file = "{secret}"'))
    with pytest.raises(ConfigError, match=reason) as caught:
        config.broker.password("edge.toml")
    error = caught.value
    assert (error.file, error.key) == ("edge.toml", "broker.password_file")
    assert error.value == str(secret)


@pytest.mark.parametrize("word", [None, ""])
def test_an_environment_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str | None
) -> None:
    monkeypatch.delenv("A_SECRET", raising=False)
    if word is not None:
        monkeypatch.setenv("A_SECRET", word)
    config = read_config(broker_with(tmp_path, 'password_env = "A_SECRET"'))
    with pytest.raises(ConfigError, match="must be set in the environment") as caught:
        config.broker.password("edge.toml")
    assert caught.value.key == "broker.password_env"


# ------------------------------------------------------------------------------------------- the command line


def test_check_says_that_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    assert main(["edge", "check", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.endswith(f"{path}: good 設定無誤: 3 devices on 3 buses\n")
    assert out.count("no location: will not be on the map 沒有位置") == 3
    assert err == ""


def test_check_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, ("interval_s = 2", "intervall_s = 2"), ('kind = "ble"', 'kind = "blue"'))
    assert main(["edge", "check", str(path)]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith(f"problem 問題: {path}:22: bus[2].kind = 'blue': one of serial, ")
    assert lines[1].startswith(f"problem 問題: {path}:36: device[1].intervall_s = 2: unknown key")
    assert "(did you mean interval_s?)" in lines[1]
    assert lines[-1].endswith(
        ": 2 to be corrected 項須修正; until then it runs with 其餘照常: 1 devices on 2 buses"
    )
    assert err == ""


def test_check_says_when_no_agent_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, ('"localhost"', "7"), ("interval_s = 2", "intervall_s = 2"))
    assert main(["edge", "check", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"problem 問題: {path}:8: broker.host = 7: Expected `str`")
    assert "device[1].intervall_s" in lines[1]
    assert lines[-1].endswith("2 to be corrected 項須修正; no agent starts with it 無法啟動")


def test_check_looks_for_the_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = broker_with(tmp_path, f'password_file = "{tmp_path}/secret"')
    assert main(["edge", "check", str(path)]) == 1
    out = capsys.readouterr().out
    assert f"{path}:10: broker.password_file = " in out
    assert "no agent starts with it" in out


def test_check_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edge", "check", str(tmp_path / "none.toml")]) == 1
    assert f"問題: {tmp_path / 'none.toml'}: file" in capsys.readouterr().out


def test_read_of_a_device_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edge", "read", "lamp-9", "--config", str(write(tmp_path))]) == 2
    err = capsys.readouterr().err
    assert "device = 'lamp-9': one of aq-1, lamp-1, bay-1" in err


@pytest.mark.parametrize(
    "words", [[], ["rum"], ["read"], ["run", "--quick"], ["status", "--lang", "de"], ["scan", "x"]]
)
def test_a_wrong_command_line_is_said_in_both_languages(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["edge", *words])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: onestreet edge")
    assert ": error 指令有誤: " in err
    assert "--help 可查看用法\n" in err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
def test_read_with_a_deadline_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["edge", "read", "lamp-1", f"--timeout={seconds}", "--config", str(write(tmp_path))])
    assert ended.value.code == 2
    assert f"{seconds!r} is not a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["-m", "edge_agent"], ["-m", "onestreet.cli", "edge", "run"]])
def test_the_agent_does_not_start_on_a_wrong_file(tmp_path: Path, command: list[str]) -> None:
    path = write(tmp_path, ('"localhost"', "7"))
    ended = subprocess.run(
        [sys.executable, *command, str(path)], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"configuration error 設定錯誤: {path}:8: broker.host = 7: ")
    assert "Traceback" not in ended.stderr


def test_the_agent_does_not_start_where_it_cannot_keep_samples(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = write(tmp_path, ('"/tmp/state"', f'"{tmp_path}/file/state"'))
    ended = subprocess.run(
        [sys.executable, "-m", "edge_agent", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | {"NOTIFY_SOCKET": ""},
    )
    assert ended.returncode == 2
    assert f"gateway.state_dir = '{tmp_path}/file/state': must be a folder" in ended.stderr
    assert "Traceback" not in ended.stderr


# ------------------------------------------------------------------------------------------ what is left out, and stays


def loaded(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Return devices, buses, and what is said of the rest without the folder."""
    config, problems = load_config(path)
    said = [str(one).replace(f"{path}:", "") for one in problems]
    return [one.id for one in config.device], [one.id for one in config.bus], said


def test_a_wrong_device_keeps_nobody_else_from_starting(tmp_path: Path) -> None:
    path = write(tmp_path, ('driver = "plantower_pms"', 'driver = "plantower"'))
    devices, buses, said = loaded(path)
    assert (devices, buses) == (["lamp-1", "bay-1"], ["tty0", "rs485", "hci0"])
    assert len(said) == 1
    assert said[0].startswith("27: device[0].driver = 'plantower': one of ")


def test_a_wrong_bus_takes_its_devices_along_and_is_said_once(tmp_path: Path) -> None:
    path = write(tmp_path, ('port = "/dev/ttyUSB1"', "port = 7"), more=device(**LAMP))
    devices, buses, said = loaded(path)
    assert (devices, buses) == (["aq-1", "bay-1"], ["tty0", "hci0"])
    assert len(said) == 1
    assert said[0].startswith("18: bus[1].port = 7: Expected `str`")


def test_of_two_that_claim_one_thing_the_first_stays(tmp_path: Path) -> None:
    path = write(tmp_path, more=device(**LAMP | {"id": '"lamp-1"'}) + device(**LAMP))
    devices, _, said = loaded(path)
    assert devices == ["aq-1", "lamp-1", "bay-1", "lamp-2"]
    assert "must be unique: device[1] has it, too" in said[0]


def test_all_that_is_wrong_with_a_device_is_said_at_once(tmp_path: Path) -> None:
    """By types, and beyond them: an installer corrects a file once."""
    lamp = {"intervall_s": "2", "location": '{ lat = 91, lon = "e" }', "colour": '"red"'}
    lamp |= {"settings": '{ short_address = 64, unitt = 1, channel = "x" }'}
    lamp = {"id": '"L 2"', "driver": '"intesis_dali"', "bus": '"rs485"', **lamp}
    _, problems = load_config(write(tmp_path, more=device(**lamp)))
    assert [one.key for one in problems] == [
        "device[3].id",
        "device[3].intervall_s",  # and not that interval_s is missing
        "device[3].location.lat",
        "device[3].location.lon",
        "device[3].colour",
        "device[3].domain",
        "device[3].settings.short_address",
        "device[3].settings.unitt",
        "device[3].settings.channel",
    ]
    beyond = LAMP | {"id": '"gw-1"', "domain": '"noise"', "driver": '"lamp"', "bus": '"rs1"'}
    _, problems = load_config(write(tmp_path, more=device(**beyond)))
    assert [one.key for one in problems] == [
        "device[3].domain",
        "device[3].driver",
        "device[3].id",
        "device[3].bus",
    ]


def test_all_that_is_wrong_with_a_bus_and_with_the_gateway_is_said_at_once(tmp_path: Path) -> None:
    edits = [
        ('port = "/dev/ttyUSB1"', 'prot = "/dev/ttyUSB1"\nbaudrate = 1\nparity = "X"'),
        ('"gw-1"', "7"),
        ('"localhost"', '"localhost"\nkeepalive_s = 1\ntls = { ca = "x" }'),
    ]
    found = examine(write(tmp_path, *edits))
    assert found.config is None
    assert [one.key for one in found.problems] == [
        "gateway.id",
        "broker.keepalive_s",
        "broker.tls.ca",
        "broker.tls.ca_file",
        "bus[1].prot",
        "bus[1].baudrate",
        "bus[1].parity",
    ]
    assert all(one.line is not None for one in found.problems)


def test_a_table_of_another_kind_is_not_listed_key_by_key(tmp_path: Path) -> None:
    keys = {f"key_{n}": "1" for n in range(1000)}
    _, _, said = loaded(write(tmp_path, more=device(**keys)))
    assert len(said) == MAX_MISTAKES


def test_a_table_that_nobody_reads_is_said(tmp_path: Path) -> None:
    devices, _, said = loaded(write(tmp_path, more='[[devices]]\nid = "x"\n'))
    assert len(devices) == 3
    assert said[0].startswith("46: devices = [{'id': 'x'}]: unknown key (did you mean device?)")


@pytest.mark.parametrize("given", ["7", '"x"', "[7]", "{ a = 1 }", '[["x"]]'])
@pytest.mark.parametrize("table", ["bus", "device", "template", "inventory", "programme"])
def test_a_part_of_another_form_is_said(tmp_path: Path, table: str, given: str) -> None:
    head = GOOD[: GOOD.index("[[bus]]")]
    path = tmp_path / "edge.toml"
    path.write_text(f"{table} = {given}\n{head}", encoding="utf-8")
    devices, _, said = loaded(path)
    assert devices == []
    assert said
    assert all(one.startswith(f"1: {table}") for one in said)


def test_what_concerns_the_gateway_itself_is_final(tmp_path: Path) -> None:
    for old, new, key in (
        ('"gw-1"', '"GW"', "gateway.id"),
        ('"/tmp/state"', '"/tmp/state"\ntime_zone = "Asia/Taipeh"', "gateway.time_zone"),
        ('"localhost"', '"mqtt.example"', "broker.tls"),
        ('"localhost"', '"localhost"\n[clock]\nsynchronised = "ntp"', "clock.synchronised"),
        ('"localhost"', '"localhost"\n[outbox]\nmax_mb = -1', "outbox.max_mb"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(write(tmp_path, (old, new), ("interval_s = 2", "intervall_s = 2")))
        assert caught.value.key == key
        assert caught.value.line is not None


def test_a_driver_that_fails_costs_its_own_device_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("device_drivers.serial.plantower_pms.driver.Driver.__init__", broken)
    devices, _, said = loaded(write(tmp_path))
    assert devices == ["lamp-1", "bay-1"]
    assert "its driver failed 驅動程式錯誤: ZeroDivisionError: a bug" in said[0]


NIGHT = """
[[programme]]
id = "night"
devices = ["lamp-1", "lamp-2"]
steps = [{ at = "18:00", level = 100 }, { at = "06:00", level = 0 }]
"""


def test_a_driver_that_connects_is_as_good_as_one_that_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    radon = {"id": '"radon-1"', "domain": '"air"', "driver": '"acme_radon"', "bus": '"hci0"'}
    radon |= {"interval_s": "60", "settings": '{ address = "C8:28:32:12:34:56" }'}
    with installed("acme_radon", RADON, tmp_path, monkeypatch):
        config = read_config(write(tmp_path, more=device(**radon)))
        assert config.device[-1].package.profile.completes == "poll"
        _, _, said = loaded(write(tmp_path, more=device(**radon | {"bus": '"rs485"'})))
    assert "acme_radon needs a bus of kind ble" in said[0]


def test_a_programme_goes_on_without_a_lamp_that_is_left_out(tmp_path: Path) -> None:
    bad = device(**LAMP | {"interval_s": "0"})
    config, problems = load_config(write(tmp_path, more=bad + NIGHT))
    assert [one.key for one in problems] == ["device[3].interval_s"]
    assert [one.devices for one in config.programme] == [["lamp-1"]]


def test_a_wrong_programme_is_left_out(tmp_path: Path) -> None:
    config, problems = load_config(
        write(tmp_path, more=device(**LAMP) + NIGHT + NIGHT + NIGHT.replace("18:00", "48:00"))
    )
    assert [one.id for one in config.programme] == ["night"]
    assert [(one.key, one.line is not None) for one in problems] == [
        ("programme[1].id", True),
        ("programme[2].steps[0].at", True),
    ]


def test_a_lamp_of_two_programmes_is_told_and_goes_by_the_first(tmp_path: Path) -> None:
    lamps = device(**LAMP | {"circuit": '"L1"'})
    other = """
[[programme]]
id = "square"
circuits = ["L1"]
steps = [{ at = "20:00", level = 100 }]
"""
    config, problems = load_config(write(tmp_path, more=lamps + NIGHT + other))
    assert [one.id for one in config.programme] == ["night", "square"]
    assert [(one.key, one.value, one.line is not None) for one in problems] == [
        ("programme[1].devices", "lamp-2", True)
    ]


# ---------------------------------------------------------------------------------------- what is only doubtful


def doubts(path: Path) -> list[str]:
    found = [str(one).replace(f"{path}:", "") for one in advice(examine(path))]
    return [one for one in found if "no location" not in one]


def test_a_device_that_is_asked_faster_than_it_measures(tmp_path: Path) -> None:
    path = write(tmp_path, ('bus = "tty0"\ninterval_s = 1\n', 'bus = "tty0"\ninterval_s = 0.1\n'))
    said = doubts(path)
    assert said[0].startswith("29: device[0].interval_s = 0.1: its device has new values every 1 s")


def test_a_line_that_has_no_time_for_its_polls(tmp_path: Path) -> None:
    lamps = "".join(
        device(**LAMP | {"id": f'"l-{n}"', "settings": f"{{ short_address = {n} }}"})
        for n in range(2, 50)
    )
    assert [one for one in doubts(write(tmp_path)) if "% of its time" in one] == []
    busy = [one for one in doubts(write(tmp_path, more=lamps)) if "% of its time" in one]
    assert len(busy) == 1
    assert busy[0].startswith("15: bus[1].baudrate = 9600: its 49 devices take 1")
    fast = write(tmp_path, ('"/dev/ttyUSB1"', '"/dev/ttyUSB1"\nbaudrate = 115200'), more=lamps)
    assert [one for one in doubts(fast) if "% of its time" in one] == []


def test_what_nobody_uses(tmp_path: Path) -> None:
    more = '[[bus]]\nid = "spare"\nkind = "modbus-tcp"\nhost = "127.0.0.1"\n[template.lamp]\n'
    said = doubts(write(tmp_path, more=more))
    assert "47: bus[3].id = 'spare': no device is on it 沒有設備使用它" in said
    assert "50: template.lamp = 'lamp': no [[inventory]] uses it 沒有清單使用它" in said
