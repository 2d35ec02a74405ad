"""Line protocol: what is remembered from one point to the next stays bounded."""

from __future__ import annotations

import tracemalloc

import pytest

from ingest.stores import FieldValue, Point, Series, influxdb
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


def test_what_many_devices_make_up_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(influxdb, "_MAX_BODY_FIELDS", 1000)
    writer = LineWriter()
    tracemalloc.start()
    try:
        for number in range(300):
            fields: dict[str, FieldValue] = {f"x-{number}-{n}": 1.0 for n in range(90)}
            writer.lines([Point(Series("air", "tw-tpe", "street", f"aq-{number}"), 1, fields)])
            if number == 20:
                before, _ = tracemalloc.get_traced_memory()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 200_000


def test_lines_of_devices_that_have_the_same_many_fields() -> None:
    writer = LineWriter()
    for device, add in (("a", 0.5), ("b", 1.5), ("a", 2.5)):
        series = Series("rollup_hour", "tw-tpe", "street", device, "streetlight")
        fields: dict[str, FieldValue] = {"rows": 12, **{f"m{n}": n + add for n in range(70)}}
        [line] = writer.lines([Point(series, 7, fields)]).splitlines()
        wanted = ",".join(f"m{n}={n + add}" for n in range(70))
        tags = f"county=tw-tpe,site=street,device={device},domain=streetlight"
        assert line.decode() == f"rollup_hour,{tags} rows=12i,{wanted} 7"


def test_a_line_of_many_fields_is_a_line_like_any_other() -> None:
    series = Series("air", "tw-tpe", "street", "aq 1")
    fields: dict[str, FieldValue] = {"seq": 1, **{f"m{n}": n / 4 for n in range(50)}}
    fields |= {"on": True, "quality": "bad:fault"}
    [line] = LineWriter().lines([Point(series, 7, fields)]).splitlines()
    wanted = ",".join(f"m{n}={n / 4}" for n in range(50))
    assert line.decode() == (
        f'air,county=tw-tpe,site=street,device=aq\\ 1 seq=1i,{wanted},on=1i,quality="bad:fault" 7'
    )
