"""From a town's file to what its lamps saved: the office hands on what roll-ups go by, and nights are measured back."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from ingest.config import load_config
from ingest.days import HOUR_NS, day_of
from ingest.rollups.site_days import DAY, SITE_DAY, SITE_HOUR
from ingest.stores import FieldValue, Point, Series, open_store
from provisioning.office import init
from tests.offices import broker_table, town_text

TAIPEI = ZoneInfo("Asia/Taipei")
FIRST = datetime.now(UTC).date() - timedelta(days=4)
LAST = FIRST + timedelta(days=1)
PLACE = "location = { lat = 25.0, lon = 121.5 }"
LAMPS = {"lamp-1": 60.0, "lamp-2": 40.0}
STEP_NS = HOUR_NS // 6


def lamp_rows() -> list[Point]:
    """Two lamps that burn from 18 to 6 o'clock for two nights; the second one takes a tenth more in the second."""
    midnight_ns = day_of(TAIPEI, FIRST).start_ns
    points = []
    for lamp, rated_w in LAMPS.items():
        energy_wh = 0.0
        for step in range(3 * 24 * 6):
            hour = step // 6 % 24
            burns = not 6 <= hour < 18 and 6 * 12 <= step < 6 * 60
            more = 1.1 if lamp == "lamp-2" and step >= 6 * 36 else 1.0
            power = rated_w * more if burns else 0.0
            row: dict[str, FieldValue] = {
                "epoch": 1,
                "seq": step,
                "power": power,
                "lit": int(burns),
            }
            row["energy"] = round(energy_wh, 3)
            points.append(
                Point(
                    Series("streetlight", "tw-tpe", "street", lamp),
                    midnight_ns + step * STEP_NS + 1,
                    row,
                )
            )
            energy_wh += power / 6
    return points


async def rollups(*words: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "onestreet.cli", "rollups", *words], stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_towns_file_says_against_what_savings_are_told(tmp_path: Path) -> None:
    town = tmp_path / "tw-tpe.toml"
    text = town_text("tw-tpe", broker_table())
    assert PLACE in text
    town.write_text(text)
    office = tmp_path / "office"
    file = str(office / "services" / "rollups" / "ingest.toml")
    nights = "--from", FIRST.isoformat(), "--to", LAST.isoformat()
    days = *nights[:3], (LAST + timedelta(days=1)).isoformat()
    with init([town], office):
        pass
    store = open_store(load_config(office / "services" / "ingest" / "ingest.toml").store)
    await store.write(lamp_rows())

    async def site_rows(measurement: str) -> list[dict[str, FieldValue]]:
        return [point.fields async for point in store.rows(measurement)]

    # Its place is told by every site: lamps that burn by day are known. What they took before is not.
    status, _, _ = await rollups("once", file, *days)
    assert status == 0
    assert len(await site_rows(SITE_DAY)) == 3
    for row in await site_rows(SITE_DAY):
        assert row["day_burners"] == 0
        assert not {name for name in row if "saved" in name or "baseline" in name}
    assert all("day_burners" in row for row in await site_rows(SITE_HOUR))

    # Nights are measured: 12 hours of 60 and 40 W, then of 60 and 44 W.
    status, said, _ = await rollups("baseline", file, *nights, "--each")
    assert status == 0
    assert "# tw-tpe/street: 2 nights, 2 lamps, 4 nights of lamps" in said
    lines = said.splitlines()
    assert "lamp_w = 51.0" in lines
    assert "lamp_watts = { lamp-1 = 60.0, lamp-2 = 42.0 }" in lines
    [error] = [line for line in lines if line.startswith("lamp_w_uncertainty_percent = ")]
    assert float(error.rpartition(" ")[2]) == 3.9  # sqrt(3 * (1 W / 51 W)^2 + (2 %)^2)
    pasted = [line for line in lines if line and line[0] != "#" and "watts" not in line]

    # They are pasted into the town's file, and the office hands them on.
    (office / "towns" / town.name).write_text(text.replace(PLACE, "\n".join([PLACE, *pasted])))
    with init([], office):
        pass
    settings = load_config(Path(file)).rollups.sites["tw-tpe/street"]
    assert (settings.lamp_w, settings.lamp_w_uncertainty_percent) == (51.0, 3.9)
    status, _, _ = await rollups("once", file, *days, "--anew")
    assert status == 0
    first, second, _ = await site_rows(SITE_DAY)
    for row, took_wh in ((first, 12 * 100), (second, 12 * 104)):
        assert abs(float(row["night_saved_wh"]) - (24 * 51 - took_wh)) < 25
        assert row["night_saved_low_wh"] < row["night_saved_wh"] < row["night_saved_high_wh"]  # type: ignore[operator]  # they are numbers
    assert float(first["saved_wh"]) > 0
    assert len([point async for point in store.rows(DAY)]) == 6
    await store.close()


async def test_where_no_night_is_known_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / "ingest.toml"
    file.write_text(
        'counties = ["tw-tpe"]\nstore = "sqlite:///a.sqlite"\n[broker]\nhost = "localhost"\n'
    )
    days = "--from", FIRST.isoformat(), "--to", LAST.isoformat()
    status, out, err = await rollups("baseline", str(file), *days)
    assert (status, out) == (1, "")
    assert "a.sqlite: there is no such store" in err
    store = open_store(f"sqlite:///{tmp_path}/a.sqlite")
    await store.open()
    await store.close()
    status, out, err = await rollups("baseline", str(file), *days)
    assert (status, out) == (1, "")
    assert "no night of a lamp is known" in err
