"""Template and inventory: a street of lamps from one profile and a spreadsheet, and what is wrong named to the cell."""

from __future__ import annotations

import csv
import io
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edge_agent.advice import advice
from edge_agent.config import Config
from edge_agent.config_reading import examine, load_config, read_config
from edge_agent.inventory import letters
from exchange.configuration import toml_value
from exchange.errors import ConfigError
from onestreet.cli import main

HEAD = """\
[gateway]
id = "gw-1"
county = "tw-tpe"
site = "street"
state_dir = "/tmp/state"

[broker]
host = "localhost"

[[bus]]
id = "lamps"
kind = "modbus-tcp"
host = "127.0.0.1"

[template.lamp]
domain = "streetlight"
driver = "intesis_dali"
bus = "lamps"
interval_s = 30
settings = { unit = 1 }
label = { en = "Lamp" }

[template.slow]
domain = "streetlight"
driver = "intesis_dali"
bus = "lamps"
interval_s = 300

[[inventory]]
file = "lamps.csv"
template = "lamp"
"""
ROWS = """\
id,settings.channel,settings.short_address,location.lat,location.lon,label.zh-TW,asset_id
lamp-1,0,1,25.0261,121.5435,一號燈,P-0001
lamp-2,0,2,25.0262,121.5436,二號燈,P-0002
"""
DRIVER = 'driver = "intesis_dali"\nbus = "lamps"\n'


def write(folder: Path, rows: str | bytes = ROWS, head: str = HEAD, more: str = "") -> Path:
    data = rows if isinstance(rows, bytes) else rows.encode()
    (folder / "lamps.csv").write_bytes(data)
    path = folder / "edge.toml"
    path.write_text(head + more, encoding="utf-8")
    return path


def problems_of(path: Path) -> list[str]:
    """What is said, without the folder."""
    return [str(one).replace(f"{path.parent}/", "") for one in load_config(path).problems]


