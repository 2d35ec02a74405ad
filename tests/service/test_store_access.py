"""The doors of the store, on a real InfluxDB with TLS: each token opens what its service needs and nothing else."""

from __future__ import annotations

import asyncio
import http.server
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exchange.errors import ConfigError, StoreError
from exchange.towns import Town, read_town
from ingest.stores import Point, Series, StoreUnavailable, open_store
from provisioning.authority import Authority
from provisioning.files import write_private, write_public
from provisioning.store import places, rotate, set_up
from tests.influx import Influx, influxd
from tests.ports import free_port
from tests.store_doors import AUTHORIZATIONS, TOKENS, WHAT_EACH_MAY_DO, As

TOWNS = Path(__file__).parents[2] / "towns"
POINT = Point(Series("air", "tw-tpe", "xinyi", "aq-1"), 1_795_000_000_000_000_001, {"co2": 420.0})
SERVICES = ("ingest", "watch", "rollups", "grafana")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Influx]:
    """A server with an office's certificate that nobody has set up."""
    office = tmp_path_factory.mktemp("office")
    authority = Authority.create(office / "ca", "Test office")
    key, certificate = authority.issue("store", "server", names=["localhost"])
    write_private(office / "store" / "server.key", key)
    write_public(office / "store" / "server.pem", certificate)
    write_public(office / "store" / "ca.pem", authority.certificate)
    server = Influx(influxd(), tmp_path_factory.mktemp("influxd"), office=office)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def first(server: Influx) -> Path:
    """The office that set the server up."""
    assert server.office is not None
    set_up(server.office, [in_bucket(server, "first")])
    return server.office


@pytest.fixture
def office(first: Path, tmp_path: Path) -> Path:
    """Another office that has the same administrator's token."""
    shutil.copytree(first / "store", tmp_path / "store")
    return tmp_path


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    """A name of this test's own."""
    return str(request.node.originalname).removeprefix("test_")


@pytest.fixture
def admin(server: Influx, first: Path) -> As:
    return As(server, (first / "store" / "admin.token").read_text())


def in_bucket(server: Influx, bucket: str, county: str = "tw-tpe", **more: Any) -> Town:
    town = read_town(TOWNS / f"{county}.toml")
    url = f"influxdbs://localhost:{server.port}/onestreet/{bucket}"
    return msgspec.structs.replace(town, store=msgspec.structs.replace(town.store, url=url, **more))


def token_file(office: Path, service: str, name: str = "influx.token") -> Path:
    return office / "services" / service / name


def token_files(office: Path) -> list[Path]:
    return [token_file(office, *token) for token in TOKENS]


def holder(server: Influx, office: Path, service: str, name: str = "influx.token") -> As:
    return As(server, token_file(office, service, name).read_text())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_fresh_server_gets_an_administrator_two_buckets_and_tokens(
    server: Influx, first: Path, admin: As
) -> None:
    for name in ("admin.token", "admin.password"):
        assert mode(first / "store" / name) == 0o600
    assert [mode(file) for file in token_files(first)] == [0o600] * len(TOKENS)
    for name in ("first", "first_rollups"):
        assert admin.bucket(name)["name"] == name
    rights = [
        (one["description"], right["action"], right["resource"]["type"], right["resource"]["name"])
        for one in admin.authorizations("first")
        for right in one["permissions"]
    ]
    assert sorted(rights) == [
        ("onestreet grafana: first", "read", "buckets", "first"),
        ("onestreet grafana: first", "read", "buckets", "first_rollups"),
        ("onestreet ingest: first", "write", "buckets", "first"),
        ("onestreet rollups reads: first", "read", "buckets", "first"),
        ("onestreet rollups reads: first", "read", "buckets", "first_rollups"),
        ("onestreet rollups: first", "write", "buckets", "first_rollups"),
        ("onestreet watch reads: first", "read", "buckets", "first"),
        ("onestreet watch: first", "write", "buckets", "first"),
    ]
    asked = {"username": "x", "password": "12345678", "org": "x", "bucket": "x"}
    assert As(server, "").status("POST", "/api/v2/setup", asked) == 422


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_gets_its_own_done_and_no_more(
    server: Influx, office: Path, bucket: str, admin: As, token: tuple[str, str]
) -> None:
    set_up(office, [in_bucket(server, bucket)])
    me = holder(server, office, *token)
    for name in (bucket, f"{bucket}_rollups", "first", "first_rollups"):
        assert admin.writes(name)
    doors = {(action, f"{bucket}{end}") for action, end in WHAT_EACH_MAY_DO[token]}
    assert {
        (action, name)
        for name in (bucket, f"{bucket}_rollups", "first", "first_rollups")
        for action, does in (("write", me.writes(name)), ("read", me.rows(name) > 0))
        if does
    } == doors
    assert_no_other_door(me, admin, bucket)


