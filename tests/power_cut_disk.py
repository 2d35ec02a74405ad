"""A file system in memory that forgets, at a power cut, what was not synced: `python -m tests.power_cut_disk FOLDER`.

It speaks the kernel's FUSE protocol itself, since it needs little of it. As strict as POSIX allows a disk to be: fsync
makes a file's content durable, not its name; a name is durable once its folder is synced. Of what was not synced a cut
leaves any part, by chance: sectors of 512 bytes one by one, sizes with or without the content, and of each folder's
changes the first few.

Commands, a line each, and their answers:

| `cut SEED SHARE` | the power is cut now, though nobody notices yet | `cut BOOT_MS` |
| `boot` | unmount, forget, mount again | `up` |
| `end` | unmount and leave | |

Source: the kernel's include/uapi/linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import copy
import ctypes
import errno
import os
import random
import select
import stat
import struct
import sys
import time
from collections.abc import Callable

SECTOR = 512
ROOT = 1
MAX_WRITE = 128 * 1024
_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_OPENED = struct.Struct("<QII")
_IO = struct.Struct("<QQIIQII")
_DIRENT = struct.Struct("<QQII")
_INIT = struct.Struct("<IIIIHHIIHHII24x")
_STATFS = struct.Struct("<QQQQQIIII24x")
_BIG_WRITES = 1 << 5
_DIRECT_IO = 1
_SET_MODE, _SET_SIZE = 1, 1 << 3
_MNT_DETACH = 2


class Fault(Exception):
    """What the kernel is told. Shape: its only argument is an errno."""


class Node:
    """A file or a folder, as it is and as it would be after a cut."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.data = bytearray()
        self.synced = b""
        self.dirty: set[int] = set()  # sectors that were written since
        self.entries: dict[bytes, int] = {}
        self.synced_entries: dict[bytes, int] = {}
        self.changes: list[list[tuple[bytes, int | None]]] = []
        """Of a folder, since it was synced: each one whole or not at all."""

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def sync(self) -> None:
        self.synced, self.dirty = bytes(self.data), set()
        self.synced_entries, self.changes = dict(self.entries), []

    def change(self, *names: tuple[bytes, int | None]) -> None:
        """Change a folder's names; None removes one."""
        for name, number in names:
            if number is None:
                del self.entries[name]
            else:
                self.entries[name] = number
        self.changes.append(list(names))

    def write(self, at: int, data: bytes) -> None:
        if at > len(self.data):
            self.resize(at)
        self.data[at : at + len(data)] = data
        self.dirty.update(range(at // SECTOR, -(-(at + len(data)) // SECTOR)))

    def resize(self, size: int) -> None:
        before = len(self.data)
        del self.data[size:]
        self.data += bytes(size - len(self.data))
        low, high = sorted((before, size))
        self.dirty.update(range(low // SECTOR, -(-high // SECTOR)))

    def after_cut(self, chance: random.Random, share: float) -> Node:
        """Return what the disk has of it."""
        left = Node(self.mode)
        data = bytearray(self.synced)
        if len(self.data) != len(data):
            low, high = sorted((len(self.data), len(data)))
            size = chance.choice([len(self.synced), len(self.data), chance.randint(low, high)])
            if not share:
                size = len(self.synced)
            data = data[:size] + bytes(max(0, size - len(data)))
        for sector in sorted(self.dirty):
            start, end = sector * SECTOR, min(len(data), (sector + 1) * SECTOR, len(self.data))
            if start < end and chance.random() < share:
                data[start:end] = self.data[start:end]
        left.data, left.synced = data, bytes(data)
        left.entries = dict(self.synced_entries)
        for change in self.changes[: round(chance.random() * share * 2 * len(self.changes))]:
            for name, number in change:
                if number is None:
                    left.entries.pop(name, None)
                else:
                    left.entries[name] = number
        left.synced_entries = dict(left.entries)
        return left


class Disk:
    """The file system between a mount and the next. Shape: `nodes` by number; numbers are never used again."""

    def __init__(self) -> None:
        self.nodes = {ROOT: Node(stat.S_IFDIR | 0o755)}
        self.image: dict[int, Node] | None = None
        self.numbers = ROOT
        self.answers: dict[int, Callable[[int, bytes], bytes | None]] = {
            1: self.lookup,
            3: lambda node, _: self.attributes(node),
            4: self.set_attributes,
            9: lambda node, data: self.make(node, data[8:-1], stat.S_IFDIR | 0o755),
            10: self.remove,
            11: self.remove,
            12: lambda node, data: self.rename(node, data, 8),
            14: lambda node, _: _OPENED.pack(node, _DIRECT_IO, 0),
            15: self.read,
            16: self.write,
            17: lambda *_: _STATFS.pack(
                1 << 20, 1 << 19, 1 << 19, 1 << 16, 1 << 15, 4096, 255, 4096, 0
            ),
            18: lambda *_: b"",
            20: self.sync,
            25: lambda *_: b"",
            26: self.begin,
            27: lambda node, _: _OPENED.pack(node, 0, 0),
            28: self.list_folder,
            29: lambda *_: b"",
            30: self.sync,
            35: self.create,
            38: lambda *_: b"",
            45: lambda node, data: self.rename(node, data, 16),
            2: lambda *_: None,  # forget
            36: lambda *_: None,  # interrupt
            42: lambda *_: None,  # forget many
        }

    def answer(self, request: bytes) -> bytes | None:
        """Return what the kernel gets for a request."""
        _, code, unique, node, *_ = _IN.unpack_from(request)
        try:
            if code not in self.answers:
                raise Fault(errno.ENOSYS)
            data = self.answers[code](node, request[_IN.size :])
        except Fault as fault:
            return _OUT.pack(_OUT.size, -int(fault.args[0]), unique)
        return None if data is None else _OUT.pack(_OUT.size + len(data), 0, unique) + data

    def cut(self, seed: int, share: float) -> None:
        """Keep what a power cut leaves now, a share of what was not synced; go on as if nothing were."""
        chance = random.Random(seed)
        self.image = {number: node.after_cut(chance, share) for number, node in self.nodes.items()}

    def boot(self) -> None:
        """Be what the cut left."""
        if self.image is not None:
            self.nodes, self.image = copy.deepcopy(self.image), None

    # -------------------------------------------------------------------------------------------- requests

    @staticmethod
    def begin(_: int, data: bytes) -> bytes:
        ahead = struct.unpack_from("<I", data, 8)[0]
        return _INIT.pack(
            7, 31, ahead, _BIG_WRITES, 16, 12, MAX_WRITE, 1, MAX_WRITE // 4096, 0, 0, 0
        )

    def _named(self, folder: int, name: bytes) -> int:
        try:
            return self.nodes[folder].entries[name]
        except KeyError:
            raise Fault(errno.ENOENT) from None

    def _attr(self, number: int) -> bytes:
        node = self.nodes[number]
        size, links = len(node.data), 2 if node.is_folder else 1
        times = (0,) * 6
        ids = (os.getuid(), os.getgid())
        return _ATTR.pack(number, size, -(-size // 512), *times, node.mode, links, *ids, 0, 4096, 0)

    def _entry(self, number: int) -> bytes:
        return _ENTRY.pack(number, 0, 0, 0, 0, 0) + self._attr(number)

    def attributes(self, number: int) -> bytes:
        return bytes(16) + self._attr(number)

    def lookup(self, folder: int, data: bytes) -> bytes:
        return self._entry(self._named(folder, data[:-1]))

    def set_attributes(self, number: int, data: bytes) -> bytes:
        valid, size = struct.unpack_from("<I12xQ", data)
        if valid & _SET_SIZE:
            self.nodes[number].resize(size)
        return self.attributes(number)

    def make(self, folder: int, name: bytes, mode: int) -> bytes:
        if name in self.nodes[folder].entries:
            raise Fault(errno.EEXIST)
        self.numbers += 1
        self.nodes[self.numbers] = Node(mode)
        self.nodes[folder].change((name, self.numbers))
        return self._entry(self.numbers)

    def create(self, folder: int, data: bytes) -> bytes:
        entry = self.make(folder, data[16:-1], stat.S_IFREG | 0o644)
        return entry + _OPENED.pack(self.numbers, _DIRECT_IO, 0)

    def remove(self, folder: int, data: bytes) -> bytes:
        name = data[:-1]
        if self.nodes[self._named(folder, name)].entries:
            raise Fault(errno.ENOTEMPTY)
        self.nodes[folder].change((name, None))
        return b""

    def rename(self, folder: int, data: bytes, head: int) -> bytes:
        to = struct.unpack_from("<Q", data)[0]
        old, new = data[head:-1].split(b"\0")
        if to != folder:
            raise Fault(errno.EXDEV)
        number = self._named(folder, old)
        self.nodes[folder].change((new, number), (old, None))
        return b""

    def read(self, number: int, data: bytes) -> bytes:
        _, at, size, *_ = _IO.unpack_from(data)
        return bytes(self.nodes[number].data[at : at + size])

    def write(self, number: int, data: bytes) -> bytes:
        _, at, size, *_ = _IO.unpack_from(data)
        self.nodes[number].write(at, data[_IO.size : _IO.size + size])
        return struct.pack("<II", size, 0)

    def sync(self, number: int, _: bytes) -> bytes:
        self.nodes[number].sync()
        return b""

    def list_folder(self, number: int, data: bytes) -> bytes:
        _, at, size, *_ = _IO.unpack_from(data)
        found = b""
        for place, (name, child) in enumerate(self.nodes[number].entries.items(), 1):
            if place <= at:
                continue
            kind = stat.S_IFMT(self.nodes[child].mode) >> 12
            entry = _DIRENT.pack(child, place, len(name), kind) + name
            entry += bytes(-len(entry) % 8)
            if len(found) + len(entry) > size:
                break
            found += entry
        return found


class Mount:
    """The place where the kernel shows it. Only root may mount."""

    def __init__(self, folder: bytes) -> None:
        self.folder = folder
        self.file = os.open("/dev/fuse", os.O_RDWR)
        self._libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.file},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        kind = b"fuse.power_cut"
        if self._libc.mount(b"power_cut", folder, kind, 0, options.encode()):
            number = ctypes.get_errno()
            raise OSError(number, f"cannot mount (root may): {os.strerror(number)}")

    def close(self) -> None:
        self._libc.umount2(self.folder, _MNT_DETACH)
        os.close(self.file)


def main(folder: bytes) -> None:
    """Serve until told to end."""
    disk, mount, commands = Disk(), Mount(folder), b""
    print("up", flush=True)  # noqa: T201 - who started us reads it
    while True:
        ready, _, _ = select.select([mount.file, 0], [], [])
        if mount.file in ready:
            answer = disk.answer(os.read(mount.file, MAX_WRITE + 4096))
            if answer is not None:
                os.write(mount.file, answer)
            continue
        new = os.read(0, 4096)
        commands += new
        while b"\n" in commands:
            line, _, commands = commands.partition(b"\n")
            match line.split():
                case [b"cut", seed, share]:
                    boot_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
                    disk.cut(int(seed), float(share))
                    print("cut", boot_ms, flush=True)  # noqa: T201 - see above
                case [b"boot"]:
                    mount.close()
                    disk.boot()
                    mount = Mount(folder)
                    print("up", flush=True)  # noqa: T201 - see above
                case _:
                    new = b""
        if not new:
            mount.close()
            return


if __name__ == "__main__":
    main(os.fsencode(sys.argv[1]))
