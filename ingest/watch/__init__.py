"""The watch: what needs one owner per device. The registry, liveness, incidents, and order across packs.

An ordinary subscriber beside ingest: it writes the `device` measurement, so that a map needs no
join and silence is a row. Its memory is rebuilt from retained states and from its own rows;
nothing depends on it.
"""

from ingest.watch.service import Watch, main

__all__ = ["Watch", "main"]
