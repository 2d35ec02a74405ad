"""`onestreet decode`: every published frame through the command line, and everything that can be wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from device_drivers.kit.registry import driver_ids, load
from device_drivers.kit.vectors import Vector, expected_metrics
from onestreet.decode import run

Output = pytest.CaptureFixture[str]

SINGLE_FRAMES = [
    pytest.param(driver_id, vector, id=vector.id)
    for driver_id in driver_ids()
    for vector in load(driver_id).vectors()
    if vector.direction == "rx" and vector.frame_hex is not None
]


def said(output: Output) -> dict[str, Any]:
    """Return the one line that was printed."""
    printed = output.readouterr()
    assert printed.err == ""
    assert printed.out.endswith("\n")
    assert printed.out.count("\n") == 1
    answer: dict[str, Any] = json.loads(printed.out)
    return answer


@pytest.mark.parametrize(("driver_id", "vector"), SINGLE_FRAMES)
def test_vector_through_the_command(driver_id: str, vector: Vector, capsys: Output) -> None:
    assert vector.frame_hex is not None
    arguments = [driver_id, "--hex", vector.frame_hex, "--context", json.dumps(vector.context)]
    code, answer = run(arguments), said(capsys)
    if "error" in vector.expect:
        assert code == 1
        assert set(answer["error"]) == {"kind", "message", "offset"}
        assert answer["error"]["kind"] == vector.expect["error"]
        return
    assert code == 0
    if vector.expect.get("kind") == "ack":
        assert answer == {"samples": []}
        return
    frames = vector.expect.get("frames", [vector.expect])
    profile = load(driver_id).profile
    for sample, fields in zip(answer["samples"], frames, strict=True):
        assert set(sample) == {"metrics", "quality"}
        assert sample["quality"] == fields.get("quality")
        expected = expected_metrics(profile, fields.get("objects", fields.items()))
        got = list(sample["metrics"].values())
        if "objects" in fields:
            assert got == pytest.approx([value for _, value in expected])
        else:
            assert sample["metrics"] == pytest.approx(sample["metrics"] | dict(expected))


def test_values_are_printed_as_the_data_sheet_prints_them(capsys: Output) -> None:
    assert run(["bthome", "--hex", "4002ca0903bf13"]) == 0
    printed = capsys.readouterr().out
    assert '"temperature": 25.06, "humidity": 50.55' in printed


def test_several_frames_are_taken_in_order(capsys: Output) -> None:
    assert run(["bthome", "--hex", "4000012301", "4000012301", "--hex", "4000022300"]) == 0
    samples = said(capsys)["samples"]
    assert [sample["metrics"]["occupied"] for sample in samples] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["nobody", "--hex", "00"], "unknown_driver", "plantower_pms"),
        (["bthome", "--hex", "4g"], "bad_hex", "4g"),
        (["bthome", "--hex", "400"], "bad_hex", "400"),
        (["bthome", "--hex", "402301", "--context", "{"], "bad_context", "JSON"),
        (["bthome", "--hex", "402301", "--context", "[]"], "bad_context", "object"),
        (["bthome", "--hex", "402301", "--context", '{"mac": "12"}'], "bad_context", "address"),
        (["bthome", "--hex", "402301", "--context", '{"t": [1, 2]}'], "bad_context", ""),
        (["plantower_pms", "--hex", "00", "--context", '{"model": "x"}'], "bad_context", "pms5003"),
        (["intesis_dali", "--hex", "018302c0f1"], "bad_context", "start_address"),
        (["bthome"], "usage", "--hex"),
        ([], "usage", "DRIVER"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], kind: str, words: str, capsys: Output) -> None:
    assert run(arguments) == 1
    error = said(capsys)["error"]
    assert error["kind"] == kind
    assert words in error["message"]
    assert error["offset"] == 0
