"""Ports of this machine: one that nobody uses, and whether somebody listens."""

import random
import socket

# Below the ports that Linux gives to outgoing connections (from 32768): none of those takes it meanwhile.
_PORTS = range(20_000, 32_768)
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
