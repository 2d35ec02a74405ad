"""The office's folder: made again, added to, killed between any two writes, and always in order afterwards."""

from __future__ import annotations

import io
import os
import pwd
import shutil
import signal
import subprocess
import tarfile
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from exchange import folder_lock
from exchange.errors import ConfigError
from exchange.folder_lock import Busy, locked
from exchange.tls import Tls
from ingest.config import load_config
from onestreet.cli import main
from provisioning import broker, files
from provisioning.authority import OVERLAP_DAYS, fits, serial_of
from provisioning.office import Office, OfficeError, init, opened
from provisioning.replacement import replace_gateway
from tests.offices import broker_table, town_text

PORTS = broker_table([8883, 8884, 8885])
APPLICATION = '[[application]]\nid = "console"\ncommands = ["streetlight"]\n'


def write_town(folder: Path, county: str, **more: object) -> Path:
    file = folder / f"{county}.toml"
    file.write_text(town_text(county, PORTS, **more))  # type: ignore[arg-type]  # passed on
    return file


@pytest.fixture
def town(tmp_path: Path) -> Path:
    return write_town(tmp_path, "tw-tpe", gateways=["gw-1"], by_password=["gw-p"], more=APPLICATION)


@pytest.fixture
def folder(tmp_path: Path, town: Path) -> Path:
    with init([town], tmp_path / "office") as office:
        return office.folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file but what is dated anew each time."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "crl.pem"
    }


def check_sound(folder: Path) -> None:
    """Check that every key of an office has its certificate, known to the authority, and nothing is half."""
    with opened(folder) as office:
        pairs = [
            *((file, file.with_name("certificate.pem")) for file in folder.rglob("key.pem")),
            *((file, file.with_name("server.pem")) for file in folder.rglob("server.key")),
        ]
        assert len(pairs) >= 5
        valid = {one.serial for one in office.authority.all_valid()}
        for key, certificate in pairs:
            assert fits(key.read_bytes(), certificate.read_bytes()), key
            assert serial_of(certificate.read_bytes()) in valid, certificate
            assert (key.parent / "ca.pem").read_bytes() == office.authority.certificate
        word = (office.gateway_folder("tw-tpe", "gw-p") / "password").read_text()
        hashes = broker.read_passwords((folder / "broker" / "passwords").read_text())
        assert list(hashes) == ["tw-tpe.gw-p"]
        assert broker.password_fits(word, hashes["tw-tpe.gw-p"])
    assert list(folder.rglob("*.half")) == []


# -------------------------------------------------------------------------------------------------------- being made


def test_what_is_made_is_sound_and_made_again_is_the_same(folder: Path, town: Path) -> None:
    check_sound(folder)
    before = contents(folder)
    with init([town], folder):
        pass
    with init([], folder):
        pass
    assert contents(folder) == before


def killed_at(number: int, act: Callable[[], object]) -> bool:
    """Do something in a process that is killed before its nth write; return whether it came to that."""
    pid = os.fork()
    if pid == 0:
        left = number

        def write(path: Path, data: bytes | str, mode: int) -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            whole(path, data, mode)

        whole, files._write = files._write, write
        try:
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is killed here, not the machine: what it has written is there."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("unsynced")
def test_killed_between_any_two_writes_of_init(tmp_path: Path, town: Path) -> None:
    def make(folder: Path) -> None:
        with init([town], folder):
            pass

    number, killed = 0, True
    while killed:
        folder = tmp_path / str(number)
        killed = killed_at(number, partial(make, folder))
        make(folder)
        check_sound(folder)
        number += 1
    assert number > 20, "it writes so many files"


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize(
    "act",
    ["add", "rotate", "rotate password", "revoke", "rotate ca", "replace", "replace by another"],
)
def test_killed_between_any_two_writes_of_a_change(tmp_path: Path, town: Path, act: str) -> None:
    """The next command repairs, and gateways that were not meant keep their keys."""

    def change(office: Office) -> None:
        if act == "add":
            office.add_gateway("tw-tpe", "gw-2", "street")
        elif act == "rotate":
            office.rotate_gateway("tw-tpe", "gw-1")
        elif act == "rotate password":
            office.rotate_gateway("tw-tpe", "gw-p")
        elif act == "revoke":
            office.revoke_gateway("tw-tpe", "gw-1")
        elif act == "rotate ca":
            office.rotate_authority()
        else:
            name = "gw-1" if act == "replace" else "gw-9"
            replace_gateway(office, "tw-tpe", "gw-1", name, hand_out=True)

    def open_and_change(folder: Path) -> None:
        with opened(folder) as office:
            change(office)

    with init([town], tmp_path / "office"):
        pass
    number, killed = 0, True
    while killed:
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "office", folder)
        killed = killed_at(number, partial(open_and_change, folder))
        with init([], folder):
            pass
        check_sound(folder)
        number += 1
    assert number > 3


