"""The truth of a run and its comparison with the store: sample by sample, every field, nothing explained away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec

from exchange.delivery import Key
from exchange.readings import Value

Field = float | int | str | bool


class Taken(msgspec.Struct):
    """A sample that was taken: what the store must hold of it, or the requirement that it is refused with.

    Shape: `digest` is the SHA-256 of its payload where no sample can be named in it. `told` is what its gateway was
        told: "" as long as nothing, "stored" or the requirement.
    """

    key: Key
    domain: str
    county: str
    site: str
    time_ms: int
    metrics: dict[str, Value]
    quality: str = ""
    refused_with: str = ""
    digest: str = ""
    taken_s: float = 0.0
    told: str = ""

    @property
    def row_time_ns(self) -> int:
        """As the contract says: the millisecond of the sample, then the end of its epoch."""
        return self.time_ms * 1_000_000 + self.key.epoch % 1_000_000

    @property
    def fields(self) -> dict[str, Field]:
        """As the contract says: booleans are 0 and 1."""
        fields: dict[str, Field] = {
            name: int(value) if isinstance(value, bool) else value
            for name, value in self.metrics.items()
        }
        fields |= {"epoch": self.key.epoch, "seq": self.key.seq}
        if self.quality:
            fields["quality"] = self.quality
        return fields


class StoredRow(NamedTuple):
    """A row as the store gave it."""

    domain: str
    county: str
    site: str
    device: str
    time_ns: int
    fields: Mapping[str, Field]

    @property
    def key(self) -> Key:
        return Key(self.device, int(self.fields["epoch"]), int(self.fields["seq"]))


class InQuarantine(NamedTuple):
    """One thing that the quarantine holds: a sample by its key, or a payload by its digest."""

    requirement: str
    key: Key | None
    digest: str


Verdict = Literal["stored", "refused", "lost", "altered", "untold"]


class Account(msgspec.Struct):
    """What became of the samples of the load.

    Shape: every sample taken is in exactly one of `stored`, `refused`, `lost`, `altered` and `untold` (where it should
        be, but its gateway was never told, or was told otherwise). `duplicate` rows are further rows of one
        sample; `foreign` rows are of no sample that was taken.
    """

    taken: int = 0
    stored: int = 0
    refused: int = 0
    lost: int = 0
    altered: int = 0
    untold: int = 0
    duplicate: int = 0
    foreign: int = 0
    examples: list[str] = []

    @property
    def is_clean(self) -> bool:
        """Nothing lost, doubled, altered or unaccounted for, and something was taken at all."""
        wrong = self.lost + self.altered + self.untold + self.duplicate + self.foreign
        return bool(self.taken) and not wrong

    def say(self, words: str) -> None:
        """Keep the first few of what is wrong."""
        if len(self.examples) < 40:
            self.examples.append(words)


def compare(
    taken: Iterable[Taken], rows: Iterable[StoredRow], quarantine: Iterable[InQuarantine]
) -> Account:
    """Return the account of everything taken against everything kept."""
    account = Account(examples=[])
    kept: defaultdict[Key, list[StoredRow]] = defaultdict(list)
    for row in rows:
        kept[row.key].append(row)
    refused = {(one.requirement, one.key or one.digest) for one in quarantine}
    for sample in taken:
        account.taken += 1
        found = kept.pop(sample.key, [])
        if sample.refused_with:
            for row in found:
                account.foreign += 1
                account.say(f"{sample.key} is to be refused and has the row {row}")
            verdict = _refused(sample, refused)
        else:
            if len(found) > 1:
                account.duplicate += len(found) - 1
                account.say(f"{sample.key} has {len(found)} rows: {found}")
            verdict = _stored(sample, found)
        setattr(account, verdict, getattr(account, verdict) + 1)
        if verdict not in ("stored", "refused"):
            account.say(f"{verdict}: {sample}, rows {found}")
    for strangers in kept.values():
        account.foreign += len(strangers)
        account.say(f"of no sample taken: {strangers}")
    return account


def _stored(sample: Taken, found: list[StoredRow]) -> Verdict:
    if not found:
        return "lost"
    if not any(_same(sample, row) for row in found):
        return "altered"
    return "stored" if sample.told == "stored" else "untold"


def _refused(sample: Taken, refused: set[tuple[str, Key | str]]) -> Verdict:
    if (sample.refused_with, sample.digest or sample.key) not in refused:
        return "lost"
    return "refused" if sample.told == sample.refused_with else "untold"


def _same(sample: Taken, row: StoredRow) -> bool:
    where = (row.domain, row.county, row.site, row.device, row.time_ns)
    meant = (sample.domain, sample.county, sample.site, sample.key.device, sample.row_time_ns)
    return where == meant and dict(row.fields) == sample.fields


def longest_gap_s(times_s: Iterable[float]) -> float:
    """Return the longest time between two that follow each other; 0 when there are none."""
    return max((later - one for one, later in pairwise(sorted(times_s))), default=0.0)