def test_a_row_is_a_device(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    first, second = config.device
    assert (first.id, first.driver, first.interval_s) == ("lamp-1", "intesis_dali", 30)
    assert first.settings == {"unit": 1, "channel": 0, "short_address": 1}
    assert (first.label.en, first.label.zh_tw) == ("Lamp", "一號燈")
    assert second.location is not None
    assert (second.location.lat, second.location.lon) == (25.0262, 121.5436)
    assert second.asset_id == "P-0002"


def test_what_spreadsheets_make_of_it_is_taken(tmp_path: Path) -> None:
    wanted = read_config(write(tmp_path)).device
    semicolons = ROWS.replace(",", ";").replace(".", ",").replace("label,", "label.")
    for name in ("settings", "location"):
        semicolons = semicolons.replace(f"{name},", f"{name}.")
    quoted = io.StringIO()
    csv.writer(quoted, quoting=csv.QUOTE_ALL).writerows(csv.reader(io.StringIO(ROWS)))
    for rows in (
        b"\xef\xbb\xbf" + ROWS.replace("\n", "\r\n").encode(),
        ROWS.replace("\n", "\r").encode(),
        semicolons,
        quoted.getvalue(),
        ROWS.rstrip("\n"),
        ROWS + ",,,,,,\n\n  ,\n",
        "\n\n" + ROWS,
        ROWS.replace(",P-", ", P-"),
        ROWS.replace("asset_id\n", "asset_id,,\n").replace("0001\n", "0001,,\n"),
    ):
        assert read_config(write(tmp_path, rows)).device == wanted, rows


def test_a_row_may_choose_another_template_and_leave_cells_empty(tmp_path: Path) -> None:
    rows = "id,template,settings.short_address,interval_s\na-1,,1,\na-2,slow,2,\na-3,slow,3,60\n"
    config = read_config(write(tmp_path, rows))
    assert [one.interval_s for one in config.device] == [30, 300, 60]
    assert [one.settings for one in config.device] == [
        {"unit": 1, "short_address": 1},
        {"short_address": 2},
        {"short_address": 3},
    ]


def test_an_asset_registers_own_column_names(tmp_path: Path) -> None:
    rows = "路燈編號,DALI,備註,緯度,經度\nlamp-1,7,舊燈,25.1,121.5\n"
    names = 'columns = { "路燈編號" = "id", DALI = "settings.short_address", "備註" = "", "緯度" = '
    more = names + '"location.lat", "經度" = "location.lon" }\n'
    (device,) = read_config(write(tmp_path, rows, more=more)).device
    assert (device.id, device.settings["short_address"]) == ("lamp-1", 7)


def test_three_hundred_devices_are_read_while_an_agent_starts(tmp_path: Path) -> None:
    rows = "id,settings.unit,settings.channel,settings.short_address,location.lat,location.lon\n"
    rows += "".join(
        f"lamp-{n},{1 + n // 576},{n // 64 % 9},{n % 64},25.{n:04},121.5\n" for n in range(300)
    )
    path = write(tmp_path, rows)
    read_config(path)  # what is loaded once
    begun_s = time.process_time()
    assert len(read_config(path).device) == 300
    assert time.process_time() - begun_s < 0.5


def test_a_thousand_wrong_rows_are_named_while_somebody_waits(tmp_path: Path) -> None:
    rows = "id,settings.channel,settings.short_address,location.lat,location.lon\n"
    path = write(tmp_path, rows + "".join(f"LAMP {n},x,{n + 64},95.0,x\n" for n in range(1000)))
    load_config(path)  # what is loaded once
    begun_s = time.process_time()
    assert len(load_config(path).problems) == 5000
    assert time.process_time() - begun_s < 5.0


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        # a cell
        (
            ROWS.replace(",0,2,", ",0,64,"),
            [
                "lamps.csv:3: column 欄 C: settings.short_address = 64: Expected `int` <= 63 必須是整數，<= 63"
            ],
        ),
        (
            ROWS.replace(",0,2,", ",0,x2,"),
            [
                "lamps.csv:3: column 欄 C: settings.short_address = 'x2': Expected `int`, got `str` 必須是整數"
            ],
        ),
        (
            ROWS.replace("25.0262", "250262"),
            [
                "lamps.csv:3: column 欄 D: location.lat = 250262.0: Expected `float` <= 90.0 必須是數字，<= 90.0"
            ],
        ),
        (
            ROWS.replace("lamp-2,", "Lamp 2,"),
            ["lamps.csv:3: column 欄 A: id = 'Lamp 2': Expected `str` matching regex "],
        ),
        (
            ROWS.replace("lamp-2,", ","),
            ["lamps.csv:3: column 欄 A: id: this key is required 此鍵必填"],
        ),
        (
            ROWS.replace("121.5436", ""),
            ["lamps.csv:3: column 欄 E: location.lon: this key is required"],
        ),
        # what is the same twice
        (
            ROWS.replace("lamp-2,", "lamp-1,"),
            ["lamps.csv:3: column 欄 A: id = 'lamp-1': must be unique: lamps.csv:2 has it, too"],
        ),
        (
            ROWS.replace(",0,2,", ",0,1,"),
            ["lamps.csv:3: settings = ", "must be unique on its bus: lamps.csv:2 is the same"],
        ),
        # a column
        (
            ROWS.replace("short_address", "shortaddress"),
            [
                "lamps.csv:1: column 欄 C: settings.shortaddress = ",
                "unknown key (did you mean short_address?)",
            ],
        ),
        (ROWS.replace("asset_id", "pole"), ["lamps.csv:1: column 欄 G: header = 'pole': one of "]),
        (
            ROWS.replace("asset_id", "id"),
            ["lamps.csv:1: column 欄 G: id = 'id': must stand in one"],
        ),
        (
            ROWS.replace("id,settings.channel", "serial,settings.channel"),
            ["lamps.csv:1: id: this key is required"],
        ),
        # a row
        (ROWS.replace("P-0002", "P-0002,x"), ["lamps.csv:3: column 欄 H: row = 'x': no column"]),
        (
            "id,template,settings.short_address\na,lump,1\nb,lamp,2\n",
            ["lamps.csv:2: column 欄 B: template = 'lump': one of lamp, slow"],
        ),
        (ROWS + 'lamp-3,0,3,"25.0', ["lamps.csv:4: row = '': must be CSV, with quotes closed"]),
        (ROWS + 'lamp-3,0,3,"25"0,1,a,b\n', ["lamps.csv:4: row = '': must be CSV"]),
        # the file
        (
            ROWS.encode("cp950"),
            ["lamps.csv:2: file = b'", "must be UTF-8: in Excel, save as CSV UTF-8"],
        ),
        (ROWS.encode("utf-16"), ["lamps.csv:1: file = b'\\xff': must be UTF-8"]),
        (b"", ["lamps.csv:1: header = '': must have a first row that names the columns"]),
        (b"\n \n", ["lamps.csv:1: header"]),
        (b"id,\0\n", ["lamps.csv:1: file = '\\x00': must be UTF-8"]),
    ],
)
def test_what_is_wrong_is_named_to_the_cell_once(
    tmp_path: Path, rows: str | bytes, said: list[str]
) -> None:
    (problem,) = problems_of(write(tmp_path, rows))
    assert problem.startswith(said[0])
    assert all(part in problem for part in said)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (('"lamps.csv"', '"lamp.csv"'), "edge.toml:30: inventory[0].file = 'lamp.csv': must be a readable file"),
        (('"lamps.csv"', '"."'), "edge.toml:30: inventory[0].file = '.': must be a readable file"),
        (('"lamps.csv"', '"a\\u0000b"'), "edge.toml:30: inventory[0].file = 'a\\x00b': must name a file"),
        (('template = "lamp"', 'template = "lump"'), "edge.toml:31: inventory[0].template = 'lump': one of lamp, slow"),
        (('template = "lamp"', 'templet = "lamp"'), "edge.toml:31: inventory[0].templet = 'lamp': unknown key"),
        ((f"{DRIVER}interval_s = 30\n", f"{DRIVER.replace('intesis_', '')}interval_s = 30\n"),
         "edge.toml:17: template.lamp.driver = 'dali': one of "),
        (("interval_s = 30\n", 'interval_s = "30"\n'), "edge.toml:19: template.lamp.interval_s = '30': Expected"),
        (("{ unit = 1 }", "{ unitt = 1 }"), "edge.toml:20: template.lamp.settings.unitt = 1: unknown key (did you"),
        (("{ unit = 1 }", "7"), "lamps.csv:2: column 欄 B: settings.channel = '0': settings is no table"),
        (("interval_s = 30\n", ""), "lamps.csv:1: interval_s: this key is required"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_template_is_said_once(
    tmp_path: Path, edit: tuple[str, str], said: str
) -> None:
    assert HEAD.count(edit[0]) == 1
    found = problems_of(write(tmp_path, head=HEAD.replace(*edit)))
    assert found[0].startswith(said)
    assert len(found) == (2 if "no table" in said else 1)


def test_ids_and_addresses_are_one_for_tables_and_rows(tmp_path: Path) -> None:
    table = """
[[device]]
id = "lamp-2"
domain = "streetlight"
driver = "intesis_dali"
bus = "lamps"
interval_s = 30
settings = { short_address = 1, channel = 0 }
"""
    loaded = load_config(write(tmp_path, more=table))
    assert [one.id for one in loaded.config.device] == ["lamp-2"]
    found = problems_of(tmp_path / "edge.toml")
    assert "lamps.csv:2: settings = " in found[0]
    assert "device[0] is the same" in found[0]
    assert found[1].startswith("lamps.csv:3: column 欄 A: id = 'lamp-2': must be unique: device[0]")


def test_good_rows_start_when_others_are_bad(tmp_path: Path) -> None:
    rows = ROWS + "lamp-3,0,77,,,,\nlamp-4,0,4,,,,\n"
    loaded = load_config(write(tmp_path, rows))
    assert [one.id for one in loaded.config.device] == ["lamp-1", "lamp-2", "lamp-4"]
    assert len(loaded.problems) == 1
    with pytest.raises(ConfigError, match=r"lamps\.csv:4"):
        read_config(tmp_path / "edge.toml")


def test_many_without_a_place_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "id,settings.short_address\n" + "".join(f"lamp-{n},{n}\n" for n in range(50))
    path = write(tmp_path, rows)
    said = [str(one) for one in advice(examine(path))]
    assert len(said) == 5
    assert "edge.toml:1: gateway.location: no location: it will not be on the map" in said[0]
    assert "lamps.csv:2: location: no location: will not be on the map" in said[1]
    assert "location: so are 47 further devices of this file" in said[4]
    assert main(["edge", "check", str(path)]) == 0
    assert capsys.readouterr().out.count("note 注意") == 5


def test_columns_are_called_as_spreadsheets_do() -> None:
    assert [letters(n) for n in (0, 25, 26, 51, 52, 701, 702)] == [
        "A", "Z", "AA", "AZ", "BA", "ZZ", "AAA",
    ]  # fmt: skip


KEYS = [
    "id",
    "settings.unit",
    "settings.short_address",
    "location.lat",
    "location",
    "label.en",
    "template",
]
KEYS += [
    "report.level.deadband",
    "limits.level.min",
    "interval_s",
    "bus",
    "driver",
    "settings",
    "x",
    "",
    "id.",
]
cells = st.sampled_from(
    ["lamp-1", "1", "2", "25.0", "-", "slow", "lamps", "nan", "1e9", '"', "路"]
) | st.text(max_size=8)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    header=st.lists(st.sampled_from(KEYS) | st.text(max_size=4), min_size=1, max_size=6),
    rows=st.lists(st.lists(cells, max_size=7), max_size=5),
    separator=st.sampled_from(",;"),
)
@example(header=["id", "settings"], rows=[["a", "1"]], separator=",")
@example(header=["settings.", "settings"], rows=[["a", "1"]], separator=",")
def test_whatever_rows_say_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory,
    header: list[str],
    rows: list[list[str]],
    separator: str,
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows([header, *rows])
    data = text.getvalue().encode(errors="surrogatepass")
    path = write(tmp_path_factory.mktemp("rows"), data)
    loaded = load_config(path)
    assert_said(loaded.problems, path.parent)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    data=st.binary(max_size=200)
    | st.text(alphabet='id,;"\n\r lamp-1.', max_size=60).map(str.encode)
)
def test_whatever_bytes_there_are_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = write(tmp_path_factory.mktemp("bytes"), data)
    assert_said(load_config(path).problems, path.parent)