def assert_no_other_door(me: As, admin: As, bucket: str) -> None:
    about, before = admin.bucket(bucket), admin.rows(bucket)
    path, org = f"/api/v2/buckets/{about['id']}", about["orgID"]
    authorizations = admin.authorizations(bucket)
    buckets = {"type": "buckets", "orgID": org}
    wider = {"orgID": org, "permissions": [{"action": "write", "resource": buckets}]}
    shorter = {"retentionRules": [{"type": "expire", "everySeconds": 3600}]}
    ever = {"start": "1970-01-01T00:00:00Z", "stop": "2100-01-01T00:00:00Z"}
    for method, door, body in [
        ("DELETE", path, None),
        ("PATCH", path, shorter),
        ("POST", "/api/v2/buckets", {"orgID": org, "name": "mine"}),
        ("POST", f"/api/v2/delete?org=onestreet&bucket={bucket}", ever),
        ("POST", "/api/v2/delete?org=onestreet&bucket=first", ever),
        *[("POST", kind, wider | {"token": "x"}) for kind in AUTHORIZATIONS],
        *[
            (method, f"{kind}/{one['id']}", None)
            for kind in AUTHORIZATIONS
            for one in authorizations
            for method in ("GET", "DELETE")
        ],
    ]:
        assert me.status(method, door, body) in (401, 403, 404), (method, door)
    for listing in ("authorizations", "users", "orgs", "tasks"):
        assert not me.get(f"/api/v2/{listing}").get(listing), listing
    for query in ("DROP MEASUREMENT air", "DELETE FROM air", f'DROP DATABASE "{bucket}"'):
        assert me.rows(bucket, query) == 0
    assert admin.bucket(bucket) == about
    assert admin.authorizations(bucket) == authorizations
    assert admin.rows(bucket) == before > 0


def test_without_a_token_every_door_is_closed(server: Influx, first: Path, admin: As) -> None:
    assert admin.writes("first")
    for token in ("", "guessed"):
        nobody = As(server, token)
        assert not nobody.writes("first")
        assert nobody.rows("first") == 0


def test_once_more_changes_nothing(server: Influx, office: Path, bucket: str, admin: As) -> None:
    town = in_bucket(server, bucket)
    assert set_up(office, [town]) == token_files(office)
    before = admin.authorizations(bucket), admin.bucket(bucket)
    texts = [file.read_text() for file in token_files(office)]
    assert set_up(office, [town]) == []
    assert (admin.authorizations(bucket), admin.bucket(bucket)) == before
    assert [file.read_text() for file in token_files(office)] == texts


def test_a_missing_token_is_issued_anew_and_the_old_one_is_void(
    server: Influx, office: Path, bucket: str, admin: As
) -> None:
    town = in_bucket(server, bucket)
    set_up(office, [town])
    lost, kept = holder(server, office, "ingest"), holder(server, office, "watch")
    token_file(office, "ingest").unlink()
    assert set_up(office, [town]) == [token_file(office, "ingest")]
    assert not lost.writes(bucket)
    assert kept.writes(bucket)
    assert holder(server, office, "ingest").writes(bucket)
    assert len(admin.authorizations(bucket)) == len(TOKENS)


@pytest.mark.parametrize(
    ("service", "kind"),
    [("ingest", AUTHORIZATIONS[0]), ("ingest", AUTHORIZATIONS[1]), ("grafana", AUTHORIZATIONS[0])],
)
def test_a_token_that_opens_more_is_replaced(
    server: Influx, office: Path, bucket: str, admin: As, service: str, kind: str
) -> None:
    town = in_bucket(server, bucket)
    set_up(office, [town])
    org, chief = admin.bucket(bucket)["orgID"], (office / "store" / "admin.token").read_text()
    asked = {
        "orgID": org,
        "description": f"onestreet {service}: {bucket}",
        "token": "wide",
        "permissions": [
            {"action": action, "resource": {"type": "buckets", "orgID": org}}
            for action in ("read", "write")
        ],
    }
    made = server.call("POST", kind, asked, token=chief)
    wide = made["token"]
    if kind != AUTHORIZATIONS[0]:
        password = {"password": "of-a-wide-door"}
        server.call("POST", f"{kind}/{made['id']}/password", password, token=chief)
        wide = "wide:of-a-wide-door"
    write_private(token_file(office, service), wide)
    assert As(server, wide).writes("first")
    assert set_up(office, [town]) == [token_file(office, service)]
    assert not As(server, wide).writes("first")
    assert len(admin.authorizations(bucket)) == len(TOKENS)


