"""The configurations in the documentation are good ones."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from edge_agent.config import Config
from edge_agent.config_reading import read_config
from ingest.config import load_config

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_the_agents_example_is_good() -> None:
    config = read_config(EXAMPLES / "edge.toml")
    assert {device.driver for device in config.device} == {
        "plantower_pms",
        "intesis_dali",
        "bthome",
    }


@pytest.mark.parametrize("table", ["outbox", "polling", "commands", "report", "metrics", "status"])
def test_the_agents_example_shows_every_key_with_its_default(table: str) -> None:
    shown = tomllib.loads((EXAMPLES / "edge.toml").read_text("utf-8"))[table]
    [field] = [one for one in msgspec.structs.fields(Config) if one.name == table]
    assert shown == msgspec.to_builtins(field.default)


def test_the_ingests_example_is_good() -> None:
    assert load_config(EXAMPLES / "ingest.toml").counties == ["tw-tpe"]
