"""The plan and the report on a console."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from onestreet.demo.audit import total
from tests.chaos.plan import Fault
from tests.chaos.run import Report


def show_plan(console: Console, plan: Sequence[Fault]) -> None:
    """Print what will be done."""
    table = Table(title="plan", header_style="bold")
    for heading in ("at s", "track", "fault", "for s"):
        table.add_column(heading, justify="right" if heading.endswith(" s") else "left")
    for fault in plan:
        table.add_row(f"{fault.at_s:.1f}", fault.track, fault.kind, f"{fault.for_s:.1f}")
    console.print(table)


def show_report(console: Console, report: Report) -> None:
    """Print what was found."""
    table = Table(title="faults and recovery", header_style="bold")
    for heading in (
        "begun s",
        "fault",
        "healed after s",
        "first stored after s",
        "drained after s",
    ):
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    for done in report.faults:
        table.add_row(
            f"{done.begun_s:.1f}",
            done.fault.kind,
            f"{done.healed_s - done.begun_s:.1f}",
            _seconds(done.first_stored_s),
            _seconds(done.drained_s),
        )
    console.print(table)
    accounts = Table(title="truth against store", header_style="bold")
    names = ("taken", "stored", "refused", "lost", "altered", "untold", "duplicate", "foreign")
    accounts.add_column("")
    for name in (*names, "in hand"):
        accounts.add_column(name, justify="right")
    accounts.add_row("load", *(str(getattr(report.load, name)) for name in names), "")
    street = total(report.street.devices)
    cells = {name: str(getattr(street, name, "")) for name in names}
    accounts.add_row("agent with twins", *cells.values(), str(street.in_hand))
    names_only = {"stored": report.street.rows, "lost": report.street.missing}
    names_only["duplicate"] = report.street.duplicate
    accounts.add_row("agent, by names", *(str(names_only.get(name, "")) for name in names), "")
    console.print(accounts)
    memory = report.memory
    outages = ", ".join(f"{first:.1f} → {last:.1f}" for first, last in memory.outages) or "none"
    console.print(
        f"memory of ingest: idle {memory.idle_mib:.1f} MiB, peak {memory.peak_mib:.1f} MiB,"
        f" bound {memory.bound_mib:.1f} MiB; in outages of the store: {outages} MiB"
    )
    console.print(
        f"longest gap {report.longest_gap_s:.1f} s ({report.longest_gap_device}),"
        f" {report.resends} packs sent again, drained in {report.drain_s:.1f} s"
    )
    died = ", ".join(f"{name} {count}" for name, count in report.deaths.items() if count)
    console.print(f"died by themselves: {died or 'none'}")
    for words in report.wrong:
        console.print(f"[bold red]{words}", markup=True, soft_wrap=True)
    console.print("[bold red]FAILED" if report.wrong else "[bold green]nothing lost, nothing twice")


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"
