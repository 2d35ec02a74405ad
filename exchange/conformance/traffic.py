"""Traffic: everything that the played gateways of the role ingest send, stage by stage."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import count, islice
from uuid import uuid4

import msgspec

from exchange.conformance import poison
from exchange.conformance.cases import Case, Played
from exchange.moments import rfc3339

MANY = 1500  # samples of one pack, as a drain sends them
_DAY_S = 86_400


class Traffic:
    """Three new devices, two behind one gateway and one behind its neighbour; each seq is used once."""

    def __init__(self, county: str, site: str, gateway: str, neighbour: str) -> None:
        name = f"conform-{secrets.token_hex(4)}"
        now_ms = time.time_ns() // 1_000_000
        # An hour ago, so that no sample of the run is of the future.
        self.air = Played(
            county=county,
            site=site,
            gateway=gateway,
            domain="air",
            device=f"{name}-1",
            epoch=now_ms - 3_600_000,
            begun_s=now_ms // 1000 - 3600,
        )
        self.beside = msgspec.structs.replace(self.air, gateway=neighbour, device=f"{name}-2")
        self.late = msgspec.structs.replace(
            self.air,
            device=f"{name}-3",
            epoch=now_ms - 40 * _DAY_S * 1000,
            begun_s=now_ms // 1000 - 40 * _DAY_S,
        )
        self.seqs = count()

    @property
    def devices(self) -> tuple[Played, ...]:
        """Every device that is played, the gateways themselves last."""
        speaking = self.air, self.beside, self.late
        itself = [
            msgspec.structs.replace(one, domain="gateway", device=one.gateway)
            for one in speaking[:2]
        ]
        return (*speaking, *itself)

    def plain(self, device: Played) -> Case:
        """Return the plainest sample there is."""
        return device.case("one sample in order", [next(self.seqs)])

    def first(self) -> Iterator[Case]:
        """Yield what is right in every way that the contract allows, and what breaks it sample by sample."""
        air, seqs = self.air, self.seqs
        yield air.case("a pack in CBOR", islice(seqs, 3), "EX-D-028", form="cbor")
        yield air.case("a pack of many samples", islice(seqs, MANY))
        holes = list(islice(seqs, 9))
        yield air.case("a pack with gaps", [*holes[:2], *holes[4:6], holes[8]], "EX-D-023")
        earlier, later = list(islice(seqs, 3)), list(islice(seqs, 3))
        yield air.case("a newer pack before an older one", later, "EX-D-029")
        yield air.case("an older pack after a newer one", earlier, "EX-D-029")
        late = self.late
        yield late.case("samples that are 40 days late", range(2), "EX-D-029")
        yield late.case("a sample that is 3 days late", [37 * _DAY_S], "EX-D-029")
        again = msgspec.structs.replace(air, epoch=air.epoch + 1, begun_s=air.begun_s)
        yield again.case("the same seqs in a new epoch", range(3))
        moved = msgspec.structs.replace(air, gateway=self.beside.gateway)
        yield moved.case("a device behind another gateway", islice(seqs, 2), "EX-D-022")
        yield self.beside.case("a second gateway", islice(seqs, 4), "EX-D-022")
        yield from poison.metrics(air, seqs)
        yield poison.backwards(air, seqs)
        yield poison.ahead(air, seqs)
        yield self._result(air, "done")
        yield self._result(self.beside, "rejected")

    def again(self, first: Sequence[Case]) -> Iterator[Case]:
        """Yield what was stored once more: as it was, and in another pack and form."""
        for case in first:
            if case.what.startswith(("a pack in CBOR", "a pack with gaps", "samples that are")):
                yield msgspec.structs.replace(
                    case, what=f"{case.what}, again", proves=("EX-D-024",)
                )
        resent = [seq for _, _, seq in list(first[1].keys)[:5]]
        fresh = next(self.seqs)
        words = "samples sent again in CBOR, beside a new one"
        yield self.air.case(words, [*resent, fresh], "EX-D-024", form="cbor")
        yield msgspec.structs.replace(
            next(one for one in first if one.result), what="a result, again"
        )

    def hard(self, flood: int) -> Iterator[Case]:
        """Yield what breaks the contract as a whole, each class with something in order behind it."""
        air, seqs = self.air, self.seqs
        for index, case in enumerate(poison.payloads(air, seqs)):
            yield case
            if index % 5 == 4:
                yield self.after_poison(f"a sample after {case.what}")
        yield from poison.topics(air)
        yield poison.result(air)
        yield from poison.oversized(air, seqs)
        yield self.after_poison("a sample after one that is too large")
        yield from poison.flood(air, flood)

    def after_poison(self, what: str) -> Case:
        """Return a sample in order, to come after what is not."""
        return self.air.case(what, [next(self.seqs)], "EX-D-031")

    def _result(self, device: Played, status: str) -> Case:
        result = {"v": 1, "id": str(uuid4()), "status": status, "at": rfc3339(datetime.now(UTC))}
        return Case(
            what="a result",
            topic=device.topic("results"),
            payload=json.dumps(result).encode(),
            result=(str(result["id"]), status),
            proves=("EX-D-032",),
        )
