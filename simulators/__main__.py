"""A town as a process of its own: `python -m simulators RUN_DIR PLAN.json`.

When ready it prints one JSON line with the endpoints; then it takes commands on standard input, one
word a line, each answered with one JSON line: `speak`, `mute` (answered when nothing is in flight any
more), `quit`. The end of its input and SIGTERM end it, too. It starts muted.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from exchange.errors import OnestreetError
from simulators.errors import SimulatorError
from simulators.fleet import Fleet
from simulators.plan import load_plan

QUIT = "quit"
FAILED, MISUSED = 1, 2


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    sys.stdout.flush()


def _listen(loop: asyncio.AbstractEventLoop, commands: asyncio.Queue[str]) -> None:
    """Pass standard input on, by line, from a thread: not every kind of it can be polled."""

    def put(command: str) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(commands.put_nowait, command)

    received = b""
    while data := os.read(sys.stdin.fileno(), 4096):
        *lines, received = (received + data).split(b"\n")
        for line in lines:
            put(line.decode(errors="replace").strip())
    put(QUIT)


async def _obey(fleet: Fleet, command: str) -> None:
    if command == "speak":
        fleet.speak()
        _say({"muted": False})
    elif command == "mute":
        try:
            await fleet.mute()
        except SimulatorError as error:
            _say({"muted": True, "error": str(error)})
        else:
            _say({"muted": True})
    else:
        _say({"error": f"{command!r}: speak, mute or quit"})


async def host(run_dir: Path, plan_path: Path) -> int:
    """Host the town until it is told to end; return the exit status."""
    loop = asyncio.get_running_loop()
    commands: asyncio.Queue[str] = asyncio.Queue()
    failures: list[dict[str, Any]] = []

    def fail(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failures.append(context)  # a twin that raises must not be taken for a silent one
        commands.put_nowait(QUIT)

    loop.set_exception_handler(fail)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, commands.put_nowait, QUIT)
    async with Fleet(load_plan(plan_path), run_dir) as fleet:
        _say({"ready": True, "endpoints": fleet.endpoints})
        threading.Thread(target=_listen, args=(loop, commands), daemon=True).start()
        while (command := await commands.get()) != QUIT:
            await _obey(fleet, command)
    for context in failures:
        sys.stderr.write(f"{context['message']}: {context.get('exception')!r}\n")
    return FAILED if failures else 0


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m simulators RUN_DIR PLAN.json\n")
        return MISUSED
    run_dir, plan_path = (Path(argument).absolute() for argument in arguments)
    try:
        return asyncio.run(host(run_dir, plan_path))
    except OnestreetError as error:
        sys.stderr.write(f"{error}\n")
        return MISUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
