"""A report as people and machines read it: plain text, JSON, JUnit XML, one HTML page."""

from __future__ import annotations

import html as markup
import json as plain
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args
from xml.etree import ElementTree as Xml

import msgspec

from exchange.conformance.judgement import Evidence, Outcome, Report, Verdict
from exchange.moments import rfc3339

ORDER: tuple[Outcome, ...] = ("failed", "passed", "not applicable", "declared")
WORDS: dict[Outcome, str] = {
    "failed": "failed 不符合",
    "passed": "passed 符合",
    "not applicable": "not applicable 不適用或未測",
    "declared": "declared 須自行聲明",
}
ROLES = {
    "device": "device 設備",
    "gateway": "gateway 閘道器",
    "ingest": "ingest 資料接收端",
    "application": "application 應用程式",
    "broker": "broker 訊息代理",
}
assert set(ORDER) == set(WORDS) == set(get_args(Outcome))


def counts(report: Report) -> dict[Outcome, int]:
    """Return how many requirements ended each way."""
    counted = Counter(one.outcome for one in report.verdicts)
    return {outcome: counted[outcome] for outcome in ORDER}


# ---------------------------------------------------------------------------------------------------- plain text


def text(report: Report, *, brief: bool = False) -> str:
    """Return the report for a terminal; `brief` leaves out what is not broken."""
    lines = [f"{ROLES[report.role]}: {report.subject}", ""]
    for outcome in ORDER:
        found = [one for one in report.verdicts if one.outcome == outcome]
        if not found or (brief and outcome != "failed"):
            continue
        lines.append(f"{WORDS[outcome]} ({len(found)})")
        if outcome == "declared":
            lines += [f"  {' '.join(one.requirement for one in found)}", ""]
            continue
        for one in found:
            if outcome == "failed":
                lines += _broken(one)
            elif outcome == "passed":
                lines.append(f"  {one.requirement}  {one.reason:<18}{_cut(one.text, 70)}")
            else:
                lines.append(f"  {one.requirement}  {one.reason}")
        lines.append("")
    if report.notes:
        lines += ["noticed 另外發現", *(f"  {note}" for note in report.notes), ""]
    summed = ", ".join(f"{WORDS[outcome]} {n}" for outcome, n in counts(report).items())
    lines.append(f"{summed}; {report.seconds:g} s")
    return "\n".join(map(_harmless, "\n".join(lines).split("\n"))) + "\n"


def _harmless(line: str) -> str:
    """Return a line without what moves a terminal's cursor: a topic, too, is a stranger's word."""
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line)


def _broken(one: Verdict) -> list[str]:
    lines = [f"  {one.requirement}  {one.text}", f"             {one.reason}"]
    for proof in one.evidence:
        lines.append(f"             {rfc3339(proof.at)}  {proof.note}")
        if proof.topic:
            lines.append(f"               {proof.topic}")
        if proof.payload:
            lines.append(f"               {_cut(proof.payload, 200)}")
    return lines


def _cut(words: str, length: int) -> str:
    return words if len(words) <= length else f"{words[: length - 1]}…"


# ------------------------------------------------------------------------------------------------------- machines


def json(report: Report) -> bytes:
    """Return the report as JSON: the fields of `judgement.Report`, and `counts` and `passed` beside them."""
    shape: dict[str, Any] = {
        "v": 1,
        "passed": not report.failed and counts(report)["passed"] > 0,
        "counts": counts(report),
        **msgspec.to_builtins(report),
    }
    return plain.dumps(shape, ensure_ascii=False, indent=2).encode() + b"\n"


def junit(report: Report) -> bytes:
    """Return the report as JUnit XML: one testcase a requirement; what was not judged is skipped."""
    counted = counts(report)
    totals = {
        "tests": str(len(report.verdicts)),
        "failures": str(counted["failed"]),
        "errors": "0",
        "skipped": str(counted["not applicable"] + counted["declared"]),
        "time": f"{report.seconds:.3f}",
    }
    name = f"onestreet conform {report.role}"
    root = Xml.Element("testsuites", {"name": name} | totals)
    del root.attrib["skipped"]  # what the schemas of CI systems have on suites alone
    stamp = rfc3339(report.begun).removesuffix("Z")
    suite = Xml.SubElement(root, "testsuite", {"name": name, "timestamp": stamp} | totals)
    properties = Xml.SubElement(suite, "properties")
    Xml.SubElement(properties, "property", name="subject", value=_xml(report.subject))
    for one in report.verdicts:
        case = Xml.SubElement(
            suite,
            "testcase",
            classname=f"exchange.{report.role}",
            name=f"{one.requirement} {one.text}",
            time="0",
        )
        if one.outcome == "failed":
            failure = Xml.SubElement(case, "failure", type=one.requirement, message=one.reason)
            failure.text = _xml("\n".join(_shown(proof) for proof in one.evidence))
        elif one.outcome != "passed":
            Xml.SubElement(case, "skipped", message=_xml(f"{one.outcome}: {one.reason}"))
    if report.notes:
        Xml.SubElement(suite, "system-out").text = _xml("\n".join(report.notes))
    Xml.indent(root)
    written: bytes = Xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _shown(proof: Evidence) -> str:
    return " ".join(
        part for part in (rfc3339(proof.at), proof.note, proof.topic, proof.payload) if part
    )


