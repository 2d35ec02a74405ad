"""Towns as files: the shipped example, and every wrong file is named to the key."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from exchange.errors import ConfigError
from exchange.towns import Bucket, Store, Town, read_town, read_towns
from provisioning.cli import parser

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "towns").glob("*.toml"))
DOCUMENT = (ROOT / "docs" / "towns.md").read_text(encoding="utf-8")
GOOD: dict[str, Any] = tomllib.loads((ROOT / "towns" / "tw-nwt.toml").read_text(encoding="utf-8"))


def toml(value: object) -> str:
    """Return a value as TOML writes it on one line."""
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def written(folder: Path, data: dict[str, Any], county: str = "tw-nwt") -> Path:
    path = folder / f"{county}.toml"
    lines = [f"{json.dumps(key)} = {toml(value)}" for key, value in data.items()]
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return path


def changed(key: str, value: object) -> dict[str, Any]:
    """Return the good file with one key set (`site[0].id`), or without it where the value is None."""
    data = deepcopy(GOOD)
    steps = [int(step) if step.isdecimal() else step for step in re.findall(r"[^.\[\]]+", key)]
    table: Any = data
    for step in steps[:-1]:
        table = table[step]
    if value is None:
        del table[steps[-1]]
    else:
        table[steps[-1]] = value
    return data


def test_the_shipped_example_is_nine_sites_in_three_living_circles() -> None:
    towns = read_towns(SHIPPED)
    assert {(town.circle.id, town.county): len(town.sites) for town in towns} == {
        ("north", "tw-tpe"): 2,
        ("north", "tw-nwt"): 1,
        ("centre", "tw-txg"): 2,
        ("centre", "tw-cha"): 1,
        ("south", "tw-khh"): 2,
        ("south", "tw-pif"): 1,
    }
    for town in towns:
        assert town.timezone == "Asia/Taipei"
        assert {gateway.site for gateway in town.gateways} == {site.id for site in town.sites}
        assert len({one.zh_tw for one in town.townships}) == len(town.townships) > 10


def test_a_written_file_is_what_was_meant(tmp_path: Path) -> None:
    assert read_town(written(tmp_path, GOOD)) == read_town(ROOT / "towns" / "tw-nwt.toml")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("county", "tw-tpe", "must be the file's name, 'tw-nwt'"),
        ("county", "TW-NWT", "matching regex"),
        ("name.zh-TW", "", "length >= 1"),
        ("name.en", "New\nTaipei", "matching regex"),
        ("timezone", "Asia/Taipeh", "IANA time zone database, such as Asia/Taipei"),
        ("timezone", "Asia", "IANA time zone database"),
        ("timezone", "../../etc/passwd", "IANA time zone database"),
        ("timezone", "", "IANA time zone database"),
        ("circle.id", "North", "matching regex"),
        ("extent.north", 24.67, "above south = 24.67 by 10 degrees at most"),
        ("extent.south", 90.5, "<= 90"),
        ("extent.east", 12.2, "above west = 121.28"),
        ("townships", [], "length >= 1"),
        ("townships[1].id", "banqiao", "must be unique: townships[0] has it, too"),
        ("broker.host", "", "matching regex"),
        ("broker.host", "a b", "matching regex"),
        ("broker.port", 0, ">= 1"),
        ("broker.password_port", 8883, "must differ from port"),
        ("broker.service_port", 8884, "must differ from password_port"),
        ("broker.names", ["ok", "not ok"], "matching regex"),
        ("store.url", "influxdb://db.example/o/b", "db.example is not loopback"),
        ("store.url", "influxdbs://db.example/o", "must be influxdbs://HOST:PORT/ORG/BUCKET"),
        ("store.url", "influxdbs://db.example:x/o/b", "Port could not be cast"),
        ("store.url", "influxdbs://:8086/o/b", "a host is missing"),
        ("store.url", "influxdbs://a..b/o/b", "a..b is no host"),
        ("store.url", "sqlite:///", "must be influxdbs://"),
        ("store.retention_days", -1, ">= 0"),
        ("store.retention_days", 1, "must be 0, for ever, or 5 at least"),
        ("store.rollups_retention_days", 4, "must be 0, for ever, or 5 at least"),
        ("store.rollups_retention_days", 40_000, "<= 36500"),
        ("store.workers", 0, ">= 1"),
        ("store.workers", 65, "<= 64"),
        ("intervals.street", 60, "no such domain; one of air, gateway, parking"),
        ("intervals.air", 0, ">= 0.01"),
        ("intervals.power", "60", "Expected `float`"),
        ("alerts.completeness_percent", 101, "<= 100"),
        ("alerts.silent_intervals", 3, "unknown key; allowed are completeness_percent, aqi"),
        ("site", [], "length >= 1"),
        ("site[0].township", "daan", "one of banqiao, sanchong"),
        ("site[0].location.lat", 22.0, "must be in the county's extent, 24.67 to 25.3"),
        ("site[0].location.lon", 120.0, "must be in the county's extent, 121.28 to 122.01"),
        ("site[0].label.en", None, "this key is required"),
        ("site[0].lamp_w", 0, "> 0"),
        ("site[0].lamp_watts", {"lamp-1": 20_000}, "<= 10000"),
        ("site[0].lamp_w_uncertainty_percent", 101, "<= 100"),
        ("gateway[0].site", "xinbann", "one of xinban"),
        ("gateway[1].id", "xinban-1", "must be unique: gateway[0] has it, too"),
        ("gateway[0].id", "a.b", "matching regex"),
        (
            "gateway[1].credential",
            "passwort",
            "one of certificate, password (did you mean password?)",
        ),
        ("application[0].id", "ingest", "taken by our own services"),
        ("application[0].id", "watch-2", "taken by our own services"),
        ("application[0].commands", ["lamps"], "one of air, gateway, parking"),
        ("application[0].reads", ["receipts"], "one of readings, results, state"),
        ("application[0].counties", ["tw-nwt"], "further counties only"),
        ("application[0].counties", ["taipei"], "matching regex"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, key: str, value: Any, allowed: str) -> None:
    path = written(tmp_path, changed(key, value))
    with pytest.raises(ConfigError) as told:
        read_town(path)
    assert told.value.file == str(path)
    assert told.value.key.startswith(key)
    assert allowed in told.value.allowed
    assert told.value.value == (value[-1] if isinstance(value, list) and value else value)


@pytest.mark.parametrize(
    "url",
    [
        "influxdbs://me:hidden@localhost/o/b",
        "influxdbs://localhost/o/b?token=hidden",
        "influxdbs://[hidden@/o/b",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    path = written(tmp_path, changed("store.url", url))
    with pytest.raises(ConfigError, match=re.escape("store.url = 'influxdbs://…'")) as told:
        read_town(path)
    assert "hidden" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "bucket"),
    [
        ("influxdbs://db.example:443/o/b", Bucket("https://db.example:443", "o", "b")),
        ("influxdb://127.0.0.1/o/b", Bucket("http://127.0.0.1:8086", "o", "b")),
        ("influxdbs://[::1]:1/o/b", Bucket("https://[::1]:1", "o", "b")),
        ("sqlite:///data/rows.sqlite", None),
    ],
)
def test_where_a_store_is(url: str, bucket: Bucket | None) -> None:
    assert Store(url=url).bucket == bucket


def places(value: Any, key: str = "") -> Iterator[str]:
    """Yield every key of the data, inner ones too."""
    if key:
        yield key
    if isinstance(value, dict):
        for name, one in value.items():
            yield from places(one, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from places(one, f"{key}[{index}]")


PLACES = [
    place for place in places(GOOD) if not re.match(r"townships\[[3-9]|townships\[\d\d", place)
]
junk = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(place=st.sampled_from(PLACES), value=junk | st.none())
def test_whatever_is_wrong_is_named_to_the_key(
    tmp_path_factory: pytest.TempPathFactory, place: str, value: Any
) -> None:
    path = written(tmp_path_factory.mktemp("town"), changed(place, value))
    try:
        town = read_town(path)
    except ConfigError as error:
        assert error.file == str(path)
        assert error.allowed
        assert re.match(
            rf"{re.escape(f'{path}:')}(\d+:)? {re.escape(error.key)}( =|:) ", str(error)
        )
        # What is found may be what depended on it: a site's township, when the township went.
        assert related(error.key, place) or error.allowed == "must be valid TOML", (error, place)
    else:
        assert msgspec.to_builtins(town)["county"] == "tw-nwt"


def related(key: str, place: str) -> bool:
    """Whether an error about one key can come from another."""
    tables = [re.split(r"[.\[]", name)[0] for name in (key, place)]
    depends = {("site", "townships"), ("site", "extent"), ("gateway", "site")}
    return tables[0] == tables[1] or tuple(tables) in depends or key == "file"


@given(st.binary(max_size=200))
def test_no_bytes_crash_it(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("town") / "tw-nwt.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        read_town(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a readable TOML file"):
        read_town(tmp_path / "tw-nwt.toml")


def another(**changes: Any) -> dict[str, Any]:
    """Return a second county's file."""
    data = deepcopy(GOOD) | {"county": "tw-tpe", "application": []}
    for name, value in changes.items():
        data[name] = value
    return data


