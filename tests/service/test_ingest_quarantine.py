"""The quarantine keeps what a replay needs, once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from ingest.quarantine import MAX_BODY_BYTES, Quarantine, Refused, evidence

TOPIC = "city/v1/tw-tpe/street/gw-1/air/aq-1/readings"
RECEIPTS = "city/v1/tw-tpe/street/gw-1/receipts"


def select(path: Path, text: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as shell:
        return shell.execute(text).fetchall()


async def test_a_payload_is_kept_once_and_a_repeated_refusal_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "quarantine.sqlite"
    seen = evidence(TOPIC, b"a pack", 1_795_000_000_250)
    many = [
        Refused(seen, "EX-R-009", "unknown", RECEIPTS, "tw-tpe", "aq-1", 1, seq, "happiness")
        for seq in range(50)
    ]
    for _ in range(2):
        quarantine = Quarantine(path)
        await quarantine.put(many)
        await quarantine.put([Refused(seen, "EX-R-001", "unreadable", RECEIPTS)])
        await quarantine.close()
    assert select(
        path,
        "SELECT DISTINCT payloads.topic, size_bytes, body, received_at"
        " FROM refusals JOIN payloads USING (sha256, topic)",
    ) == [(TOPIC, 6, b"a pack", "2026-11-18T11:06:40.250Z")]
    assert select(path, "SELECT requirement, count(*), sum(times) FROM refusals GROUP BY 1") == [
        ("EX-R-001", 1, 2),
        ("EX-R-009", 50, 100),
    ]


async def test_different_unreadable_payloads_are_different_refusals(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.sqlite"
    quarantine = Quarantine(path)
    large = b"x" * (3 * MAX_BODY_BYTES)
    await quarantine.put(
        [Refused(evidence(TOPIC, body, 0), "EX-R-001", "", RECEIPTS) for body in (b"a", large)]
    )
    await quarantine.close()
    found = select(
        path, "SELECT size_bytes, length(body) FROM refusals JOIN payloads USING (sha256, topic)"
    )
    assert sorted(found) == [(1, 1), (len(large), MAX_BODY_BYTES)]


async def test_one_payload_on_two_wrong_topics_is_two_refusals(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.sqlite"
    quarantine = Quarantine(path)
    topics = [TOPIC, f"{TOPIC}/more"]
    await quarantine.put(
        [Refused(evidence(topic, b"a", 0), "EX-T-001", "", RECEIPTS) for topic in topics]
    )
    await quarantine.close()
    found = select(path, "SELECT topic, body FROM refusals JOIN payloads USING (sha256, topic)")
    assert sorted(found) == [(topic, b"a") for topic in topics]
