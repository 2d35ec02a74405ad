"""Moments: times in JSON outside SenML, RFC 3339 in UTC with milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


def rfc3339(moment: datetime) -> str:
    """Return an aware datetime as the exchange writes it: 2026-05-01T08:00:00.000Z."""
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
