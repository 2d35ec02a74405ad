"""Ports of this machine: one that nobody uses, and whether somebody listens."""

import os
import random
import socket

# Below the ports that Linux gives to outgoing connections (from 32768): none of those takes it meanwhile.
# Of two processes of tests each has ports of its own: what one test has killed, no other may stand in for.
_OWN = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(20_000 + _OWN, 32_768, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
_random = random.SystemRandom()  # Hypothesis seeds the ordinary one


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free just now."""
    while True:
        port = _random.choice(_PORTS)
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