@pytest.mark.parametrize(
    ("changes", "key", "allowed"),
    [
        ({"circle": GOOD["circle"] | {"en": "The north"}}, "circle", "must be as in"),
        ({"broker": {"host": "elsewhere"}}, "broker", "must be as in"),
        (
            {"store": GOOD["store"] | {"retention_days": 30}},
            "store.retention_days",
            "must be as in",
        ),
        (
            {"store": GOOD["store"] | {"rollups_retention_days": 30}},
            "store.rollups_retention_days",
            "must be as in",
        ),
        ({"store": GOOD["store"] | {"workers": 2}}, "store.workers", "must be as in"),
        ({"application": [{"id": "lamps-nwt"}]}, "application[0].id", "must be unique"),
    ],
)
def test_files_of_one_office_agree(
    tmp_path: Path, changes: dict[str, Any], key: str, allowed: str
) -> None:
    paths = [written(tmp_path, another(), "tw-tpe"), written(tmp_path, GOOD)]
    assert [town.county for town in read_towns(paths)] == ["tw-nwt", "tw-tpe"]
    paths[0] = written(tmp_path, another(**changes), "tw-tpe")
    with pytest.raises(ConfigError) as told:
        read_towns(paths)
    assert (told.value.file, told.value.key) == (str(paths[0]), key)
    assert allowed in told.value.allowed


