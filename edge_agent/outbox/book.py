"""The book: what the outbox must know at its next start, in one small file that is replaced as a whole.

It is written when a run begins, when an epoch is begun, when the states that the broker retains change, and, as clean,
at an orderly end. So it is rarely written, and an epoch that was ever used is in it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from edge_agent.outbox.disk import Disk
from edge_agent.outbox.records import VERSION, Book, framed, frames
from edge_agent.outbox.segments import set_aside

log = logging.getLogger(__name__)

NAME = "book"
_NUMBER = 0


class Foreign(Exception):
    """The folder was written by a later version; never leaves the package."""


def read_book(folder: Path) -> Book | None:
    """Return the book; None where there is none, or where it is damaged, which is said. Raises: OSError, Foreign."""
    path = folder / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    found = list(frames(data, _NUMBER))
    if len(found) == 1 and isinstance(book := found[0].record, Book):
        if book.version > VERSION:
            raise Foreign(f"version {book.version}, this agent knows {VERSION}")
        if found[0].end == len(data):
            return book
    aside = set_aside(path, folder / "unsound")
    log.error("the outbox's book is damaged and set aside", extra={"aside": str(aside)})
    return None


def write_book(folder: Path, book: Book, disk: Disk) -> None:
    """Put the book into its place, durably. Raises: OSError."""
    disk.replace(folder / NAME, framed(book, _NUMBER))
