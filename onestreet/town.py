"""`onestreet town`: a town's office, with the alert rules that its Grafana finds there."""

from __future__ import annotations

from collections.abc import Sequence

from dashboards import alert_files
from provisioning import cli


def run(words: Sequence[str]) -> int:
    """Run one action and return its exit status."""
    return cli.run(words, alerts=alert_files.changes)
