"""Backup: whole or not at all, of files that are written to meanwhile; restore takes only what was written."""

from __future__ import annotations

import gzip
import shutil
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from exchange import folder_lock
from exchange.errors import ConfigError, OnestreetError, StoreError
from exchange.folder_lock import Busy
from provisioning.backup import (
    CONTENTS,
    BackupError,
    _write,
    back_up,
    check,
    restore_office,
    restore_store,
)
from provisioning.office import init, opened
from tests.deployment import ROOT
from tests.ports import free_port


def office_of(folder: Path, store: str) -> Path:
    text = (
        (ROOT / "towns" / "tw-tpe.toml").read_text(encoding="utf-8").partition("[[application]]")[0]
    )
    file = folder / "tw-tpe.toml"
    file.write_text(
        text.replace("influxdbs://localhost:8086/onestreet/onestreet", store), encoding="utf-8"
    )
    with init([file], folder / "office"):
        return folder / "office"


@pytest.fixture
def office(tmp_path: Path) -> Path:
    return office_of(tmp_path, "sqlite:///data/rows.sqlite")


def test_what_is_written_to_meanwhile_is_copied_as_it_is_at_one_moment(
    office: Path, tmp_path: Path
) -> None:
    file = office / "services" / "ingest" / "data" / "rows.sqlite"
    (office / "broker" / "data" / "mosquitto.db").write_bytes(b"expendable")
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("CREATE TABLE points (seq INTEGER)")
        writer.execute("INSERT INTO points VALUES (1)")
        writer.execute("BEGIN")
        writer.execute("INSERT INTO points VALUES (2)")  # under way, and in the WAL
        backup = back_up(office, tmp_path / "backups")
        writer.execute("COMMIT")
    restored = tmp_path / "restored"
    restore_office(backup, restored)
    with closing(sqlite3.connect(restored / file.relative_to(office))) as reader:
        assert reader.execute("SELECT seq FROM points").fetchall() == [(1,)]
    for name in ("ca/ca.key", "towns/tw-tpe.toml", "gateways/tw-tpe/xinyi-1/key.pem"):
        assert (restored / name).read_bytes() == (office / name).read_bytes()
        assert stat.S_IMODE((restored / name).stat().st_mode) == stat.S_IMODE(
            (office / name).stat().st_mode
        )
    assert stat.S_IMODE(restored.stat().st_mode) == 0o700
    assert stat.S_IMODE(backup.stat().st_mode) == 0o700
    assert not (restored / "broker" / "data" / "mosquitto.db").exists()
    with init([], restored) as again:
        assert again.authority.certificate == (office / "ca" / "ca.pem").read_bytes()


def change_a_byte(backup: Path) -> None:
    file = backup / "office" / "ca" / "ca.pem"
    file.write_bytes(file.read_bytes().replace(b"A", b"B", 1))


def take_a_file_away(backup: Path) -> None:
    (backup / "office" / "ca" / "ca.key").unlink()


def put_a_file_in(backup: Path) -> None:
    (backup / "office" / "broker" / "acl.d").write_text("topic readwrite #")


def cut_the_list(backup: Path) -> None:
    (backup / CONTENTS).write_text('{"v": 1')


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change_a_byte, "office/ca/ca.pem was changed"),
        (take_a_file_away, "office/ca/ca.key is missing"),
        (put_a_file_in, "office/broker/acl.d does not belong to it"),
        (cut_the_list, "not a backup"),
    ],
)
def test_a_backup_that_was_changed_is_not_restored(
    office: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    backup = back_up(office, tmp_path / "backups")
    check(backup)
    spoil(backup)
    with pytest.raises(BackupError, match=words):
        restore_office(backup, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_an_office_is_never_written_over(office: Path, tmp_path: Path) -> None:
    backup = back_up(office, tmp_path / "backups")
    with pytest.raises(ConfigError, match="must be new or empty"):
        restore_office(backup, office)


def test_a_folder_that_is_no_office_is_not_backed_up(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be an office's folder"):
        back_up(tmp_path / "offcie", tmp_path / "backups")
    assert not (tmp_path / "backups").exists()


def test_a_backup_waits_for_the_command_that_changes_the_office(
    office: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "DEADLINE_S", 0.05)
    with opened(office), pytest.raises(Busy):
        back_up(office, tmp_path / "backups")


def test_what_a_kill_left_of_a_backup_goes_with_the_next(office: Path, tmp_path: Path) -> None:
    half = tmp_path / "backups" / ".20260101T000000Z.half"
    (half / "office" / "ca").mkdir(parents=True)
    (half / "office" / "ca" / "ca.key").touch()
    back_up(office, tmp_path / "backups")
    assert not half.exists()


def test_a_restore_that_was_killed_is_no_office(
    office: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, restored = back_up(office, tmp_path / "backups"), tmp_path / "restored"
    restored.mkdir(mode=0o755)
    left = 3

    def copied(source: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        target.write_bytes(source.read_bytes())

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "copyfile", copied)
        restore_office(backup, restored)
    with (
        pytest.raises(ConfigError, match="restore again"),
        init([tmp_path / "tw-tpe.toml"], restored),
    ):
        pass
    shutil.rmtree(restored)
    restored.mkdir(mode=0o755)
    restore_office(backup, restored)
    assert stat.S_IMODE(restored.stat().st_mode) == 0o700
    with init([], restored):
        pass


def test_a_backup_without_rows_says_so(office: Path, tmp_path: Path) -> None:
    backup = back_up(office, tmp_path / "backups")
    with pytest.raises(BackupError, match="no InfluxDB"):
        restore_store(backup, office)


def test_a_store_that_does_not_answer_leaves_no_half_backup(tmp_path: Path) -> None:
    office = office_of(tmp_path, f"influxdbs://localhost:{free_port()}/onestreet/onestreet")
    with pytest.raises(ConfigError, match=r"admin\.token"):
        back_up(office, tmp_path / "backups")
    token = office / "store" / "admin.token"
    token.touch(mode=0o600)
    token.write_text("a-token-that-nobody-sees")
    with pytest.raises(StoreError) as failed:
        back_up(office, tmp_path / "backups")
    assert "a-token-that-nobody-sees" not in str(failed.value)
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_broken_file_is_no_backup(office: Path, tmp_path: Path) -> None:
    file = office / "services" / "ingest" / "data" / "quarantine.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as shell:
        shell.execute("CREATE TABLE refusals (text TEXT)")
        shell.executemany("INSERT INTO refusals VALUES (?)", [("x" * 500,)] * 100)
    content = bytearray(file.read_bytes())
    content[4096 * 2 : 4096 * 4] = bytes(4096 * 2)
    file.write_bytes(content)
    with pytest.raises(OnestreetError, match=r"quarantine\.sqlite"):
        back_up(office, tmp_path / "backups")
    assert list((tmp_path / "backups").iterdir()) == []
    shutil.rmtree(file.parent)
    assert back_up(office, tmp_path / "backups").exists()


async def test_rows_in_a_backup_are_their_owners_alone(tmp_path: Path) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"tokens are in it"

    await _write(tmp_path / "kv", content())
    assert stat.S_IMODE((tmp_path / "kv.gz").stat().st_mode) == 0o600
    assert gzip.decompress((tmp_path / "kv.gz").read_bytes()) == b"tokens are in it"
