"""The hand: which message was being read when ingest died, so that none can kill it for ever.

A message that was unacknowledged at a crash comes again with MQTT's DUP flag. Those are read one at a time, each noted
before it is looked at. One that is still noted at the next start was in hand at a crash; once may be chance, since a
kill meets somebody. Whoever was in hand at two crashes is quarantined unread. The note is written to a file, not
synced: it is to outlive this process, not the machine.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from pathlib import Path

from exchange.mqtt import Message

log = logging.getLogger(__name__)

MAX_CRASHES = 1000
BLAMED_AT = 2
_DIGEST_BYTES = 64
_NOTHING = b"-" * _DIGEST_BYTES


class Hand:
    """The note in a file, which is made when it is not there; without one (a full disk) nothing is noted.

    Shape: a line of the digest in hand, or of dashes, then a line for each time that one was at a crash.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._crashes: list[bytes] = []
        self._times: Counter[bytes] = Counter()
        self._file: int | None = None

    def open(self) -> None:
        """Take up what the last process left."""
        try:
            left = self.path.read_bytes().splitlines() if self.path.exists() else []
            self._crashes = [line for line in left[1:] if len(line) == _DIGEST_BYTES]
            self._times = Counter(self._crashes)
            if left and len(left[0]) == _DIGEST_BYTES and left[0] != _NOTHING:
                self._crashes = [*self._crashes, left[0]][-MAX_CRASHES:]
                self._times = Counter(self._crashes)
                if self._blames(left[0]):
                    log.error(
                        "a message was in hand at two crashes and will be quarantined unread",
                        extra={"sha256": left[0].decode(errors="replace")},
                    )
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._give_up(error)
        # In one write: a crash in between leaves what was there. What is longer is of no use, and harms nothing.
        self._write(b"\n".join([_NOTHING, *self._crashes, b""]))

    def takes(self, message: Message) -> bool:
        """Note a message before it is read; False when it is to blame, and not to be read."""
        seen = hashlib.sha256(message.topic.encode(errors="replace") + b"\0" + message.payload)
        digest = seen.hexdigest().encode()
        if self._blames(digest):
            return False
        self._write(digest)
        return True

    def _blames(self, digest: bytes) -> bool:
        return self._times[digest] >= BLAMED_AT

    def release(self) -> None:
        """Nothing is in hand any more."""
        self._write(_NOTHING)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, data: bytes) -> None:
        if self._file is not None:
            try:
                os.pwrite(self._file, data, 0)
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("no note can be kept of the message in hand: %s", error)
        self.close()