def _xml(words: str) -> str:
    """Return the text without what XML 1.0 cannot hold."""
    return "".join(
        c
        if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
        else "\ufffd"
        for c in words
    )


# ----------------------------------------------------------------------------------------------------------- page

_STYLE = """
:root{color-scheme:light dark;--bad:#b3261e;--good:#1b6e3c;--dim:#6b6f76;--line:#8884}
body{font:16px/1.5 system-ui,"Noto Sans TC","PingFang TC","Microsoft JhengHei",sans-serif;
margin:0 auto;padding:1rem;max-width:60rem;overflow-wrap:anywhere}
h1{font-size:1.3rem;margin:0}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}
p{margin:.3rem 0}.dim{color:var(--dim)}
.verdict{font-weight:600;font-size:1.15rem}.failed{color:var(--bad)}.passed{color:var(--good)}
table{border-collapse:collapse;width:100%}td{padding:.1rem .8rem .1rem 0}
details,.row{border-top:1px solid var(--line);padding:.45rem 0}
summary{cursor:pointer}code,pre{font:13px/1.45 ui-monospace,monospace}
.id{font-weight:600;white-space:nowrap}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#8881;padding:.5rem;margin:.3rem 0;
max-height:12rem;overflow-y:auto}
"""


_SUMMED = {
    "failed": "Requirements are broken 有要求未符合",
    "passed": "No requirement broken 沒有違反任何要求",
    "dim": "Nothing could be judged 無法判定",
}


def html(report: Report) -> bytes:
    """Return the report as one self-contained page, for a phone as for a desk."""
    esc = markup.escape
    counted = counts(report)
    outcome = "failed" if counted["failed"] else "passed" if counted["passed"] else "dim"
    title = f"{ROLES[report.role]} {report.subject}"
    rows = "".join(
        f'<tr><td class="{kind.split()[0]}">{WORDS[kind]}</td><td>{n}</td></tr>'
        for kind, n in counted.items()
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{esc(title)}</title><style>{_STYLE}</style>",
        f"<h1>Conformance report 符合性檢測報告</h1><p>{esc(title)}</p>",
        f'<p class="dim">{rfc3339(report.begun)}, {report.seconds:g} s</p>',
        f'<p class="verdict {outcome}">{_SUMMED[outcome]}</p><table>{rows}</table>',
    ]
    for kind in ORDER:
        found = [one for one in report.verdicts if one.outcome == kind]
        if found:
            parts.append(f"<h2>{WORDS[kind]} ({len(found)})</h2>")
            parts += [_entry(one) for one in found]
    if report.notes:
        parts.append("<h2>Noticed 另外發現</h2>")
        parts += [f'<div class="row">{esc(note)}</div>' for note in report.notes]
    return "\n".join([*parts, "</html>", ""]).encode()


def _entry(one: Verdict) -> str:
    esc = markup.escape
    head = (
        f'<span class="id {one.outcome.split()[0]}">{one.requirement}</span> {esc(one.text)}'
        f' <span class="dim">{esc(one.reason)}</span>'
    )
    if not one.evidence:
        return f'<div class="row">{head}</div>'
    is_open = " open" if one.outcome == "failed" else ""
    return f"<details{is_open}><summary>{head}</summary>{_proofs(one.evidence)}</details>"


def _proofs(found: Sequence[Evidence]) -> str:
    esc = markup.escape
    return "".join(
        f"<p>{rfc3339(proof.at)} {esc(proof.note)}</p>"
        + (f"<code>{esc(proof.topic)}</code>" if proof.topic else "")
        + (f"<pre>{esc(proof.payload)}</pre>" if proof.payload else "")
        for proof in found
    )
