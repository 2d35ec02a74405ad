"""`onestreet quarantine`: what operators see, what is judged again and removed; no payload moves their terminal."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.errors import StoreError
from exchange.mqtt import Message
from exchange.readings import Sample, encode_pack
from exchange.topics import parse_topic
from ingest.intake import Intake
from ingest.quarantine import QuarantineUnusable, evidence
from ingest.quarantine.database import Database
from ingest.quarantine.evidence import Entry
from ingest.quarantine.schema import VERSION
from ingest.quarantine_command import printable, readable, run
from ingest.stores import Point, open_store

EPOCH = 1_750_000_000_777
TOPIC = "city/v1/tw-tpe/street/gw-1/air/aq-1/readings"
OTHER = "city/v1/tw-nwt/street/gw-2/air/aq-2/readings"
VERSION_1 = Path(__file__).parent / "data" / "quarantine_v1.sqlite"
HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202emoc\x00"


def pack(topic: str, *seqs: int, **metrics: float) -> bytes:
    samples = [Sample(EPOCH + 1000 * seq, EPOCH, seq, dict(metrics)) for seq in seqs]
    return encode_pack(parse_topic(topic), samples)


def unknown_metric(seq: int) -> bytes:
    pack_of_one = json.loads(pack(TOPIC, seq, pm2_5=1.0))
    return json.dumps([*pack_of_one, {"n": "happiness", "v": 7}]).encode()


class Office:
    """A folder with a configuration and a quarantine in it; refusals are those of the intake itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "quarantine.sqlite"
        self.file = folder / "ingest.toml"
        self.configure()

    def configure(self, *counties: str, store: str = "sqlite:///rows.sqlite") -> None:
        listed = ", ".join(f'"{county}"' for county in counties or ["tw-tpe"])
        self.file.write_text(
            f'counties = [{listed}]\nstore = "{store}"\n[broker]\nhost = "127.0.0.1"\n'
        )

    def refuse(self, *messages: tuple[str, bytes], body: bool = True, ms: int = 0) -> None:
        """Put what an ingest of tw-tpe refuses of messages."""
        with closing(self.database()) as database:
            for topic, payload in messages:
                intake = Intake(["tw-tpe"], max_points=1000, receive_maximum=1000)
                intake.take([Message(topic, payload)], 1)
                refused = intake.batches[0].refused
                assert refused, "this is no refusal"
                seen = evidence(topic, payload, ms or time.time_ns() // 1_000_000)
                database.keep([Entry(seen, seen.body if body else None, refused)])

    def database(self) -> Database:
        return Database(self.path, max_bytes=16 * 2**20, max_age_days=90)

    def left(self) -> int:
        with closing(sqlite3.connect(self.path)) as shell:
            [(count,)] = shell.execute("SELECT count(*) FROM payloads")
        return int(count)

    def rows(self) -> list[Point]:
        async def read() -> list[Point]:
            store = open_store(f"sqlite:///{self.folder / 'rows.sqlite'}")
            try:
                return [point async for point in store.rows("air")]
            finally:
                await store.close()

        return asyncio.run(read())

    def run(self, action: str, *words: str) -> int:
        return run([action, str(self.file), *words])


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


# -------------------------------------------------------------------------------------------- list, show


def test_a_list_with_its_counts(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    office.refuse((TOPIC, b"nonsense"), (OTHER, pack(OTHER, 1)), (TOPIC, unknown_metric(3)))
    assert office.run("list") == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[:3]] == ["3", "2", "1"]
    assert "tw-tpe/aq-1  EX-R-009" in out[0]
    assert out[3].startswith("3 payloads 筆訊息, 3 refusals 項違規")
    assert "by requirement 依規定: EX-R-001 1, EX-R-009 1, EX-T-007 1" in out
    assert "by device 依設備: tw-tpe/aq-1 2, tw-nwt/aq-2 1" in out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], [3, 2, 1]),
        (["--limit", "1"], [3]),
        (["--requirement", "EX-T-007"], [2]),
        (["--county", "tw-nwt"], [2]),
        (["--device", "aq-1"], [3, 1]),
        (["--device", "aq-1", "--requirement", "EX-T-007"], []),
        (["--since", "2h"], [3, 2]),
        (["--since", "30m"], [3]),
        (["--since", "2001-01-01"], [3, 2, 1]),
        (["--since", "2999-01-01T00:00:00+08:00"], []),
    ],
)
def test_filters(
    office: Office,
    words: Sequence[str],
    found: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    now_ms = time.time_ns() // 1_000_000
    office.refuse((TOPIC, b"nonsense"), ms=now_ms - 7 * 86_400_000)
    office.refuse((OTHER, pack(OTHER, 1)), ms=now_ms - 3_600_000)
    office.refuse((TOPIC, unknown_metric(3)))
    assert office.run("list", "--json", *words) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in listed["shown"]] == found
    if "--limit" not in words:
        assert listed["payloads"] == len(found)
        assert listed["refusals"] == sum(listed["by_requirement"].values())


