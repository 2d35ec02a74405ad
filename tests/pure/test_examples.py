"""The configurations in the documentation are good ones."""

from pathlib import Path

from edge_agent.config import read_config
from ingest.config import load_config

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_the_agents_example_is_good() -> None:
    config = read_config(EXAMPLES / "edge.toml")
    assert {device.driver for device in config.device} == {
        "plantower_pms",
        "intesis_dali",
        "bthome",
    }


def test_the_ingests_example_is_good() -> None:
    assert load_config(EXAMPLES / "ingest.toml").counties == ["tw-tpe"]
