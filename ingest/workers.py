"""Several workers: one process each, with a session of its own; started, brought back and ended by a supervisor.

The supervisor takes in nothing but what waits in the sessions of an earlier start with more workers: these it empties.
It says how all of them are: ready only when each is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

from exchange import health, runtime
from exchange.processes import Change, Child
from ingest.config import Config, broker_settings, broker_tls, store_of
from ingest.retirement import retiring
from ingest.service import DRAIN_DEADLINE_S, GOODBYE_DEADLINE_S, TAKING_IN
from ingest.sessions import Sessions

log = logging.getLogger(__name__)

ANSWER_S = 0.6 * health.ANSWER_S
"""How long a worker has to say how it is, while somebody waits for us to say it of all."""
STOP_S = DRAIN_DEADLINE_S + 2 * GOODBYE_DEADLINE_S + 4.0  # a worker's own deadlines, and to end


def main(config: Config, file: Path, *, with_watch: bool = False) -> int:
    """Run the configured number of workers until SIGTERM; return the exit code. Raises: ConfigError."""
    _check(config, file)
    return runtime.run(_main(config, file, with_watch))


async def _main(config: Config, file: Path, with_watch: bool) -> int:
    sessions, stop = Sessions(config), runtime.stop_on_signals()
    workers = Workers(config, file, sessions, with_watch=with_watch)
    async with health.answering(workers.judge):
        sessions.remember()
        async with retiring(config, file, sessions):
            try:
                await workers.begin()
                await stop.wait()
                runtime.notify("STOPPING=1")
            finally:
                in_order = await workers.stop()
    return 0 if in_order else 1


def _check(config: Config, file: Path) -> None:
    """Find now what every worker would stumble over: told once, and nothing is started. Raises: ConfigError."""
    store_of(config, file)
    for worker in range(1, config.workers + 1):
        broker_settings(config, file=file, worker=worker)
        broker_tls(config, file=file, worker=worker)


class Workers:
    """The processes. `sessions` is told once all of them are ready."""

    def __init__(
        self, config: Config, file: Path, sessions: Sessions, *, with_watch: bool = False
    ) -> None:
        self._sessions = sessions
        self._announced = False
        self._stopping = False
        self._health = os.environ.get(health.VARIABLE, "")
        self.children = [
            Child(
                f"worker {number}",
                _command(config, file, number, with_watch=with_watch and number == 1),
                None,
                environment={health.VARIABLE: self._socket(number)},
                on_change=partial(self._changed, number),
                on_words=self._say,
                ready_s=None,
            )
            for number in range(1, config.workers + 1)
        ]

    @property
    def ready(self) -> bool:
        """Whether every worker has been ready since it was last started."""
        return all(child.ready.is_set() for child in self.children)

    async def begin(self) -> None:
        """Start all of them; one that ends is brought back."""
        for child in self.children:
            await child.begin()

    async def stop(self) -> bool:
        """Have all of them end within a deadline; return whether each did so in order."""
        self._stopping = True
        # One that has only begun has nothing in hand, and may not know the signal yet.
        good = [{0} if child.ready.is_set() else {0, -signal.SIGTERM} for child in self.children]
        in_time = await asyncio.gather(*(child.stop(STOP_S) for child in self.children))
        ends = zip(self.children, good, strict=True)
        return all(in_time) and all(child.exit_code in codes for child, codes in ends)

    async def judge(self) -> str:
        """Return how things stand now, in the words of `exchange.health`."""
        answers = await asyncio.gather(*map(self._ask, range(1, len(self.children) + 1)))
        unwell = [
            f"{child.name}: {words}"
            for child, words in zip(self.children, answers, strict=True)
            if words != health.WELL
        ]
        return "; ".join(unwell) or health.WELL

    async def _ask(self, number: int) -> str:
        child = self.children[number - 1]
        if not child.pid:
            return f"ended ({child.exit_code}) and is brought back"
        return await health.ask(self._socket(number), ANSWER_S)

    def _socket(self, number: int) -> str:
        return f"{self._health}.{number}" if self._health else ""

    def _changed(self, number: int, change: Change) -> None:
        child = self.children[number - 1]
        if change == "died" and not self._stopping:
            log.error("%s ended (%s) and is brought back", child.name, child.exit_code)
        elif change == "ready" and child.restarts:
            log.info("%s is ready again", child.name)
        if self.ready and not self._announced:
            self._announced = True
            self._sessions.tidied()
            runtime.notify("READY=1")
        self._say()

    def _say(self) -> None:
        """Tell the service manager how things stand."""
        words = [
            f"{child.name}: {child.words or 'starting'}"
            for child in self.children
            if not child.ready.is_set() or child.words != TAKING_IN
        ]
        taking_in = f"{len(self.children)} workers {TAKING_IN}"
        runtime.notify(f"STATUS={'; '.join(words) or taking_in}")


def _command(config: Config, file: Path, number: int, *, with_watch: bool) -> list[str]:
    words = [sys.executable, "-m", "ingest", str(file)]
    words += ["--workers", str(config.workers), "--worker", str(number)]
    return [*words, "--with-watch"] if with_watch else words
