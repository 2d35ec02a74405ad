"""A folder that hangs: `python -m tests.hanging_folder FOLDER`.

Whoever looks a name up in it waits in the kernel until this process ends, as one does for an adapter that is wedged.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from subprocess import PIPE, Popen

from tests.power_cut_disk import MAX_WRITE, Disk, Mount

ROOT = Path(__file__).parents[1]
_LOOKUP = 1


@contextmanager
def hanging_folder(folder: Path) -> Iterator[Path]:
    """Make the folder hang; leaving ends every wait in it."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.hanging_folder", str(folder)]
    with Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"up\n"
            yield folder
        finally:
            process.stdin.close()
            process.wait(30)


def _main(folder: bytes) -> None:
    disk, mount = Disk(), Mount(folder)
    disk.answers[_LOOKUP] = lambda *_: None
    print("up", flush=True)  # noqa: T201 - who started us reads it
    while True:
        ready, _, _ = select([mount.file, 0], [], [])
        if 0 in ready:
            mount.close()
            return
        answer = disk.answer(os.read(mount.file, MAX_WRITE + 4096))
        if answer is not None:
            os.write(mount.file, answer)


if __name__ == "__main__":
    _main(os.fsencode(sys.argv[1]))
