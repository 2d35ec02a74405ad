"""What the demo shows: every device with its last values, the way of the samples, and the processes."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from exchange.dictionary import dictionary
from exchange.errors import StoreError
from ingest.stores import Point
from onestreet.demo.audit import Audit
from onestreet.demo.files import GATEWAY
from onestreet.demo.run import Demo

REFRESH_S = 0.5
OVERLAP_MS = 3000
RATE_S = 10.0
BUS_WORDS = {
    "serial": "serial 序列埠",
    "modbus": "Modbus RTU",
    "ble": "Bluetooth 藍牙",
}


class Board:
    """What is known so far, from the store alone: what is shown has arrived."""

    def __init__(self, demo: Demo) -> None:
        """Begin with nothing."""
        self._demo = demo
        self._begun_s = time.monotonic()
        self._since_ms = 0
        self._seen: deque[tuple[str, int]] = deque(maxlen=20_000)
        self._known: set[tuple[str, int]] = set()
        self._arrivals: deque[tuple[float, int]] = deque()
        self.last: dict[str, Point] = {}
        self.count: dict[str, int] = {}
        self.gateway: Point | None = None
        self.first_s: float | None = None

    @property
    def stored(self) -> int:
        """Samples of devices that arrived."""
        return sum(self.count.values())

    async def refresh(self) -> None:
        """Take in what arrived since last time. Raises: StoreError."""
        since_ms = max(self._demo.began_ms, self._since_ms - OVERLAP_MS)
        new = 0
        for point in await self._demo.rows(since_ms):
            key = (point.series.device, point.time_ns)
            if key in self._known:
                continue
            self._remember(key)
            new += 1
            device = point.series.device
            self.count[device] = self.count.get(device, 0) + 1
            last = self.last.get(device)
            if last is None or point.time_ns > last.time_ns:
                self.last[device] = point
            self._since_ms = max(self._since_ms, point.time_ms)
        async for point in self._demo.store.rows("gateway", start_ns=since_ms * 1_000_000):
            self.gateway = point
        now_s = time.monotonic()
        if new and self.first_s is None:
            self.first_s = now_s - self._begun_s
        self._arrivals.append((now_s, new))
        while self._arrivals and now_s - self._arrivals[0][0] > RATE_S:
            self._arrivals.popleft()

    def _remember(self, key: tuple[str, int]) -> None:
        if len(self._seen) == self._seen.maxlen:
            self._known.discard(self._seen[0])
        self._seen.append(key)
        self._known.add(key)

    def rate_hz(self) -> float:
        """Samples stored a second, lately."""
        if len(self._arrivals) < 2:
            return 0.0
        span_s = self._arrivals[-1][0] - self._arrivals[0][0]
        return sum(new for _, new in list(self._arrivals)[1:]) / span_s if span_s else 0.0

    # ------------------------------------------------------------------------------------------------- drawing

    def draw(self, note: str = "") -> RenderableType:
        """Return the whole picture."""
        parts = [self._flow(), self._devices(), self._processes()]
        if note:
            parts.append(Text(note, style="bold yellow"))
        return Group(*parts)

    def _flow(self) -> RenderableType:
        fields = self.gateway.fields if self.gateway else {}
        words = Text.assemble(
            ("town time 小鎮時間 ", "dim"), (f"{self._demo.town_time:%H:%M}", "bold"),
            ("   stored 已入庫 ", "dim"), (f"{self.stored}", "bold green"),
            ("   rate 速率 ", "dim"), (f"{self.rate_hz():.1f}/s", "bold"),
            ("   outbox 待送 ", "dim"), (str(fields.get("outbox_depth", "–")), "bold"),
            ("   unreceipted 未回條 ", "dim"), (str(fields.get("unreceipted", "–")), "bold"),
            ("   round trip 往返 ", "dim"), (_number(fields.get("uplink_rtt"), "ms"), "bold"),
            ("   first sample 首筆 ", "dim"), (_number(self.first_s, "s"), "bold"),
        )  # fmt: skip  # a row of pairs
        return Panel(
            words, title=f"onestreet demo · {GATEWAY} · {self._demo.store_url}", title_align="left"
        )

    def _devices(self) -> RenderableType:
        table = Table(expand=True, pad_edge=False, box=None, header_style="bold cyan")
        for heading in (
            "device 設備",
            "domain 領域",
            "bus 匯流排",
            "last values 最新數值",
            "age 距今",
            "stored 筆數",
        ):
            right = heading.startswith(("age", "stored"))
            table.add_column(
                heading, justify="right" if right else "left", no_wrap=True, overflow="ellipsis"
            )
        kinds = {bus.id: bus.kind.partition("-")[0] for bus in self._demo.plan.buses}
        now_ms = time.time() * 1000
        for device in self._demo.plan.devices:
            last = self.last.get(device.id)
            age_s = (now_ms - last.time_ms) / 1000 if last else None
            style = "red" if age_s is None or age_s > 5 else ""
            table.add_row(
                device.id,
                dictionary()[device.domain].zh_tw,
                BUS_WORDS[kinds[device.bus]],
                _values(last) if last else Text("waiting 等待中", style="dim"),
                Text(_number(age_s, "s"), style=style),
                str(self.count.get(device.id, 0)),
            )
        return table

    def _processes(self) -> RenderableType:
        words = Text()
        for name, child in self._demo.children.items():
            up = child.ready.is_set()
            words.append("● ", style="green" if up else "red")
            words.append(f"{name} {child.pid or 'down'}")
            words.append(
                f" (restarts 重啟 {child.restarts})   " if child.restarts else "   ", style="yellow"
            )
        words.append("Ctrl-C drains and audits 結束並稽核", style="dim")
        return Panel(words, title="processes 程序", title_align="left")


def _values(point: Point) -> Text:
    metrics = dictionary()[point.series.measurement].metrics
    words = Text()
    for name, metric in metrics.items():
        value = point.fields.get(name)
        if value is None or isinstance(value, str):
            continue
        if metric.type == "boolean":
            words.append(f"{name} {'yes' if value else 'no'}  ", style="yellow" if value else "")
        else:
            words.append(f"{name} {value:g} {metric.unit}  ")
    return words


def _number(value: object, unit: str) -> str:
    return f"{value:.1f} {unit}" if isinstance(value, int | float) else "–"


async def show(demo: Demo, console: Console) -> None:
    """Draw the board until the demo has ended, and at once when it begins to drain."""
    board = Board(demo)
    with Live(board.draw(), console=console, auto_refresh=False, screen=False) as live:
        while not demo.ended.is_set():
            if demo.began_ms:
                try:
                    await board.refresh()
                except StoreError as error:
                    live.update(board.draw(str(error)), refresh=True)
            is_draining = demo.draining.is_set()
            live.update(board.draw("draining 收尾中 …" if is_draining else ""), refresh=True)
            try:
                async with asyncio.timeout(REFRESH_S):
                    await (demo.ended if is_draining else demo.draining).wait()
            except TimeoutError:
                pass


def draw_audit(audit: Audit) -> RenderableType:
    """Return the audit as a table."""
    table = Table(
        title="audit 稽核: truth against store 真實值與資料庫比對", header_style="bold cyan"
    )
    table.add_column("device 設備")
    for heading in ("taken 已讀", "stored 已存", "refused 拒收", "lost 遺失", "duplicate 重複"):
        table.add_column(heading, justify="right")
    for name, one in audit.devices.items():
        _account(table, name, one.taken, one.stored, one.refused, one.lost, one.duplicate)
    table.add_section()
    _account(
        table, "all 合計", audit.taken, audit.stored, audit.refused, audit.lost, audit.duplicate
    )
    return table


def _account(table: Table, name: str, *counts: int) -> None:
    bad = counts[3] or counts[4] or not counts[1]
    table.add_row(name, *(str(count) for count in counts), style="bold red" if bad else "")
