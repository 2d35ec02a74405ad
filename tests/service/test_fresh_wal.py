"""What InfluxDB has answered 204 to is there after any number of kills, once a torn log is seen to before it starts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.influx import Bucket, Influx, influxd

SCRIPT = Path(__file__).parents[2] / "scripts" / "fresh_wal.sh"
TORN = b"\x01\x00\x00\x10\x00a record of 4096 bytes that a full disk has cut off"
"""Type, length, and too little of it."""


@pytest.mark.parametrize(("is_run", "kept"), [(True, 2), (False, 1)])
def test_a_torn_log_costs_nothing_that_is_written_later(
    tmp_path: Path, is_run: bool, kept: int
) -> None:
    """Without the script what was written after the first start is gone: when that changes, it can go, too."""
    influx = Influx(influxd(), tmp_path)
    influx.start()
    try:
        bucket = influx.bucket()
        bucket.write("air,device=a v=1 1000000000000000000")
        influx.kill()
        (segment,) = (
            path
            for path in tmp_path.glob(f"engine/wal/{bucket.id}/*/*/_*.wal")
            if path.stat().st_size
        )
        with segment.open("ab") as log:
            log.write(TORN)
        _start(influx, tmp_path, is_run=is_run)
        bucket.write("air,device=a v=2 1000000000000000001")
        assert _count(bucket) == 2
        influx.kill()
        _start(influx, tmp_path, is_run=is_run)
        assert _count(bucket) == kept
    finally:
        influx.kill()


def test_a_folder_without_shards_is_left_as_it_is(tmp_path: Path) -> None:
    subprocess.run(["sh", SCRIPT, tmp_path], check=True)
    assert list(tmp_path.iterdir()) == []


def _start(influx: Influx, folder: Path, *, is_run: bool) -> None:
    if is_run:
        subprocess.run(["sh", SCRIPT, folder / "engine"], check=True)
    influx.start()


def _count(bucket: Bucket) -> int:
    (series,) = bucket.query("SELECT count(v) FROM air")
    return int(series["values"][0][1])
