"""Ports of this machine: one that nobody uses, and whether somebody listens."""

import itertools
import os
import random
import socket

# Below the ports that Linux gives to outgoing connections (from 32768): none of those takes it meanwhile.
# Of two processes of tests each has ports of its own: what one test has killed, no other may stand in for.
_OWN = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(20_000 + _OWN, 32_768, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
# In turn, so that no port is given to two tests whose servers come up only seconds later; and not by the
# ordinary random, which Hypothesis seeds.
_in_turn = itertools.cycle(random.SystemRandom().sample(_PORTS, len(_PORTS)))


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free just now."""
    while True:
        port = next(_in_turn)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def is_open(port: int) -> bool:
    """Whether somebody listens there, on 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
