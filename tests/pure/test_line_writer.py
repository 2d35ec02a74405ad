"""Line protocol: what is remembered from one point to the next stays bounded."""

from __future__ import annotations

import tracemalloc

from ingest.stores import FieldValue, Point, Series
from ingest.stores.influxdb import LineWriter


def test_metrics_that_a_device_makes_up_leave_nothing_behind() -> None:
    writer = LineWriter()
    series = Series("air", "tw-tpe", "street", "aq-1")
    tracemalloc.start()
    try:
        for number in range(30):
            made_up = {f"x-a-{number}-{n}": 1.0 for n in range(2000)}
            line = writer.lines([Point(series, 1, {"seq": number, **made_up})])
            assert line.count(b"=1.0") == 2000
            if not number:
                before, _ = tracemalloc.get_traced_memory()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 500_000


def test_a_line_of_many_fields_is_a_line_like_any_other() -> None:
    series = Series("air", "tw-tpe", "street", "aq 1")
    fields: dict[str, FieldValue] = {"seq": 1, **{f"m{n}": n / 4 for n in range(50)}}
    fields |= {"on": True, "quality": "bad:fault"}
    [line] = LineWriter().lines([Point(series, 7, fields)]).splitlines()
    wanted = ",".join(f"m{n}={n / 4}" for n in range(50))
    assert line.decode() == (
        f'air,county=tw-tpe,site=street,device=aq\\ 1 seq=1i,{wanted},on=1i,quality="bad:fault" 7'
    )