async def test_ingest_goes_on_over_a_rotation(
    server: Influx, office: Path, bucket: str, admin: As
) -> None:
    town = in_bucket(server, bucket)
    await asyncio.to_thread(set_up, office, [town])
    store = open_store(
        town.store.url, token_file=token_file(office, "ingest"), ca_file=office / "store" / "ca.pem"
    )
    try:
        await store.write([POINT])
        before = [file.read_text() for file in token_files(office)]
        await asyncio.to_thread(rotate, office, [town])
        after = [file.read_text() for file in token_files(office)]
        assert not set(before) & set(after)
        assert not any(As(server, token).writes(bucket) for token in before)
        assert not any(As(server, token).rows(bucket) for token in before)
        with pytest.raises(StoreUnavailable, match="401"):
            await store.write([POINT])
        await store.write([msgspec.structs.replace(POINT, time_ns=POINT.time_ns + 1)])
        assert admin.rows(bucket) == 2
        with pytest.raises(StoreUnavailable):  # its token does not read
            _ = [row async for row in store.rows("air")]
    finally:
        await store.close()


def test_towns_with_stores_of_their_own_do_not_see_each_other(
    server: Influx, office: Path, bucket: str, admin: As
) -> None:
    north, south = f"{bucket}-north", f"{bucket}-south"
    towns = [
        in_bucket(server, north, "tw-tpe"),
        in_bucket(server, south, "tw-khh"),
        in_bucket(server, north, "tw-nwt"),
    ]
    written = set_up(office, towns)
    assert {file.parent.name for file in written} == {
        f"{service}-{county}" for service in SERVICES for county in ("tw-khh", "tw-nwt")
    }
    northern = holder(server, office, "ingest-tw-nwt")
    assert northern.writes(north)
    assert not northern.writes(south)
    assert admin.writes(south)
    assert holder(server, office, "grafana-tw-khh").rows(south) == 1
    assert holder(server, office, "grafana-tw-nwt").rows(south) == 0


def test_retention_is_as_the_town_says(
    server: Influx, office: Path, bucket: str, admin: As
) -> None:
    def kept_days() -> list[tuple[float, float]]:
        return [
            (rule["everySeconds"] / 86_400, rule["shardGroupDurationSeconds"] / 86_400)
            for rule in admin.bucket(bucket)["retentionRules"]
        ]

    set_up(office, [in_bucket(server, bucket, rollups_retention_days=400)])
    [rule] = admin.bucket(f"{bucket}_rollups")["retentionRules"]
    assert rule["everySeconds"] == 400 * 86_400
    assert kept_days() == [(0, 364)], "few shards, whatever times a gateway sends"
    set_up(office, [in_bucket(server, bucket, retention_days=1)])
    assert kept_days() == [(1, 1)]
    set_up(office, [in_bucket(server, bucket, retention_days=90)])
    assert kept_days() == [(90, 1)]
    set_up(office, [in_bucket(server, bucket, retention_days=400)])
    assert kept_days() == [(400, 7)]
    set_up(office, [in_bucket(server, bucket, rollups_retention_days=400)])
    [rule] = admin.bucket(f"{bucket}_rollups")["retentionRules"]
    assert rule["everySeconds"] == 400 * 86_400
    assert kept_days() == [(0, 364)]


def test_another_organisation_is_made(server: Influx, office: Path, bucket: str) -> None:
    town = in_bucket(server, bucket)
    url = town.store.url.replace("/onestreet/", "/another/")
    town = msgspec.structs.replace(town, store=msgspec.structs.replace(town.store, url=url))
    set_up(office, [town])
    assert holder(server, office, "ingest").writes(bucket)
    assert set_up(office, [town]) == []


def test_a_setup_that_was_cut_off_is_finished(tmp_path: Path, first: Path) -> None:
    office = tmp_path / "office"
    shutil.copytree(first / "store", office / "store")
    (office / "store" / "admin.password").unlink()  # cut off before the second file was written
    server = Influx(influxd(), tmp_path, office=office)
    server.start()
    try:
        set_up(office, [in_bucket(server, "late")])
        assert holder(server, office, "ingest").writes("late")
        token = (office / "store" / "admin.token").read_text()
        assert token == (first / "store" / "admin.token").read_text()
        assert As(server, token).bucket("late")
    finally:
        server.kill()


