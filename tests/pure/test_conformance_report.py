"""The reports of the conformance kit: what people and machines read."""

from __future__ import annotations

import html.parser
import json
from xml.etree import ElementTree as Xml

import msgspec
import pytest

from exchange.conformance import report as reports
from exchange.conformance.judgement import Judge, Report
from exchange.requirements import REQUIREMENTS, binding

NASTY = '<script>alert("街燈")</script> & \x00\ufffe\x1b[2J\x9b\u202e ]]>'


@pytest.fixture
def report() -> Report:
    judge = Judge("device", f"tw-tpe/gw/{NASTY}")
    judge.kept("EX-T-001", "as it should be", topic="city/v1/a", payload=b'{"level":40}')
    judge.kept("EX-T-001", "again")
    for number in range(7):
        judge.broken("EX-R-001", f"{number} {NASTY}", topic=NASTY, payload=NASTY.encode())
    judge.broken("EX-R-002", "binary", payload=b"\x00\xff" * 5000)
    judge.apart("EX-C-004", NASTY)
    judge.notes.append(NASTY)
    return judge.report()


def by_id(report: Report) -> dict[str, str]:
    return {one.requirement: one.outcome for one in report.verdicts}


def test_every_requirement_of_the_party_has_a_verdict(report: Report) -> None:
    outcomes = by_id(report)
    assert outcomes.keys() == binding("device").keys()
    assert outcomes["EX-T-001"] == "passed"
    assert outcomes["EX-R-001"] == outcomes["EX-R-002"] == "failed"
    assert outcomes["EX-C-004"] == outcomes["EX-R-003"] == "not applicable"
    declared = {name for name, outcome in outcomes.items() if outcome == "declared"}
    assert declared == {n for n, one in binding("device").items() if one.shown == "declared"}


def test_what_does_not_bind_the_party_cannot_be_judged() -> None:
    judge = Judge("device", "x")
    for judged in (judge.kept, judge.broken, judge.apart, judge.withdraw):
        with pytest.raises(KeyError):
            judged("EX-D-004", "not a device's")


def test_what_was_taken_back_is_not_judged() -> None:
    judge = Judge("gateway", "x")
    judge.broken("EX-D-004", "late")
    judge.kept("EX-D-005", "good")
    for requirement in ("EX-D-004", "EX-D-005"):
        judge.withdraw(requirement, "spoiled")
    outcomes = by_id(judge.report())
    assert outcomes["EX-D-004"] == outcomes["EX-D-005"] == "not applicable"


def test_text_has_the_failures_first_and_the_declared_in_brief(report: Report) -> None:
    text = reports.text(report)
    assert all(c == "\n" or c.isprintable() for c in text), "a topic moves no cursor"
    failed, passed = text.index("failed 不符合 (2)"), text.index("passed 符合 (1)")
    assert failed < text.index("EX-R-001") < passed < text.index("EX-T-001")
    assert "broken 7 of 7 times" in text
    assert "seen 2 times" in text
    assert REQUIREMENTS["EX-R-001"].text in text
    assert "EX-R-024" in text
    assert REQUIREMENTS["EX-R-024"].text not in text
    brief = reports.text(report, brief=True)
    assert "EX-R-001" in brief
    assert "EX-T-001" not in brief


def test_json_has_the_fields_that_are_documented(report: Report) -> None:
    found = json.loads(reports.json(report))
    assert found.keys() == {
        *("v", "passed", "counts", "role", "subject", "begun", "seconds", "verdicts", "notes")
    }
    assert (found["v"], found["passed"], found["role"]) == (1, False, "device")
    assert found["counts"]["failed"] == 2
    assert sum(found["counts"].values()) == len(found["verdicts"])
    for one in found["verdicts"]:
        assert one.keys() == {"requirement", "text", "outcome", "reason", "seen", "evidence"}
        for proof in one["evidence"]:
            assert proof.keys() == {"at", "note", "topic", "payload"}
    assert msgspec.convert(found, Report, strict=False) == report


def test_junit_has_a_testcase_for_every_requirement(report: Report) -> None:
    root = Xml.fromstring(reports.junit(report))  # noqa: S314 - our own words
    suite = root.find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    assert len(cases) == len(report.verdicts) == int(suite.attrib["tests"])
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure")) == 2
    assert int(suite.attrib["skipped"]) == len(suite.findall("testcase/skipped")) == len(cases) - 3
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.attrib["type"] == "EX-R-001"
    assert "<script>" in (failure.text or "")
    assert len({case.attrib["name"] for case in cases}) == len(cases)


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: its tags and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_stands_alone_and_runs_nothing(report: Report) -> None:
    text = reports.html(report).decode()
    page = Page(text)
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not any({"src", "href"} & attrs.keys() for _, attrs in page.tags)
    assert "http" not in text
    assert '<script>alert("街燈")</script>' in page.words, "it is shown, and not run"
    assert "Conformance report 符合性檢測報告" in page.words
    assert len([1 for tag, attrs in page.tags if tag == "details" and "open" in attrs]) == 2
    for one in report.verdicts:
        assert one.requirement in page.words