words = st.sampled_from(
    ["lamp", "lamps", "lamp-1", "intesis_dali", "modbus-rtu", "ble", "lamps.csv", "", "air"]
)
values = st.recursive(
    st.booleans() | st.integers(-5, 70000) | st.floats(allow_nan=True) | words | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.sampled_from(
        ["id", "kind", "port", "bus", "driver", "domain", "interval_s", "settings", "file", "template", "columns",
         "steps", "at", "level", "devices"]), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip
TABLES = [
    "bus",
    "device",
    "template",
    "inventory",
    "programme",
    "delivery",
    "clock",
    "polling",
    "report",
    "gateway",
]
TABLES += ["broker", "commands", "metrics", "status", "nonsense"]


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(changed=st.dictionaries(st.sampled_from(TABLES), values, min_size=1, max_size=3))
def test_whatever_a_file_says_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, changed: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("toml")
    data: dict[str, object] = tomllib.loads(HEAD) | changed
    try:
        text = "".join(f"{key} = {toml_value(value)}\n" for key, value in data.items())
        tomllib.loads(text)
    except ValueError:
        return  # no TOML: NaN as JSON writes it
    path = write(folder, head=text)
    found = examine(path)
    assert found.config is None or isinstance(found.config, Config)
    assert found.problems or found.config is not None
    assert_said(found.problems, folder)
    if found.config is not None:
        advice(found)


def assert_said(problems: list[ConfigError], folder: Path) -> None:
    for one in problems:
        assert one.file in (str(folder / "edge.toml"), str(folder / "lamps.csv"))
        assert one.key
        assert one.allowed
        assert one.line is None or one.line >= 1
        if one.file.endswith(".csv"):
            assert one.line is not None


def test_the_manual_shows_what_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["id,settings.short_address,settings.channel,location.lat,location.lon,label.zh-TW"]
    rows += [f"daan-{230 + line},{line % 64},{line // 64},25.0,121.5,燈" for line in range(2, 302)]
    rows[16] = "daan-0016,64,1,25.0,121.5,燈"
    rows[30] = rows[30].replace(rows[30].partition(",")[0], "daan-232")
    rows[39] = rows[39].replace("25.0,121.5", ",")
    text = "\n".join(rows).replace("daan-232,", "daan-0232,")
    write(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    assert main(["edge", "check", "edge.toml"]) == 1
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if "slow" not in line and "gateway.location" not in line]
    for page in ("inventory.md", "inventory.zh-TW.md"):
        manual = (Path(__file__).parents[2] / "docs" / "installers" / page).read_text("utf-8")
        assert [line for line in said if line not in manual] == []
    assert len(said) == 4
