"""One command at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exchange.errors import OnestreetError

DEADLINE_S = 15.0
_LOOK_S = 0.02


class Busy(OnestreetError):
    """Another process holds the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other command out of a folder. The kernel unlocks what a killed process held.

    Raises: Busy; OSError where there is no such folder. Not to be entered twice: the second would wait for the first.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # read-only ones, too
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    words = f"another command has held {folder} for {DEADLINE_S:g} s"
                    raise Busy(f"{words} 另一個指令正在使用") from None
                threading.Event().wait(_LOOK_S)
        yield
    finally:
        os.close(handle)