def test_a_grant_may_name_a_county_of_another_office(tmp_path: Path) -> None:
    paths = [
        written(tmp_path, another(application=[{"id": "map", "counties": ["tw-khh"]}]), "tw-tpe")
    ]
    assert read_towns(paths)[0].applications[0].counties == ["tw-khh"]


def test_a_county_has_one_file(tmp_path: Path) -> None:
    (tmp_path / "older").mkdir()
    paths = [written(tmp_path, GOOD), written(tmp_path / "older", GOOD)]
    with pytest.raises(ConfigError, match="must be unique"):
        read_towns(paths)


def test_towns_may_have_stores_of_their_own(tmp_path: Path) -> None:
    own = another(store={"url": "influxdbs://localhost/onestreet/taipei", "retention_days": 30})
    assert len(read_towns([written(tmp_path, own, "tw-tpe"), written(tmp_path, GOOD)])) == 2


# The document


def keys(kind: inspect.Type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key of a town's file with its default, as the document has them."""
    assert isinstance(kind, inspect.StructType)
    for field in kind.fields:
        key, inner = f"{prefix}{field.encode_name}", field.type
        if isinstance(inner, inspect.ListType) and isinstance(inner.item_type, inspect.StructType):
            yield from keys(inner.item_type, f"{key}[].")
        elif isinstance(inner, inspect.StructType):
            yield from keys(inner, f"{key}.")
        elif field.required:
            yield key, "required 必填"
        else:
            factory = field.default_factory
            default = field.default if factory is msgspec.NODEFAULT else factory()
            yield key, "–" if default is None else f"`{toml(default)}`"


def test_the_document_has_every_key_and_its_default() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+?) \| (.+?) \|$", DOCUMENT, re.MULTILINE)
    assert [(key, default) for key, default, *_ in rows] == list(keys(inspect.type_info(Town)))
    assert all(re.search(r"[一-鿿]", zh_tw) for *_, zh_tw in rows)


def test_the_documents_example_is_a_town(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    path = tmp_path / f"{tomllib.loads(example)['county']}.toml"
    path.write_text(example, encoding="utf-8")
    town = read_town(path)
    assert town.county not in {one.stem for one in SHIPPED}  # one to be added


def test_the_documents_commands_are_commands() -> None:
    found = re.findall(r"^ *onestreet town (.+)$", DOCUMENT, re.MULTILINE)
    assert len(found) > 4
    for line in found:
        parser().parse_args(shlex.split(line, comments=True))
