"""Sessions: what the broker holds for ingest between two connections, and what of it an earlier start has left.

A worker alone subscribes as anybody does. Several share a subscription, each with a session of its own: worker 1 by the
name that it has alone, so that another number of workers finds its session again. Remembered on disk, beside the
quarantine: how many workers there were, and of which counties; what is no longer wanted is taken back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

import msgspec

from exchange.topics import PREFIX
from ingest.config import Config

log = logging.getLogger(__name__)

CHANNELS = ("readings", "results")


class _Held(msgspec.Struct, frozen=True):
    """What the broker may hold."""

    client_id: str
    workers: int
    counties: list[str]


def filters(config: Config, counties: Iterable[str], *, shared: bool) -> list[str]:
    """Return the topic filters of counties, for a worker alone or for several that share them."""
    group = f"$share/{config.broker.client_id}/" if shared else ""
    return [
        f"{group}{PREFIX}/{county}/+/+/+/+/{channel}" for county in counties for channel in CHANNELS
    ]


class Sessions:
    """What a configuration wants of the broker, and what an earlier one left there."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._path = config.quarantine.path.with_suffix(".sessions.json")
        self._known = self._read()
        before = self._known or _Held(config.broker.client_id, 0, [])
        self._counties = sorted({*before.counties, *config.counties})
        self.retired = set(range(config.workers + 1, before.workers + 1))
        """Workers of an earlier start whose sessions are to be emptied."""

    @property
    def wanted(self) -> list[str]:
        """The filters that each worker subscribes to."""
        return filters(self._config, self._config.counties, shared=self._shared)

    @property
    def unwanted(self) -> list[str]:
        """The filters that the session of a worker may hold from an earlier configuration.

        Both kinds in one session would bring every message twice, and a county that another store
        has now would be refused here.
        """
        both = [
            *filters(self._config, self._counties, shared=False),
            *filters(self._config, self._counties, shared=True),
        ]
        return [each for each in both if each not in set(self.wanted)]

    def remember(self) -> None:
        """Note what the broker will hold from now on, before it does."""
        self._write()

    def tidied(self) -> None:
        """Note that every worker's session holds nothing unwanted any more."""
        self._counties = sorted(self._config.counties)
        self._write()

    def emptied(self, worker: int) -> None:
        """Note that a retired worker's session is no more."""
        self.retired.discard(worker)
        self._write()

    @property
    def _shared(self) -> bool:
        # Mosquitto 2.0 forgets shared filters when it restarts, persistence or not, and queues nothing by
        # them until their session is back; plain ones it keeps. So who is alone has a plain one.
        return self._config.workers > 1

    def _read(self) -> _Held | None:
        try:
            held = msgspec.json.decode(self._path.read_bytes(), type=_Held)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("what the broker holds for us is not known: %s: %s", self._path, error)
            return None
        # Under another name the broker's sessions are others; the old ones end by themselves.
        return held if held.client_id == self._config.broker.client_id else None

    def _write(self) -> None:
        workers = max([self._config.workers, *self.retired])
        held = _Held(self._config.broker.client_id, workers, self._counties)
        if held == self._known:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new = self._path.with_suffix(".new")
            with new.open("wb") as file:
                file.write(msgspec.json.encode(held))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as error:
            log.warning("what the broker holds for us cannot be noted: %s", error)
        else:
            self._known = held