def test_one_command_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "DEADLINE_S", 0.05)
    with opened(folder), pytest.raises(Busy, match="another command"), opened(folder):
        pass
    monkeypatch.setattr(folder_lock, "DEADLINE_S", 10.0)
    entered = threading.Event()

    def wait_for_it() -> None:
        with locked(folder):
            entered.set()

    with opened(folder):
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        assert not entered.wait(0.1)
    waiting.join(5)
    assert entered.is_set()


def test_an_office_that_others_can_enter_is_refused(folder: Path) -> None:
    folder.chmod(0o750)
    with pytest.raises(ConfigError, match="chmod 700"), opened(folder):
        pass
    folder.chmod(0o700)
    key = folder / "services" / "ingest" / "key.pem"
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"key\.pem.*must be private"), init([], folder):
        pass


def test_what_root_does_in_an_office_its_owner_can_go_on_with(folder: Path) -> None:
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 12345, 54321)
    owner = folder.stat()
    with opened(folder) as office:
        office.add_gateway("tw-tpe", "gw-2", "street")
        office.revoke_gateway("tw-tpe", "gw-1")
    for path in folder.rglob("*"):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (owner.st_uid, owner.st_gid), path
    user = "12345" if os.geteuid() == 0 else pwd.getpwuid(owner.st_uid).pw_name
    assert f"\nuser {user}\n" in (folder / "broker" / "mosquitto.conf").read_text()


# ------------------------------------------------------------------------------------------------------- being added to


def test_a_town_is_added_and_nothing_else_changes(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    other = write_town(tmp_path, "tw-nwt", gateways=["gw-1"])
    with init([other], folder) as office:
        assert [town.county for town in office.towns] == ["tw-nwt", "tw-tpe"]
    after = contents(folder)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        "broker/acl",
        "ca/issued.json",
        "services/ingest/ingest.toml",
        "services/rollups/ingest.toml",
        "services/watch/ingest.toml",
    }
    assert (folder / "gateways" / "tw-nwt" / "gw-1" / "key.pem").exists()


def test_a_gateway_is_added_below_what_people_wrote(folder: Path) -> None:
    before = (folder / "towns" / "tw-tpe.toml").read_text()
    with opened(folder) as office:
        office.add_gateway("tw-tpe", "gw-2", "street", credential="password")
    after = (folder / "towns" / "tw-tpe.toml").read_text()
    assert after.startswith(before.rstrip("\n"))
    added = '[[gateway]]\nid = "gw-2"\nsite = "street"\ncredential = "password"\n'
    assert after.endswith(added)
    with opened(folder) as office:
        assert office.has_password("tw-tpe", "gw-2")


def test_a_gateway_that_cannot_be_added(folder: Path) -> None:
    before = contents(folder)
    with opened(folder) as office:
        for county, gateway, site, words in (
            ("tw-tpe", "gw-1", "street", "is there already"),
            ("tw-tpe", "gw-2", "nowhere", r"gateway\[2\]\.site = 'nowhere': one of street"),
            ("tw-tpe", "GW 2", "street", r"gateway\[2\]\.id = 'GW 2'"),
            ("tw-khh", "gw-2", "street", "county = 'tw-khh': one of tw-tpe"),
        ):
            with pytest.raises(ConfigError, match=words) as told:
                office.add_gateway(county, gateway, site)
            assert told.value.file.startswith(str(folder)), "the office's file, not one in between"
    assert contents(folder) == before


def test_with_codes_no_key_is_made_for_a_gateway(tmp_path: Path, town: Path) -> None:
    """Until it is asked for: for one gateway only."""
    with init([town], tmp_path / "office", hand_out=False) as office:
        office.add_gateway("tw-tpe", "gw-2", "street")
        office.add_gateway("tw-tpe", "gw-3", "street", hand_out=False)
        assert [file.name for file in (office.folder / "gateways" / "tw-tpe").iterdir()] == ["gw-2"]
        assert not office.has_password("tw-tpe", "gw-p")


