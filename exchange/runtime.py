"""What every onestreet process does alike: stop when told, say that it is ready, log a line an event."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import msgspec

from exchange.errors import OnestreetError
from exchange.trouble import Trouble

log = logging.getLogger(__name__)

NOTIFY_S = 0.2

_encode = msgspec.json.Encoder(enc_hook=str).encode
_PR_SET_PDEATHSIG = 1
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, `fields`, and whatever `extra` held.

    What of `extra` has the name of one of these goes under `extra_` and that name.
    """

    def __init__(self, **fields: object) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        own = frozenset(line)
        for key, value in vars(record).items():
            if key not in _PLAIN:
                line[f"extra_{key}" if key in own else key] = value
        return _encode(line).decode()


def log_to_stderr(level: str = "INFO", **fields: object) -> None:
    """Send every log line to stderr as JSON, each with these fields."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(**fields))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def stop_on_signals(*, on_hangup: Callable[[], None] | None = None) -> asyncio.Event:
    """Return an event that SIGTERM, SIGINT and, without `on_hangup`, SIGHUP set. Call it inside the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if on_hangup is not None:
        loop.add_signal_handler(signal.SIGHUP, on_hangup)
    elif (
        signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    ):  # with nohup it is to outlive its terminal
        loop.add_signal_handler(signal.SIGHUP, stop.set)
    return stop


def end_with_parent(parent_id: int = 0) -> None:
    """Have the kernel end this process with its parent. Run it in the child, before its program.

    With the parent's id, a parent that died before this was called counts too.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent_id and os.getppid() != parent_id:
        os.kill(os.getpid(), signal.SIGKILL)


def notify(message: str) -> None:
    """Tell the service manager (`READY=1`, `STOPPING=1`, `STATUS=…`); a no-op where there is none.

    One that does not listen holds nothing up for longer than NOTIFY_S.

    Source: sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(NOTIFY_S)
            channel.sendto(message.encode(), address)
    except OSError as error:
        log.warning("the service manager cannot be told: %s", error)


def watchdog_s() -> float | None:
    """Return within how many seconds the service manager wants to hear from this process; None when it does not.

    Source: sd_watchdog_enabled(3).
    """
    allowed = os.environ.get("WATCHDOG_USEC", "")
    process = os.environ.get("WATCHDOG_PID", "")
    if not allowed.isdecimal() or int(allowed) == 0 or process not in ("", str(os.getpid())):
        return None
    return int(allowed) / 1e6


async def keep_watchdog(progress: Callable[[], Awaitable[object]]) -> None:
    """Tell the service manager for ever that all is well, but only while `progress` returns in time.

    A loop that hangs says nothing by itself; `progress` asks what else could, such as a thread. Silence for the
    time that the manager allows has it restart the process. Returns at once where no manager watches.
    """
    allowed_s = watchdog_s()
    if allowed_s is None:
        return
    hang = Trouble(log, "no progress: the service manager is told nothing", "progress again")
    while True:
        try:
            async with asyncio.timeout(allowed_s / 2):
                await progress()
        except TimeoutError:
            hang.report(f"nothing in {allowed_s / 2:g} s")
        except OnestreetError as error:
            hang.report(str(error))
        else:
            hang.over()
            notify("WATCHDOG=1")
        await asyncio.sleep(allowed_s / 4)


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run a process's main coroutine, on uvloop where it is installed, and return its exit code."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
