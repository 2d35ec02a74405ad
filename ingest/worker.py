"""A worker of ingest as a process: the only one, or one of several.

Beside the only one, whoever has no worker above it, the sessions are emptied of those that an earlier start had.
"""

from __future__ import annotations

import gc
import socket
from contextlib import AsyncExitStack
from pathlib import Path

from exchange import health, runtime
from exchange.errors import ConfigError
from ingest.config import Config
from ingest.metrics import serving
from ingest.retirement import retiring
from ingest.rollups.command import engine
from ingest.service import Service, serve
from ingest.sessions import Sessions
from ingest.watch import Watch


def main(
    config: Config,
    file: Path,
    *,
    worker: int | None = None,
    with_watch: bool = False,
    with_rollups: bool = False,
) -> int:
    """Run a worker until SIGTERM, without a number the only one; return the exit code. Raises: ConfigError."""
    # Points and packs hold no cycles: looking for some among them costs more than storing them.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    return runtime.run(_main(config, file, worker, with_watch, with_rollups))


async def _main(
    config: Config, file: Path, worker: int | None, with_watch: bool, with_rollups: bool
) -> int:
    sessions, stop = Sessions(config), runtime.stop_on_signals()
    service = Service(config, file, worker=worker or 1)
    watch = Watch(config, service.store, file=file) if with_watch else None
    async with AsyncExitStack() as around:
        await around.enter_async_context(health.answering(service.judge))
        try:
            metrics = serving(config.metrics, service.metrics, service.judge, worker=worker or 1)
            await around.enter_async_context(metrics)
        except socket.gaierror as error:
            allowed = f"must be an address of this machine: {error.strerror}"
            raise ConfigError(str(file), "metrics.host", config.metrics.host, allowed) from error
        except OSError as error:
            allowed = f"must be free, for worker {worker or 1}, too: {error.strerror}"
            raise ConfigError(str(file), "metrics.port", config.metrics.port, allowed) from error
        if worker is None:  # nobody above it, who would mind the sessions
            sessions.remember()
            service.on_ready = sessions.tidied
            await around.enter_async_context(retiring(config, file, sessions))
        rollups = None
        if with_rollups:
            rollups = engine(config, file)
            around.push_async_callback(rollups.close)
        return await serve(service, stop, watch, rollups)