def test_what_was_handed_over_stays_away(folder: Path) -> None:
    """A folder that was deleted is not made again, and its certificate and password hold on."""
    hashes = (folder / "broker" / "passwords").read_text()
    for name in ("gw-1", "gw-p"):
        for file in (folder / "gateways" / "tw-tpe" / name).iterdir():
            file.unlink()
        (folder / "gateways" / "tw-tpe" / name).rmdir()
    with init([], folder) as office:
        assert [one.name for one in office.authority.valid("tw-tpe.gw-1")] == ["tw-tpe.gw-1"]
        with pytest.raises(OfficeError, match="onestreet town rotate tw-tpe/gw-1"):
            office.bundle("tw-tpe", "gw-1")
    assert list((folder / "gateways" / "tw-tpe").iterdir()) == []
    assert (folder / "broker" / "passwords").read_text() == hashes


def test_a_file_that_would_forget_gateways_is_refused(folder: Path, town: Path) -> None:
    with opened(folder) as office:
        office.add_gateway("tw-tpe", "gw-2", "street")
    with pytest.raises(ConfigError, match=r"'gw-2': .* has this gateway"), init([town], folder):
        pass


def test_who_is_taken_out_of_a_file_is_revoked(folder: Path) -> None:
    """And who changes from key to password, too: one credential each."""
    file = folder / "towns" / "tw-tpe.toml"
    text = file.read_text()
    file.write_text(text.replace(APPLICATION, "").replace('id = "gw-1"', 'id = "gw-7"'))
    with init([], folder) as office:
        names = {one.name for one in office.authority.all_valid() if one.kind == "client"}
        assert names == {"ingest", "watch", "tw-tpe.gw-7"}
    acl = (folder / "broker" / "acl").read_text()
    assert "gw-1" not in acl
    assert "console" not in acl


# ------------------------------------------------------------------------------------------------------------ revoking


@pytest.mark.parametrize("name", ["gw-1", "gw-p"])
def test_revoking_leaves_nothing_that_opens(folder: Path, name: str) -> None:
    user = f"tw-tpe.{name}"
    with opened(folder) as office:
        office.revoke_gateway("tw-tpe", name)
    with init([], folder) as office:  # a later command does not give it a key again
        assert office.is_revoked("tw-tpe", name)
        assert office.authority.valid(user) == []
        with pytest.raises(OfficeError, match="was revoked"):
            office.rotate_gateway("tw-tpe", name)
    assert f"user {user}\n" not in (folder / "broker" / "acl").read_text()
    assert user not in (folder / "broker" / "passwords").read_text()
    left = {file.name for file in (folder / "gateways" / "tw-tpe" / name).iterdir()}
    assert left <= {"revoked", "broker.toml", "ca.pem"}
    with opened(folder) as office:
        with pytest.raises(ConfigError, match=r"gw-[1p] is at street"):
            office.add_gateway("tw-tpe", name, "elsewhere")
        office.add_gateway("tw-tpe", name, "street")
        assert not office.is_revoked("tw-tpe", name)
    check_sound(folder)


def test_a_superseded_certificate_has_thirty_days(folder: Path) -> None:
    with opened(folder) as office:
        office.rotate_gateway("tw-tpe", "gw-1")
        old, new = office.authority.valid("tw-tpe.gw-1")
        assert new.superseded_until is None
        assert old.superseded_until is not None
        expected = new.not_before + timedelta(days=OVERLAP_DAYS, hours=1)
        assert abs(old.superseded_until - expected) < timedelta(minutes=1)
        assert office.regenerate() == []


@pytest.mark.parametrize("what", ["gw-1", "console", "ingest"])
def test_a_stolen_key_is_replaced_at_once(folder: Path, what: str) -> None:
    user = {"gw-1": "tw-tpe.gw-1", "console": "app.console"}.get(what, what)
    with opened(folder) as office:
        [old] = office.authority.valid(user)
        if what == "gw-1":
            office.rotate_gateway("tw-tpe", what, at_once=True)
        else:
            office.rotate_service(what, at_once=True)
        [new] = office.authority.valid(user)
        assert old.revoked_at is not None
        assert new.serial != old.serial
    check_sound(folder)


# ------------------------------------------------------------------------------------------------------ what is made


def test_a_bundle_is_what_a_gateway_needs_and_no_more(folder: Path) -> None:
    with opened(folder) as office:
        for name, expected in (
            ("gw-1", {"broker.toml", "ca.pem", "certificate.pem", "key.pem"}),
            ("gw-p", {"broker.toml", "ca.pem", "password"}),
        ):
            with tarfile.open(fileobj=io.BytesIO(office.bundle("tw-tpe", name))) as tar:
                members = tar.getmembers()
            assert {member.name for member in members} == {f"{name}/{file}" for file in expected}
            assert {member.mode for member in members} == {0o600}


