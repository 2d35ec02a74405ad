"""`onestreet rollups`: what it is asked, and what it says when there is no store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.rollups import command
from tests.ports import free_port


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "ingest.toml"
    store = f"influxdb://127.0.0.1:{free_port()}/town/raw"
    file.write_text(f'counties = ["tw-tpe"]\nstore = "{store}"\n[broker]\nhost = "127.0.0.1"\n')
    return file


def test_one_pass_gives_up_a_store_that_does_not_answer(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "ONCE_PATIENCE_S", 0.5)
    monkeypatch.setenv("INFLUX_TOKEN", "none")
    assert command.run(["once", str(config)]) == 1
    assert (
        "the store does not answer; what is made stays 儲存服務沒有回應" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--from", "2026-13-01"], "'2026-13-01': a day as 2026-11-23"),
        (["--to", "9999-12-31"], "'9999-12-31': a day as 2026-11-23, from 2000 to 2099"),
        (["--from", "0001-01-01"], "日期須如 2026-11-23"),
        (
            ["--from", "2026-11-02", "--to", "2026-11-01"],
            "the first day comes first 起始日不得晚於結束日",
        ),
    ],
)
def test_days_that_are_none_are_refused(
    config: Path, asked: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for action in ("once", "baseline"):
        rest = [] if "--from" in asked else ["--from", "2026-11-01"]
        rest += [] if "--to" in asked else ["--to", "2026-11-30"]
        with pytest.raises(SystemExit) as ended:
            command.run([action, str(config), *asked, *rest])
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