@pytest.mark.parametrize("bits", [0o644, 0o602])
@pytest.mark.parametrize("name", ["store/admin.token", "services/ingest/influx.token"])
def test_a_secret_that_others_can_read_is_refused(
    server: Influx, office: Path, bucket: str, name: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    town = in_bucket(server, bucket)
    set_up(office, [town])
    file = office / name
    file.chmod(bits)
    secret = file.read_text()
    with pytest.raises(ConfigError, match=f"must be private .*: its mode is {bits:04o}") as told:
        set_up(office, [town])
    assert secret not in str(told.value)
    if name.startswith("services"):
        with pytest.raises(ConfigError, match="must be private"):
            open_store(town.store.url, token_file=file, ca_file=office / "store" / "ca.pem")


@pytest.mark.parametrize("found", [None, "", "guessed", "writer"])
def test_a_server_that_was_set_up_wants_its_administrator(
    server: Influx, office: Path, bucket: str, found: str | None
) -> None:
    town, file = in_bucket(server, bucket), office / "store" / "admin.token"
    if found == "writer":
        set_up(office, [town])
        found = token_file(office, "ingest").read_text()
    file.unlink()
    if found is not None:
        write_private(file, found)
    with pytest.raises(ConfigError, match="must hold a token of the administrator") as told:
        set_up(office, [town])
    assert told.value.file == str(file)
    assert not found or found not in str(told.value)


def test_an_unreachable_server_is_named(server: Influx, office: Path, bucket: str) -> None:
    url = f"https://localhost:{free_port()}"
    with pytest.raises(StoreError, match=f"{url}: not reachable"):
        set_up(office, [in_bucket(server, bucket)], url=url)


@pytest.mark.parametrize("url", ["http://db.example:8086", "localhost:8086", "ftp://db.example"])
def test_tokens_do_not_go_in_plain_text(
    server: Influx, office: Path, bucket: str, url: str
) -> None:
    with pytest.raises(ConfigError, match="must be https://HOST:PORT") as told:
        set_up(office, [in_bucket(server, bucket)], url=url)
    assert told.value.value == url


def test_a_server_of_another_authority_is_not_believed(
    server: Influx, office: Path, bucket: str, tmp_path: Path
) -> None:
    write_public(office / "store" / "ca.pem", Authority.create(tmp_path / "x", "X").certificate)
    with pytest.raises(
        StoreError, match=r"its certificate is not believed: .*CERTIFICATE_VERIFY_FAILED"
    ):
        set_up(office, [in_bucket(server, bucket)])


def test_a_name_that_the_certificate_lacks_is_not_believed(
    server: Influx, office: Path, bucket: str
) -> None:
    with pytest.raises(StoreError, match=r"its certificate is not believed: .*127\.0\.0\.1"):
        set_up(office, [in_bucket(server, bucket)], url=f"https://127.0.0.1:{server.port}")


@pytest.mark.parametrize(
    ("version", "body", "found"),
    [
        ("1.8.10", b"", "InfluxDB 1.8.10"),
        ("3.4.1", b'{"version":"3.4.1"}', "InfluxDB 3.4.1"),
        ("", b"<html>nginx</html>", "something else ('<html>nginx</html>')"),
    ],
)
def test_another_server_is_told_apart(
    server: Influx, office: Path, bucket: str, version: str, body: bytes, found: str
) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if version:
                self.send_header("X-Influxdb-Version", version)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as other:
        serving = threading.Thread(target=other.serve_forever)
        serving.start()
        try:
            with pytest.raises(StoreError) as told:
                url = f"http://127.0.0.1:{other.server_port}"
                set_up(office, [in_bucket(server, bucket)], url=url)
        finally:
            other.shutdown()
            serving.join()
    assert str(told.value) == f"{url}: needs InfluxDB 2.7, found {found}"


def test_two_servers_in_one_office_are_refused(server: Influx, office: Path, bucket: str) -> None:
    here = in_bucket(server, bucket)
    there = msgspec.structs.replace(read_town(TOWNS / "tw-nwt.toml"))
    with pytest.raises(ConfigError, match="must be one server: an office has one InfluxDB"):
        set_up(office, [here, there])


def test_one_bucket_under_two_names_is_one_store() -> None:
    towns = [read_town(TOWNS / f"{county}.toml") for county in ("tw-tpe", "tw-nwt")]
    for url, suffixes in (
        ("influxdbs://localhost/onestreet/onestreet", [""]),
        ("influxdbs://localhost/onestreet/own", ["-tw-nwt", "-tw-tpe"]),
    ):
        store = msgspec.structs.replace(towns[0].store, url=url)
        here = [msgspec.structs.replace(towns[0], store=store), towns[1]]
        assert [place.suffix for place in places(here)] == suffixes


def test_sqlite_needs_nothing(tmp_path: Path) -> None:
    town = read_town(TOWNS / "tw-tpe.toml")
    store = msgspec.structs.replace(town.store, url="sqlite:///rows.sqlite")
    assert set_up(tmp_path, [msgspec.structs.replace(town, store=store)]) == []
    assert not list(tmp_path.iterdir())
