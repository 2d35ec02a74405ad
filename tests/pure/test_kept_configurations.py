"""An agent's configuration in the office: kept, renamed with its gateway, handed over with the town's word in it."""

from __future__ import annotations

import io
import json
import re
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent import enrolment as gateway_side
from edge_agent.config_reading import read_config
from exchange.configuration import toml_value, with_tables
from exchange.enrolment import (
    BrokerAddress,
    EnrolmentError,
    Grant,
    is_inventory,
    read_message,
    with_towns_word,
)
from exchange.errors import ConfigError
from onestreet.cli import main
from provisioning import kept_configurations
from provisioning.office import Office, init, opened
from provisioning.replacement import replace_gateway
from tests.offices import broker_table, town_text

EDGE = """\
# What the installers of Daan agreed on
[gateway]
id = "old-name"            # whatever
county = "tw-khh"
site = "elsewhere"
state_dir = "/data/agent"
interval_s = 30.0
location = { lat = 25.02, lon = 121.54 }

# our modem is slow
[broker]
host = "198.51.100.7"
keepalive_s = 120
username = "nobody"
[broker.tls]
ca_file = "theirs.pem"

# the lamps
[[bus]]
id = "lamps"
kind = "modbus-tcp"
host = "127.0.0.1"

[template.lamp]
domain = "streetlight"
driver = "intesis_dali"
bus = "lamps"
interval_s = 30

[[inventory]]   # from the register
file = "路燈.csv"
template = "lamp"
"""
ROWS = "\ufeffid,settings.short_address\r\nlamp-1,1\r\nlamp-2,2\r\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    town = tmp_path / "tw-tpe.toml"
    text = town_text(
        "tw-tpe", broker_table([8883, 8884, 8885]), gateways=["gw-1"], by_password=["gw-p"]
    )
    town.write_text(text, encoding="utf-8")
    with init([town], tmp_path / "office"):
        pass
    return tmp_path / "office"


