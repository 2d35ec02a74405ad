"""Where a run takes place: namespaces of its own, with three places, the road between them, and small disks.

Everything is inside a network, a mount and a process namespace that have no name: when the harness ends, also by
kill -9, the kernel ends every process in them and takes links and disks away. Nothing can be left over.

    gateways (the harness, load, agents) --- road --- office (broker, ingest, watch)
                                               |
                                             store (InfluxDB and what throttles it)

The addresses are of 127/8, routed: the products take plain text from loopback alone, and TLS is tested elsewhere. The
harness has a second way to each place, which is never cut, to look at what is there.
"""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

PRIVATE = Path("/mnt")
"""Of the run's own mount namespace: what the machine has there is neither seen nor touched."""
INSIDE = "ONESTREET_CHAOS_INSIDE"
_NETS = PRIVATE / "nets"
_NUMBERS = {"gateways": 1, "office": 2, "store": 3}
_UNSHARE = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
_CONNECT_S = 0.7


class FaultFailed(Exception):
    """A fault did not take hold, or was not healed: the run proves nothing and has failed."""


def enter(argv: Sequence[str]) -> None:
    """Run the command anew in namespaces of its own, in place of this process; return when already inside."""
    if os.environ.get(INSIDE):
        return
    environment = {**os.environ, INSIDE: "1"}
    if os.geteuid() == 0:
        command = _UNSHARE
    elif _works([*_UNSHARE, "--map-root-user", "true"]):
        command = [*_UNSHARE, "--map-root-user"]
    elif _works(["sudo", "-n", "true"]):
        kept = [f"{name}={environment[name]}" for name in environment if name.startswith("ONEST")]
        command = ["sudo", "-n", "env", f"PATH={os.environ['PATH']}", *kept, *_UNSHARE]
    else:
        raise SystemExit("namespaces are needed: run as root, or allow them to users, or sudo")
    os.execvpe(command[0], [*command, *argv], environment)  # noqa: S606 - the same program again


def _works(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FaultFailed(f"{' '.join(command)}: {done.stderr.strip()}")


# ------------------------------------------------------------------------------------------------------ network


def address(place: str) -> str:
    """Where the others reach a place, over the road."""
    return f"127.90.{_NUMBERS[place]}.2"


def side_address(place: str) -> str:
    """Where the harness alone reaches a place, past the road."""
    return f"127.91.{_NUMBERS[place]}.2"


def at(place: str, argv: Sequence[str]) -> list[str]:
    """Return the command that runs another one in a place."""
    return list(argv) if place == "gateways" else ["nsenter", f"--net={_NETS / place}", *argv]


def lay_out() -> None:
    """Make the places and the road."""
    _run("mount", "-t", "tmpfs", "tmpfs", str(PRIVATE))
    scratch = PRIVATE / "scratch"
    scratch.mkdir()
    os.environ["TMPDIR"] = str(scratch)  # of what is started, for it may not live to tidy up
    _NETS.mkdir()
    for place in ("road", "office", "store"):
        (_NETS / place).touch()
        _run("unshare", f"--net={_NETS / place}", "true")
    for place in ("gateways", "road", "office", "store"):
        _run(*at(place, ["ip", "link", "set", "lo", "up"]))
        # the whole of 127/8 is local otherwise, and never leaves
        _run(*at(place, ["ip", "address", "del", "127.0.0.1/8", "dev", "lo"]))
        _run(*at(place, ["ip", "address", "add", "127.0.0.1/32", "dev", "lo"]))
        for which in ("all", "default"):
            _set(place, f"{which}/route_localnet", 1)
    for place, number in _NUMBERS.items():
        _join("road", f"127.90.{number}.1", place, address(place), place)
        way = ["ip", "route", "add", "127.90.0.0/16", "via", f"127.90.{number}.1"]
        _run(*at(place, [*way, "src", address(place)]))
        if place != "gateways":
            _join("gateways", f"127.91.{number}.1", place, side_address(place), f"side-{place}")
    _set("road", "all/forwarding", 1)


def _join(here: str, here_address: str, there: str, there_address: str, name: str) -> None:
    """Lay a cable; it has its name on this end and `wire-…` on the other."""
    far = f"wire-{name}"[:15]
    _run("ip", "link", "add", name, "type", "veth", "peer", "name", far)
    for place, device, own in ((here, name, here_address), (there, far, there_address)):
        if place != "gateways":
            _run("ip", "link", "set", device, "netns", str(_NETS / place))
        cable = ["ip", "address", "add", f"{own}/24", "dev", device, "scope", "global"]
        _run(*at(place, cable))
        _run(*at(place, ["ip", "link", "set", device, "up"]))


def _set(place: str, key: str, value: int) -> None:
    _run(*at(place, ["sh", "-c", f"echo {value} > /proc/sys/net/ipv4/conf/{key}"]))


def cut(place: str, *, lost_from: bool, lost_to: bool) -> None:
    """Lose what comes from a place on the road, or what goes there, or both; silently."""
    if lost_from:
        _set("road", f"{place}/forwarding", 0)
    if lost_to:
        _run(*at("road", ["ip", "route", "add", "blackhole", f"{address(place)}/32"]))


def mend(place: str) -> None:
    """Carry everything again."""
    _set("road", f"{place}/forwarding", 1)
    hole = f"{address(place)}/32"
    _run(
        *at(
            "road",
            [
                "sh",
                "-c",
                f"! ip route | grep -q '^blackhole {hole[:-3]}' || ip route del blackhole {hole}",
            ],
        )
    )


async def connects(place: str, target: str, port: int) -> bool:
    """Whether a TCP connection from one place to an address comes about at once."""
    words = f": </dev/tcp/{target}/{port}"
    trial = await asyncio.create_subprocess_exec(
        *at(place, ["timeout", str(_CONNECT_S), "bash", "-c", words]),
        stderr=asyncio.subprocess.DEVNULL,
    )
    return not await trial.wait()


# -------------------------------------------------------------------------------------------------------- disks


class Disk:
    """A small disk in memory."""

    def __init__(self, name: str, mib: int) -> None:
        """Mount it."""
        self.path = PRIVATE / "disks" / name
        self._ballast = self.path / "ballast"
        self.path.mkdir(parents=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tmpfs", str(self.path))

    @property
    def free_bytes(self) -> int:
        """What can still be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self) -> None:
        """Leave nothing free. Raises: FaultFailed."""
        with self._ballast.open("ab", buffering=0) as ballast:
            for size in (1 << 20, 4096):
                try:
                    while ballast.write(bytes(size)) == size:
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        if self.free_bytes:
            raise FaultFailed(f"{self.path} is not full: {self.free_bytes} bytes")

    def relieve(self) -> None:
        """Free what `fill` took. Raises: FaultFailed."""
        self._ballast.unlink(missing_ok=True)
        if not self.free_bytes:
            raise FaultFailed(f"{self.path} is still full")