def test_rollups_are_configured_by_the_towns_files(folder: Path, tmp_path: Path) -> None:
    config = load_config(folder / "services" / "rollups" / "ingest.toml")
    stored = load_config(folder / "services" / "ingest" / "ingest.toml").store
    assert Path(config.store.removeprefix("sqlite:///")).resolve() == Path(
        stored.removeprefix("sqlite:///")
    )
    assert config.zone("tw-tpe").key == "Asia/Taipei"
    assert config.rollups.raw_retention_days is None
    [site] = config.rollups.sites
    assert site.startswith("tw-tpe/")
    assert config.rollups.sites[site].lat is not None
    assert config.broker.tls is not None
    Tls.context(config.broker.tls, "test", "tls")  # the watch's, which is there
    store = "influxdbs://influx.example:8086/north/nwt"
    with init([write_town(tmp_path, "tw-nwt", store=store)], folder):
        pass
    own = folder / "services" / "rollups-tw-nwt"
    config = load_config(own / "ingest.toml")
    assert (config.store, config.counties) == (store, ["tw-nwt"])
    assert config.store_token_file == own / "influx.token"
    assert config.store_read_token_file == own / "influx.read.token"
    assert config.store_ca_file is not None
    assert config.store_ca_file.exists()


def test_services_are_configured_as_ingest_reads_it(folder: Path, tmp_path: Path) -> None:
    """One store for all needs one ingest; towns with stores of their own have one each."""
    config = load_config(folder / "services" / "watch" / "ingest.toml")
    assert config.counties == ["tw-tpe"]
    assert (config.broker.host, config.broker.port) == ("localhost", 8885)
    stored = load_config(folder / "services" / "ingest" / "ingest.toml").store
    assert Path(config.store.removeprefix("sqlite:///")).resolve() == Path(
        stored.removeprefix("sqlite:///")
    )
    assert config.broker.tls is not None
    Tls.context(config.broker.tls, "test", "tls")  # its files are there, and fit
    store = "influxdbs://influx.example:8086/north/nwt"
    with init([write_town(tmp_path, "tw-nwt", store=store)], folder):
        pass
    config = load_config(folder / "services" / "ingest-tw-nwt" / "ingest.toml")
    assert (config.store, config.counties) == (store, ["tw-nwt"])
    assert config.store_ca_file == folder / "services" / "ingest-tw-nwt" / "ca.pem"
    assert load_config(folder / "services" / "ingest-tw-tpe" / "ingest.toml").counties == ["tw-tpe"]
    acl = (folder / "broker" / "acl").read_text()
    assert "user ingest-tw-nwt\ntopic write city/v1/tw-nwt/+/+/receipts\ntopic read" in acl


def with_workers(folder: Path, workers: int) -> Path:
    more = {"gateways": ["gw-1"], "by_password": ["gw-p"], "more": APPLICATION}
    return write_town(folder, "tw-tpe", workers=workers, **more)


def test_every_worker_of_ingest_has_a_certificate_and_its_rights(
    folder: Path, tmp_path: Path
) -> None:
    """The first keeps what an ingest alone has; one that is no more keeps its own until its folder is deleted."""
    first = folder / "services" / "ingest"
    alone = (first / "certificate.pem").read_bytes()
    for workers, known in ((3, 3), (2, 3)):
        with init([with_workers(tmp_path, workers)], folder):
            pass
        config = load_config(first / "ingest.toml")
        assert config.workers == workers
        assert len(config.further) == known - 1
        for number, one in enumerate(config.further, 2):
            assert one.tls.key_file == first / f"worker-{number}" / "key.pem"
            one.tls.context("test", "tls")  # its files are there, and fit
        users = {"ingest", "ingest.2", "ingest.3"}
        acl = (folder / "broker" / "acl").read_text().split("user ")
        rights = [rules.split("\n", 1) for rules in acl if rules.startswith("ingest")]
        assert {name for name, _ in rights} == users
        assert len({rules for _, rules in rights}) == 1, "all of them may do the same"
        with opened(folder) as office:
            valid = {one.name for one in office.authority.all_valid()}
        assert users <= valid
    assert (first / "certificate.pem").read_bytes() == alone
    assert load_config(folder / "services" / "watch" / "ingest.toml").workers == 1
    shutil.rmtree(first / "worker-3")
    with opened(folder) as office:
        office.regenerate()
        valid = {one.name for one in office.authority.all_valid()}
    assert {name for name in valid if name.startswith("ingest")} == {"ingest", "ingest.2"}
    assert "user ingest.3" not in (folder / "broker" / "acl").read_text()
    assert len(load_config(first / "ingest.toml").further) == 1


