"""`python -m benchmarks.sampler FILE MODULE ARG…`: runs a module and notes where its CPU time goes.

Each few milliseconds of CPU time, user and system, the kernel interrupts and the function that runs
is noted. Unlike a tracing profiler this slows nothing: a C function counts where it was called.
"""

from __future__ import annotations

import atexit
import json
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

_EVERY_S = 0.001  # the kernel rounds it up to its own tick


def _sample_into(file: Path) -> None:
    seen: Counter[str] = Counter()

    def note(_signal: int, frame: FrameType | None) -> None:
        if frame is not None:
            code = frame.f_code
            seen[f"{'/'.join(Path(code.co_filename).parts[-2:])}:{code.co_qualname}"] += 1

    def write() -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        file.write_text(json.dumps(seen))

    atexit.register(write)
    signal.signal(signal.SIGPROF, note)
    signal.setitimer(signal.ITIMER_PROF, _EVERY_S, _EVERY_S)


if __name__ == "__main__":
    _sample_into(Path(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
