"""What an earlier start has left at the broker: which sessions are emptied, which filters are taken back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ingest.config import Broker, Config, QuarantineFile
from ingest.sessions import Sessions


def config(folder: Path, workers: int, *counties: str, client_id: str = "ingest") -> Config:
    return Config(
        broker=Broker(host="127.0.0.1", client_id=client_id),
        counties=list(counties or ("tw-tpe",)),
        store="sqlite:///rows.sqlite",
        workers=workers,
        quarantine=QuarantineFile(path=folder / "data" / "quarantine.sqlite"),
    )


def below(county: str, group: str = "") -> set[str]:
    return {f"{group}city/v1/{county}/+/+/+/+/{channel}" for channel in ("readings", "results")}


SHARED = "$share/ingest/"


def test_one_worker_subscribes_plainly_and_several_share(tmp_path: Path) -> None:
    assert set(Sessions(config(tmp_path, 1)).wanted) == below("tw-tpe")
    assert set(Sessions(config(tmp_path, 2)).wanted) == below("tw-tpe", SHARED)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_other_kind_is_taken_back_even_where_nothing_is_remembered(
    tmp_path: Path, workers: int
) -> None:
    sessions = Sessions(config(tmp_path, workers))
    assert set(sessions.unwanted) == below("tw-tpe", SHARED if workers == 1 else "")
    assert sessions.retired == set()


def test_a_county_that_went_elsewhere_is_taken_back_until_every_session_is_tidy(
    tmp_path: Path,
) -> None:
    Sessions(config(tmp_path, 2, "tw-tpe", "tw-nwt")).remember()
    for _ in range(2):  # killed before it was ready
        sessions = Sessions(config(tmp_path, 2, "tw-tpe"))
        sessions.remember()
        gone = below("tw-nwt") | below("tw-nwt", SHARED)
        assert set(sessions.unwanted) == below("tw-tpe") | gone
    sessions.tidied()
    assert set(Sessions(config(tmp_path, 2, "tw-tpe")).unwanted) == below("tw-tpe")


def test_workers_that_are_no_more_are_remembered_until_their_sessions_are_emptied(
    tmp_path: Path,
) -> None:
    Sessions(config(tmp_path, 4)).remember()
    sessions = Sessions(config(tmp_path, 2))
    sessions.remember()
    sessions.tidied()
    assert Sessions(config(tmp_path, 2)).retired == sessions.retired == {3, 4}
    sessions.emptied(4)
    assert Sessions(config(tmp_path, 1)).retired == {2, 3}
    sessions.emptied(3)
    assert Sessions(config(tmp_path, 2)).retired == set()


def test_under_another_name_the_sessions_are_others(tmp_path: Path) -> None:
    Sessions(config(tmp_path, 4, "tw-tpe", "tw-nwt")).remember()
    sessions = Sessions(config(tmp_path, 1, client_id="ingest-tw-tpe"))
    assert sessions.retired == set()
    assert not {each for each in sessions.unwanted if "tw-nwt" in each}


@pytest.mark.parametrize("damage", [b"", b"{ half", b"[]", b'{"client_id": "ingest"}'])
def test_what_cannot_be_read_is_not_known(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    Sessions(config(tmp_path, 4)).remember()
    [file] = (tmp_path / "data").iterdir()
    file.write_bytes(damage)
    sessions = Sessions(config(tmp_path, 1))
    assert sessions.retired == set()
    assert "is not known" in caplog.text
    sessions.remember()
    assert msgspec.json.decode(file.read_bytes())["workers"] == 1


def test_what_cannot_be_noted_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").write_text("no folder")
    Sessions(config(tmp_path, 2)).remember()
    assert "cannot be noted" in caplog.text