def test_workers_are_rotated_together(folder: Path, tmp_path: Path) -> None:
    with init([with_workers(tmp_path, 2)], folder):
        pass
    files = [
        folder / "services" / name / "certificate.pem" for name in ("ingest", "ingest/worker-2")
    ]
    before = [file.read_bytes() for file in files]
    with opened(folder) as office:
        office.rotate_service("ingest", at_once=True)
        valid = {one.serial for one in office.authority.all_valid()}
    for file, was in zip(files, before, strict=True):
        assert file.read_bytes() != was
        assert serial_of(was) not in valid
        assert serial_of(file.read_bytes()) in valid


def test_a_password_hash_is_mosquittos(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("a:x\n")
    subprocess.run(
        ["mosquitto_passwd", "-U", tmp_path / "passwords"], check=True, capture_output=True
    )
    hashed = broker.read_passwords((tmp_path / "passwords").read_text())["a"]
    assert broker.password_fits("x", hashed)
    assert not broker.password_fits("y", hashed)
    assert broker.password_hash("x") != broker.password_hash("x"), "salted"


# --------------------------------------------------------------------------------------------------------- the command


def test_the_command_line_from_init_to_revoke(
    tmp_path: Path, town: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["town", "check", str(town)]) == 0
    assert main(["town", "init", str(town), "--into", "office"]) == 0
    add = ["town", "gateway", "add", "tw-tpe/gw-2", "--site", "street", "--days", "30"]
    assert main([*add, "--bundle", "gw-2.tar"]) == 0
    assert (tmp_path / "gw-2.tar").stat().st_mode & 0o777 == 0o600
    assert main(["town", "status"]) == 1, "thirty days are less than sixty"
    assert "onestreet town rotate tw-tpe/gw-2" in capsys.readouterr().out
    assert main(["town", "rotate", "tw-tpe/gw-2"]) == 0
    assert main(["town", "status"]) == 0
    assert main(["town", "rotate", "console"]) == 0
    assert main(["town", "gateway", "revoke", "tw-tpe/gw-1"]) == 0
    assert "stolen-gateway" in capsys.readouterr().out
    assert main(["town", "gateway", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["tw-tpe/gw-1", "tw-tpe/gw-p", "tw-tpe/gw-2"]
    assert "revoked 已撤銷" in lines[0]
    assert main(["town", "reload"]) == 0
    assert "SIGHUP" in capsys.readouterr().out, "no broker runs in this folder"


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["check", "nowhere.toml"], 2, "nowhere.toml"),
        (["status", "--into", "nowhere"], 2, "onestreet town init"),
        (["init", "--into", "new"], 2, "name at least one"),
        (["store", "--into", "nowhere"], 2, "must be an office's folder"),
        (["gateway", "revoke", "tw-tpe/gw-9"], 2, "one of gw-1, gw-p"),
        (["rotate", "nothing"], 1, "one of COUNTY/GATEWAY"),
        (["rotate", "tw-tpe/"], 2, "gateway.id = ''"),
        (["gateway", "add", "tw-tpe/gw-9", "--enrol", "--bundle", "x.tar"], 2, "--enrol"),
        (["rotate", "ca", "--finish"], 1, "not being rotated"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_said(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    status: int,
    words: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    assert main(["town", *argv]) == status
    assert words in capsys.readouterr().err


def test_the_broker_is_told_of_what_was_done_though_the_rest_fails(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Path] = []

    def reload_broker(office: Office) -> bool:
        told.append(office.folder)
        return True

    monkeypatch.setattr(Office, "reload_broker", reload_broker)
    stick = folder.parent / "stick"
    stick.mkdir()
    add = ["town", "gateway", "add", "tw-tpe/gw-2", "--site", "street", "--into", str(folder)]
    assert main([*add, "--bundle", str(stick)]) == 1, "a folder is no file"
    assert "tw-tpe.gw-2" in (folder / "broker" / "acl").read_text()
    assert told == [folder]
    assert str(stick) in capsys.readouterr().err
    assert list(stick.parent.glob(".*.half")) == [], "a key that lies about"
