"""The outbox: every sample taken and not yet receipted.

A batch that is taken is written to a stage in memory before `take` returns: it survives the process. What has no
receipt a second and a half later goes to the disk in one synced write: it survives the machine. What had its receipt
by then never touches flash. With `stage = "disk"` every batch is synced to the disk at once.

| What happens | What is lost |
|---|---|
| kill -9 | nothing; names and counters go on |
| a power cut | of what has no receipt, at most the last two seconds; every device begins a new epoch |
| a damaged file | the samples in it that cannot be read, counted; a damage found at a start begins new epochs |
| a disk that is full or fails | nothing that was taken: the stage holds it, up to a bound, then the buses wait |
| a disk that is full at a start, too | nothing more: a mark says which epochs there are, and what waits goes out |
| an outage beyond `max_mb` or `max_age_days` | the oldest samples, up to a megabyte or an hour at once, counted |

Before the clock is known samples have no name: they wait, on disk as well, and are named and dated together, once.
"""

from edge_agent.outbox.outbox import (
    SLEW_MS,
    Outbox,
    OutboxBlocked,
    OutboxSettings,
    Taken,
)
from edge_agent.outbox.records import Waiting

__all__ = [
    "SLEW_MS",
    "Outbox",
    "OutboxBlocked",
    "OutboxSettings",
    "Taken",
    "Waiting",
]