def test_the_json_of_a_list(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    payload = unknown_metric(3)
    office.refuse((TOPIC, payload), ms=1_795_000_100_250)
    assert office.run("list", "--json") == 0
    [shown] = json.loads(capsys.readouterr().out)["shown"]
    [reason] = shown.pop("reasons")
    assert shown == {
        "id": 1,
        "received_at": "2026-11-18T11:08:20.250Z",
        "topic": TOPIC,
        "county": "tw-tpe",
        "device": "aq-1",
        "sha256": evidence(TOPIC, payload, 0).sha256,
        "size_bytes": len(payload),
        "body_bytes": len(payload),
    }
    assert (reason["requirement"], reason["epoch"], reason["seq"]) == ("EX-R-009", EPOCH, 3)
    assert (reason["metric"], reason["times"]) == ("happiness", 1)


def test_one_payload_is_shown(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    office.refuse((TOPIC, unknown_metric(3)))
    assert office.run("show", "1") == 0
    out = capsys.readouterr().out
    assert f"topic 主題       {TOPIC}" in out
    assert f"EX-R-009  epoch {EPOCH} seq 3  metric happiness" in out
    assert "payload 內容 (JSON):" in out
    shown = out[out.index("(JSON):") + 7 :]
    assert json.loads(shown) == json.loads(unknown_metric(3))


def test_cbor_is_shown_as_json(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    content = [{-2: "tw-tpe:aq-1:", -3: 1.5, 0: "epoch", 2: cbor2.CBORTag(4, [-2, 150]), 9: b"\1"}]
    office.refuse((TOPIC, cbor2.dumps(content)))
    assert office.run("show", "1") == 0
    out = capsys.readouterr().out
    [record] = json.loads(out[out.index("(CBOR):") + 7 :])
    assert record == {
        "bn": "tw-tpe:aq-1:",
        "bt": 1.5,
        "n": "epoch",
        "v": {"tag 4": [-2, 150]},
        "9": "01",
    }


def test_what_is_missing_of_a_payload_is_said(
    office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    office.refuse((TOPIC, b"[" * 300_000))
    office.refuse((TOPIC, b"flood"), body=False)
    assert office.run("show", "1") == 0
    assert "only the first 262144 bytes are kept" in capsys.readouterr().out
    assert office.run("show", "2") == 0
    assert "not kept, it came in a flood 在大量湧入時未保留" in capsys.readouterr().out


def test_nothing_moves_the_terminal(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = HOSTILE.replace("\x00", "")
    metric = json.dumps([*json.loads(pack(TOPIC, 1)), {"n": hostile, "v": 1}]).encode()
    office.refuse((TOPIC, HOSTILE.encode()), (f"city/v1/tw-tpe/{hostile}/x", b"{"), (TOPIC, metric))
    for words in (["list"], ["show", "1"], ["show", "2"], ["show", "3"], ["list", "--json"]):
        assert office.run(*words) == 0
        out = capsys.readouterr().out
        assert [each for each in out if not each.isprintable() and each != "\n"] == []


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_is_printed_can_be(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text, lines=True).replace("\n", "").isprintable()


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.binary()),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(st.integers(-9, 9), inner, max_size=3)
            ),
            max_leaves=8,
        ).map(cbor2.dumps),
        st.tuples(st.binary(max_size=6), st.binary(max_size=20)).map(
            lambda two: b"\x9f" + two[0] * 9 + two[1]
        ),
    )
)
def test_any_payload_is_readable_somehow(body: bytes) -> None:
    form, text = readable(body)
    assert form in ("JSON", "CBOR", "text 文字", "hex")
    assert printable(text, lines=True).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b"\x81" * 200_000, b"\xd8\x1c\x81\xd8\x1d\x00", b"\xc2\x5a\x7f\xff\xff\xff"],
)
def test_deep_and_large_ones_are_shown_as_they_are(body: bytes) -> None:
    assert readable(body)[0] in ("text 文字", "hex")


# ------------------------------------------------------------------------------------------------ replay