@pytest.fixture
def office(folder: Path) -> Iterator[Office]:
    with opened(folder) as office:
        yield office


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "路燈.csv").write_text(ROWS, encoding="utf-8", newline="")
    path = tmp_path / "edge.toml"
    path.write_text(EDGE, encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------------------------------- keeping


def test_what_is_kept_replaces_what_was(office: Office, file: Path) -> None:
    assert kept_configurations.kept(office, "tw-tpe", "gw-1") == {}
    assert kept_configurations.keep(office, "tw-tpe", "gw-1", file) == ["edge.toml", "路燈.csv"]
    kept = kept_configurations.kept(office, "tw-tpe", "gw-1")
    assert kept == {"edge.toml": EDGE, "路燈.csv": ROWS[1:].replace("\r\n", "\n")}
    file.write_text(EDGE[: EDGE.index("[[inventory]]")], encoding="utf-8")
    assert kept_configurations.keep(office, "tw-tpe", "gw-1", file) == ["edge.toml"]
    assert list(kept_configurations.kept(office, "tw-tpe", "gw-1")) == ["edge.toml"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ('"../ca/ca.key"', "must be a file beside it whose name ends in .csv"),
        ('"/etc/passwd.csv"', "must be a file beside it"),
        ('"key.pem"', "must be a file beside it"),
        ('".csv"', "must be a file beside it"),
        ("7", "must be a file beside it"),
        ('"nowhere.csv"', "must be a readable file in UTF-8"),
    ],
)
def test_only_inventories_beside_it_are_kept(
    office: Office, file: Path, name: str, said: str
) -> None:
    file.write_text(EDGE.replace('"路燈.csv"', name), encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        kept_configurations.keep(office, "tw-tpe", "gw-1", file)
    assert caught.value.line == 31
    assert not kept_configurations.folder_of(office, "tw-tpe", "gw-1").exists()


def test_what_is_too_large_is_refused(office: Office, file: Path) -> None:
    (file.parent / "路燈.csv").write_text("x" * 4_000_000)
    with pytest.raises(ConfigError, match="bytes at most"):
        kept_configurations.keep(office, "tw-tpe", "gw-1", file)


def test_the_command_says_what_is_wrong(
    folder: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["town", "gateway", "configure"]
    assert main([*words, "tw-tpe/gw-7", str(file), "--into", str(folder)]) == 2
    assert "gateway.id = 'gw-7': one of gw-1, gw-p" in capsys.readouterr().err
    assert main([*words, "tw-tpe/gw-1", str(folder / "none.toml"), "--into", str(folder)]) == 2
    assert "must be a readable TOML file" in capsys.readouterr().err
    assert main([*words, "tw-tpe/gw-1", str(file), "--into", str(folder)]) == 0
    assert "kept edge.toml, 路燈.csv" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- handing over


def test_a_bundle_is_all_that_a_gateway_needs(office: Office, file: Path, tmp_path: Path) -> None:
    kept_configurations.keep(office, "tw-tpe", "gw-p", file)
    replace_gateway(office, "tw-tpe", "gw-p", "gw-q", hand_out=True)
    more = kept_configurations.handed(office, "tw-tpe", "gw-q")
    bundle = tmp_path / "bundle"
    with tarfile.open(fileobj=io.BytesIO(office.bundle("tw-tpe", "gw-q", more))) as tar:
        tar.extractall(bundle, filter="data")
    config = read_config(bundle / "gw-q" / "edge.toml")
    whose = config.gateway.id, config.gateway.county, config.gateway.site
    assert whose == ("gw-q", "tw-tpe", "street")
    assert config.gateway.state_dir == "/data/agent"
    assert config.broker.address == ("localhost", 8884)
    assert config.broker.username == "tw-tpe.gw-q"
    assert config.broker.password("edge.toml")
    assert [one.id for one in config.device] == ["lamp-1", "lamp-2"]


def granted(files: dict[str, str]) -> Grant:
    return Grant(
        county="tw-tpe",
        site="street",
        gateway="gw-1",
        broker=BrokerAddress(host="localhost", port=8883, username="tw-tpe.gw-1"),
        ca="PEM",
        certificate="PEM",
        intervals={"gateway": 60.0},
        files=files,
    )


TOWNS = {"id": "gw-1", "county": "tw-tpe", "site": "street"}
WAY = {"host": "mqtt.town", "port": 8883, "tls": {"ca_file": "ca.pem"}}


@pytest.mark.parametrize(
    ("gateway", "broker", "given", "wanted_gateway", "wanted_broker"),
    [
        # nothing of it is said in the file
        ("", "", "", TOWNS | {"state_dir": "/var/lib/onestreet"}, WAY),
        # whose it is, and the way to the broker, are the town's word
        (
            'id = "x"\ncounty = "tw-khh"\nsite = "y"',
            'host = "old"\nport = 1\nusername = "u"\npassword_env = "E"',
            "",
            TOWNS | {"state_dir": "/var/lib/onestreet"},
            WAY,
        ),
        # the gateway's own affairs
        (
            'state_dir = "/data"\ninterval_s = 30\nlocation = { lat = 25.0, lon = 121.5 }',
            "keepalive_s = 120\ntimeout_s = 5.0",
            "",
            TOWNS
            | {"state_dir": "/data", "interval_s": 30, "location": {"lat": 25.0, "lon": 121.5}},
            WAY | {"keepalive_s": 120, "timeout_s": 5.0},
        ),
        # what an installer says of the folder goes before all
        ('state_dir = "/data"', "", "/srv/ssd", TOWNS | {"state_dir": "/srv/ssd"}, WAY),
    ],
)
def test_whose_word_it_is(
    gateway: str,
    broker: str,
    given: str,
    wanted_gateway: dict[str, object],
    wanted_broker: dict[str, object],
) -> None:
    text = f"# ours\n[gateway]\n{gateway}\n[broker]\n{broker}\n[clock]\nwait_s = 7 # why\n"
    found = with_towns_word(text, TOWNS, WAY, given)
    assert tomllib.loads(found) == {
        "gateway": wanted_gateway,
        "broker": wanted_broker,
        "clock": {"wait_s": 7},
    }
    assert found.startswith("# ours\n")
    assert "wait_s = 7 # why" in found


def test_on_a_stick_and_with_a_code_it_is_the_same_configuration(
    office: Office, file: Path
) -> None:
    kept_configurations.keep(office, "tw-tpe", "gw-p", file)
    on_a_stick = kept_configurations.handed(office, "tw-tpe", "gw-p")["edge.toml"]
    keys = office.broker_keys("tw-tpe", "gw-p")
    way = BrokerAddress(host=str(keys["host"]), port=8884, username=str(keys["username"]))
    grant = replace(
        granted({"edge.toml": EDGE}), gateway="gw-p", broker=way, certificate="", password="word"
    )
    with_a_code = gateway_side._config(replace(grant, intervals={}), None)
    assert tomllib.loads(with_a_code) == tomllib.loads(on_a_stick)
    assert tomllib.loads(with_a_code)["broker"]["keepalive_s"] == 120
    assert tomllib.loads(with_a_code)["gateway"]["state_dir"] == "/data/agent"


def test_a_gateway_puts_the_towns_word_into_it(file: Path) -> None:
    file.write_text(gateway_side._config(granted({"edge.toml": EDGE}), None), encoding="utf-8")
    config = read_config(file)
    assert config.gateway.state_dir == "/data/agent"
    assert config.gateway.interval_s == 30, "its own word on what the town does not decide"
    assert (config.broker.username, config.broker.tls is not None) == ("", True)
    assert len(config.device) == 2
    for comment in (
        "# What the installers of Daan agreed on",
        "# the lamps",
        "# from the register",
    ):
        assert comment in file.read_text("utf-8")


@pytest.mark.parametrize("text", ["no TOML", "gateway = 7", "broker = []", "gateway = [1]"])
def test_a_kept_file_that_is_none_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(gateway_side._config(granted({"edge.toml": text}), tmp_path), "utf-8")
    assert read_config(path).gateway.id == "gw-1"


@pytest.mark.parametrize(
    "name", ["key.pem", "../lamps.csv", ".lamps.csv", "a/b.csv", "a\\b.csv", "", "x.CSV"]
)
def test_a_town_brings_no_other_files(name: str) -> None:
    assert not is_inventory(name)
    answer = {"county": "c", "site": "s", "gateway": "g", "ca": "", "files": {name: ""}}
    broker = {"host": "h", "port": 1, "username": "u"}
    with pytest.raises(EnrolmentError):
        read_message(json.dumps(answer | {"broker": broker}).encode(), Grant)


keys = st.sampled_from(["gateway", "broker", "bus", "a.b", "長", "x"])
values = st.recursive(
    st.integers() | st.sampled_from(["[gateway]", "#", '"""', "a\nb"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=2),
    max_leaves=5,
)


@given(
    top=st.dictionaries(keys, values, max_size=3),
    tables=st.lists(st.tuples(keys, values), max_size=4),
)
def test_other_tables_in_place_of_those_of_their_names(
    top: dict[str, object], tables: list[tuple[str, object]]
) -> None:
    lines = [f"{toml_value(key)} = {toml_value(value)} # said" for key, value in top.items()]
    for number, (name, value) in enumerate(tables):
        if name not in top:
            head = f"[[{toml_value(name)}]]" if number % 2 else f"[{toml_value(name)}.n{number}]"
            lines += [f"  {head}", f"v = {toml_value(value)}", "# between"]
    text = "\n".join(lines)
    try:
        before = tomllib.loads(text)
    except ValueError:  # a table and an array of tables of one name
        return
    new = {"gateway": {"id": "g"}, "broker": {"host": "h"}, "broker.tls": {"ca_file": "c"}}
    after = tomllib.loads(with_tables(text, new))
    kept = {key: value for key, value in before.items() if key not in ("gateway", "broker")}
    assert after == kept | {
        "gateway": {"id": "g"},
        "broker": {"host": "h", "tls": {"ca_file": "c"}},
    }


# ------------------------------------------------------------------------------------------------------------ renaming


@pytest.mark.parametrize(
    "written",
    [
        '[[gateway]]\nid = "gw-1"\nsite = "street" # "gw-1"\n',
        '[[gateway]]\n"id"   =   \'gw-1\'   # its name\nsite = "street"\n',
        'gateway = [{ id = "gw-0", site = "street" }, { site = "street", id = "gw-1" }]\n',
    ],
)
def test_a_gateway_is_renamed_where_it_stands(folder: Path, written: str) -> None:
    town = folder / "towns" / "tw-tpe.toml"
    text = town_text("tw-tpe", broker_table([8883, 8884, 8885]))
    at_top = written.startswith("gateway")
    text = f"{written}{text}" if at_top else f"{text}\n{written}"
    town.write_text(text, encoding="utf-8")
    with opened(folder) as office:
        kept_configurations.folder_of(office, "tw-tpe", "gw-1").mkdir(parents=True)
        assert replace_gateway(office, "tw-tpe", "gw-1", "gw-9") == "street"
        assert "gw-9" in [one.id for one in office.town("tw-tpe").gateways]
        assert kept_configurations.folder_of(office, "tw-tpe", "gw-9").exists()
        assert office.authority.valid("tw-tpe.gw-1") == []
    after = town.read_text("utf-8")
    assert len(after.splitlines()) == len(text.splitlines())
    assert sum(a != b for a, b in zip(after.splitlines(), text.splitlines(), strict=True)) == 1


def test_a_name_that_is_taken_or_none_changes_nothing(folder: Path, file: Path) -> None:
    town = folder / "towns" / "tw-tpe.toml"
    before = town.read_bytes()
    with opened(folder) as office:
        kept_configurations.keep(office, "tw-tpe", "gw-1", file)
        for name in ("gw-p", "GW 9", "", "..", "../../towns", 'gw"'):
            with pytest.raises(ConfigError):
                replace_gateway(office, "tw-tpe", "gw-1", name)
            assert kept_configurations.kept(office, "tw-tpe", "gw-1")
        with pytest.raises(ConfigError, match="one of gw-1, gw-p"):
            replace_gateway(office, "tw-tpe", "gw-7", "gw-8")
        assert town.read_bytes() == before
        assert len(office.authority.valid("tw-tpe.gw-1")) == 1


def test_the_command_takes_a_name_or_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ([], ["gw-9", "--same-name"], ["gw-1"]):
        words = ["town", "gateway", "replace", "tw-tpe/gw-1", *wrong, "--into", str(folder)]
        assert main(words) == 2
        assert "either another name for the new gateway, or --same-name" in capsys.readouterr().err
