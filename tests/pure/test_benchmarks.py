"""What the benchmarks feed to both sides is valid, the same, and ends where they look for the end."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from benchmarks.backlog import Load
from benchmarks.consumers import Onestreet, Telegraf
from benchmarks.processes import BenchmarkFailed, Process
from exchange.readings import PackFormat, Sample, decode_pack
from exchange.topics import parse_topic

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_telegraf.sh"


def taken(load: Load, form: PackFormat = "json") -> list[tuple[str, Sample]]:
    """What ingest takes of our messages."""
    found = []
    for topic, payload in Onestreet(form).payloads(load):
        pack = decode_pack(payload, parse_topic(topic))
        assert pack.refusals == []
        found += [(parse_topic(topic).device, sample) for sample in pack.samples]
    return found


@pytest.mark.parametrize("form", ["json", "cbor"])
@pytest.mark.parametrize(("messages", "samples"), [(25, 1), (7, 20)])
def test_every_message_is_taken_whole_as_rows_of_their_own(
    messages: int, samples: int, form: PackFormat
) -> None:
    load = Load(messages=messages, devices=3, gateways=2, samples=samples)
    rows = taken(load, form)
    assert len({(device, sample.row_time_ns) for device, sample in rows}) == load.rows
    device, sample = rows[-1]
    assert (device, sample.time_ms) == load.last


def test_telegraf_gets_the_same_values() -> None:
    load = Load(messages=20, devices=3, gateways=2, samples=1)
    telegraf = Telegraf(same_fields=False)
    flat = [msgspec.json.decode(text) for _, text in telegraf.payloads(load)]
    assert flat == [{"t": sample.time_ms, **sample.metrics} for _, sample in taken(load)]


def test_telegraf_gets_a_line_for_each_sample_of_a_pack() -> None:
    load = Load(messages=4, devices=3, gateways=2, samples=5)
    telegraf = Telegraf("line", samples=5)
    lines = [text.decode().split("\n") for _, text in telegraf.payloads(load)]
    assert [len(each) for each in lines] == [5] * 4
    device, sample = taken(load)[-1]
    assert lines[-1][-1].startswith(f"air,county=tw-tpe,site=xinyi,device={device} pm2_5=")
    assert lines[-1][-1].endswith(f"seq={sample.seq} {sample.row_time_ns}")


def test_telegraf_gets_an_array_of_the_samples_of_a_pack() -> None:
    load = Load(messages=4, devices=3, gateways=2, samples=5)
    telegraf = Telegraf(samples=5, same_fields=False)
    arrays = [msgspec.json.decode(text) for _, text in telegraf.payloads(load)]
    flat = [each for array in arrays for each in array]
    assert flat == [{"t": sample.time_ms, **sample.metrics} for _, sample in taken(load)]


async def test_a_process_that_ends_early_fails_the_measurement_with_its_words(
    tmp_path: Path,
) -> None:
    async with Process(["sh", "-c", "echo broken; exit 3"], tmp_path / "log") as process:
        with pytest.raises(BenchmarkFailed, match=r"(?s)ready: ended with 3.*broken"):
            await process.until(lambda: False, "ready")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TELEGRAF": "/bin/true"}, "TELEGRAF=/bin/true is not Telegraf"),
        ({}, "go 1.25.5 or newer is needed"),
    ],
)
def test_what_is_missing_for_telegraf_is_named(
    tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho go1.19.8\n", encoding="utf-8")
    go.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(
        ["sh", str(SCRIPT)],
        env={**environment, "HOME": str(tmp_path), "PATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
