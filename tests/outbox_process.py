"""An outbox at work in a process of its own, to be killed: `python -m tests.outbox_process FOLDER STAGES BOOT_ID SEED`.

It says on its standard output what it finds (`there`), what it has taken (`took`, once `take` has returned) and what
has its receipt (`gone`, before it is forgotten). Times are of the boot clock.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from edge_agent.clock import Clock, System
from edge_agent.outbox import Outbox, Taken, Waiting
from exchange.delivery import Key

EVERY_S = 0.02


def say(word: str, *rest: object) -> None:
    sys.stdout.write(" ".join([word, *map(str, rest)]) + "\n")


def named(one: Waiting) -> tuple[object, ...]:
    sample = one.sample
    return one.device, sample.epoch, sample.seq, sample.time_ms, int(sample.metrics["number"])


async def main(folder: Path, stages: Path, boot_id: str, seed: int) -> None:
    source, chance = System(), random.Random(seed)
    source.boot_id = boot_id
    clock = Clock(source=source)
    outbox = Outbox(folder, clock=clock, stage_folder=stages)
    await outbox.open()
    waiting = await outbox.after(0, 1_000_000)
    for one in waiting:
        say("there", *named(one))
    say("ready", outbox.depth)
    sys.stdout.flush()
    number = seed * 1_000_000
    while True:
        batch = []
        for device in chance.choices("abc", k=chance.randint(1, 4)):
            number += 1
            stamp_ms = clock.boot_ms()
            batch.append(Taken("air", device, None, {"number": number}, "", stamp_ms))
        took = await outbox.take(batch)
        done_ms = clock.boot_ms()
        for one, reading in zip(took, batch, strict=True):
            say("took", *named(one), reading.boot_ms, done_ms)
        waiting += took
        sys.stdout.flush()
        if chance.random() < 0.1:  # a receipt comes, for many or for few, of late or long ago
            count = chance.randint(1, max(1, len(waiting) // 3))
            start = chance.choice([0, max(0, len(waiting) - count)])
            gone = waiting[start : start + count]
            del waiting[start : start + count]
            for one in gone:
                say("gone", *named(one))
            sys.stdout.flush()
            keys = [Key(one.device, one.sample.epoch, one.sample.seq) for one in gone]
            outbox.forget(keys)
        await asyncio.sleep(EVERY_S)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