def test_a_replay_after_the_counties_were_corrected(
    office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    office.refuse((OTHER, pack(OTHER, 1, 2, pm2_5=4.0)), (TOPIC, b"nonsense"))
    assert office.run("replay") == 3
    out = capsys.readouterr().out
    assert "passed and removed 通過並移出: 0 payloads" in out
    assert "still refused 仍被拒: 2 payloads 筆訊息: EX-T-007 1, EX-R-001 1" in out
    office.configure("tw-tpe", "tw-nwt")
    assert office.run("replay", "--county", "tw-nwt") == 0
    assert "samples stored 寫入樣本: 2" in capsys.readouterr().out
    assert [
        (row.series.device, row.fields["seq"], row.fields["pm2_5"]) for row in office.rows()
    ] == [
        ("aq-2", 1, 4.0),
        ("aq-2", 2, 4.0),
    ]
    assert office.left() == 1
    assert office.run("replay", "--county", "tw-nwt") == 0, "nothing is there to do"
    assert office.run("list") == 0
    assert "replayed 重新處理 1," in capsys.readouterr().out


def test_what_still_breaks_stays_with_its_new_reason(
    office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    office.refuse((OTHER, b"nonsense"))
    office.configure("tw-tpe", "tw-nwt")
    assert office.run("replay") == 3
    assert office.run("list", "--json") == 0
    out = capsys.readouterr().out
    [one] = json.loads(out[out.index("{") :])["shown"]
    assert [reason["requirement"] for reason in one["reasons"]] == ["EX-R-001"]


def test_of_a_pack_what_passes_is_stored_and_the_rest_stays(office: Office) -> None:
    office.refuse((TOPIC, unknown_metric(3)))
    assert office.run("replay", "--id", "1") == 3
    assert [row.fields for row in office.rows()] == [{"pm2_5": 1.0, "epoch": EPOCH, "seq": 3}]
    assert office.left() == 1


def test_what_is_not_whole_is_not_replayed(
    office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    office.refuse((OTHER, b"[" * 300_000))
    office.refuse((OTHER, pack(OTHER, 1)), body=False)
    office.configure("tw-nwt")
    assert office.run("replay") == 3
    out = capsys.readouterr().out
    assert "larger than is kept 過大，未完整保留，無法重新處理: 1" in out
    assert "not kept in a flood 大量湧入時未保留內容，無法重新處理: 1" in out
    assert office.left() == 2


def test_a_store_that_is_away_costs_nothing(
    office: Office, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFLUX_TOKEN", "token-of-a-test")
    office.refuse((OTHER, pack(OTHER, 1)))
    office.configure("tw-nwt", store="influxdb://127.0.0.1:9/town/air")
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9"):
        office.run("replay")
    assert office.left() == 1
    office.configure("tw-nwt")
    assert office.run("replay") == 0
    assert len(office.rows()) == 1
    assert office.left() == 0


def test_thousands_are_replayed_in_portions(office: Office) -> None:
    office.refuse(*((OTHER, pack(OTHER, seq)) for seq in range(300)))
    office.configure("tw-nwt")
    assert office.run("replay") == 0
    assert [row.fields["seq"] for row in office.rows()] == list(range(300))
    assert office.left() == 0


# ------------------------------------------------------------------------------------------------- purge


def test_a_purge_of_some_and_of_all(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    office.refuse((TOPIC, b"nonsense"), (OTHER, pack(OTHER, 1)), (TOPIC, unknown_metric(3)))
    for words in ([], ["--all", "--county", "tw-tpe"]):
        assert office.run("purge", *words) == 2
        assert "請指定" in capsys.readouterr().err
    assert office.run("purge", "--requirement", "EX-T-007") == 0
    assert capsys.readouterr().out == "removed 已清除: 1 payloads 筆訊息\n"
    assert office.run("purge", "--all") == 2
    assert "2 payloads would be removed for good: add --yes" in capsys.readouterr().err
    assert office.left() == 2
    assert office.run("purge", "--id", "1") == 0
    assert office.run("purge", "--all", "--yes") == 0
    assert office.left() == 0


# ---------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    "words", [["list"], ["show", "1"], ["replay"], ["purge", "--all", "--yes"]]
)
def test_what_is_wrong_with_the_file_is_said(office: Office, words: list[str]) -> None:
    with pytest.raises(QuarantineUnusable, match=r"no such file: .*沒有此檔案"):
        office.run(*words)
    assert not office.path.exists()
    with closing(sqlite3.connect(office.path)) as shell:
        shell.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(QuarantineUnusable, match="newer than this program"):
        office.run(*words)
    office.path.write_bytes(b"no database" * 1000)
    with pytest.raises(QuarantineUnusable, match=r"quarantine\.sqlite: file is not a database"):
        office.run(*words)


@pytest.mark.parametrize("words", [["show", "7"], ["replay", "--id", "7"], ["purge", "--id", "7"]])
def test_an_id_that_is_not_there(office: Office, words: list[str]) -> None:
    office.refuse((TOPIC, b"nonsense"))
    with pytest.raises(QuarantineUnusable, match=r"no payload 7 .*沒有編號 7"):
        office.run(*words)


def test_a_file_that_is_locked(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.refuse((TOPIC, b"nonsense"))
    monkeypatch.setattr("ingest.quarantine_command.LOCK_S", 0.1)
    with closing(sqlite3.connect(office.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert office.run("list") == 0
        with pytest.raises(QuarantineUnusable, match="database is locked"):
            office.run("purge", "--all", "--yes")
        other.execute("ROLLBACK")
    assert office.left() == 1


def test_a_file_of_version_1(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copyfile(VERSION_1, office.path)
    with pytest.raises(QuarantineUnusable, match=r"earlier version.*舊版"):
        office.run("list")
    assert office.run("replay") == 3
    assert office.run("list") == 0
    assert "4 payloads" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "--since", "yesterday"], "時間格式不符"),
        (["list", "--limit", "0"], "應為大於 0 的整數"),
        (["show", "FILE", "first"], "應為大於 0 的整數"),
        (["forget"], "invalid choice"),
    ],
)
def test_a_wrong_word(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("action", ["list", "show", "replay", "purge"])
def test_every_action_explains_itself(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run([action, "--help"])
    assert caught.value.code == 0
    assert f"usage: onestreet quarantine {action}" in capsys.readouterr().out
