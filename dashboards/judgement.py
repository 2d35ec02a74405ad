"""What is wrong with pages as JSON, and what a real InfluxDB says to their queries."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePath
from typing import Annotated, Any, TypeAlias

import msgspec

from dashboards.grafana import check_model
from dashboards.influxql import INTERVAL
from dashboards.panels import WIDTH, Source
from dashboards.shape import check_shape
from exchange.errors import StoreError

PageJson: TypeAlias = Mapping[str, Any]
TIMEOUT_S = 30.0
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_TIME_BOUND = re.compile(r"\$timeFilter|\btime > now\(\) - ")
_FIT_VARIABLES = {"county": ".*", "site": ".*", "device": ".*"}
_INTERVAL = "10m"


@dataclass(frozen=True)
class Query:
    """A query of a page. Shape: `text` is as Grafana has it before it fills it in."""

    page: str
    place: str
    """The panel's or variable's title."""
    source: str
    text: str

    def filled(
        self,
        variables: Mapping[str, str] = _FIT_VARIABLES,
        time_range: str = "time > now() - 7d",
        interval: str = _INTERVAL,
    ) -> str:
        """Return the query as Grafana asks it: everything chosen, the last week, unless told otherwise."""
        text = self.text
        for name, value in variables.items():
            text = text.replace(f"${{{name}:regex}}", value)
        return text.replace("$timeFilter", time_range).replace(INTERVAL, interval)


@dataclass(frozen=True)
class Store:
    """An InfluxDB to try queries on. Shape: `buckets` by data source; `url` is `http(s)://HOST:PORT`."""

    url: str
    token: str
    buckets: Mapping[str, str]
    ca_file: str = ""

    def ask(self, source: str, text: str) -> list[dict[str, Any]]:
        """Return the series of an answer. Raises: ValueError with the store's words; StoreError."""
        status, body = self._answer(source, text)
        if 300 <= status < 400:
            raise StoreError(f"{self.url}: {status}: a redirect, and none is followed")
        try:
            if status == 200:
                [result] = msgspec.json.decode(body, type=_Answer).results
                refused, words = bool(result.error), result.error
            else:
                said = msgspec.json.decode(body, type=_Refusal)
                refused, words = status in (400, 422), said.error or said.message
        except ValueError as error:
            raise self._stranger(f"{status}, {error}") from None
        if refused:
            raise ValueError(words)
        if status != 200:
            raise StoreError(f"{self.url}: {status} {words}")
        return result.series

    def _answer(self, source: str, text: str) -> tuple[int, bytes]:
        asked = urllib.parse.urlencode({"db": self.buckets[source], "q": text, "epoch": "ms"})
        request = urllib.request.Request(  # noqa: S310 - checked by the command line
            f"{self.url}/query", asked.encode(), {"Authorization": f"Token {self.token}"}
        )
        tls = ssl.create_default_context(cafile=self.ca_file) if self.ca_file else None
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=tls), _AsItIs)
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise self._stranger(repr(error)) from None
        except OSError as error:
            raise StoreError(f"{self.url}: {error}") from None

    def _stranger(self, words: str) -> StoreError:
        return StoreError(f"{self.url}: does not answer as InfluxDB does: {words}")


class _AsItIs(urllib.request.HTTPErrorProcessor):
    """Takes every answer as it is: nobody is sent elsewhere with a token."""

    def http_response(
        self,
        request: urllib.request.Request,  # noqa: ARG002 - both methods have it by this name
        response: http.client.HTTPResponse,
    ) -> http.client.HTTPResponse:
        return response

    https_response = http_response


class _Result(msgspec.Struct):
    series: list[dict[str, Any]] = []
    error: str = ""


class _Answer(msgspec.Struct):
    results: Annotated[list[_Result], msgspec.Meta(min_length=1, max_length=1)]


class _Refusal(msgspec.Struct):
    """Shape: one of both is there; `message` is version 2's."""

    error: str = ""
    message: str = ""

    def __post_init__(self) -> None:
        if not (self.error or self.message):
            raise ValueError("no words")


def findings(pages: Mapping[str, str]) -> list[str]:
    """Return what is wrong with pages, given by file, a line each, naming page and panel; first what is none."""
    found: list[str] = []
    read: list[PageJson] = []
    uids: list[str] = []
    for file, text in pages.items():
        try:
            page = json.loads(text)
            check_shape(page)
            check_model(text)
        except msgspec.ValidationError as error:
            found.append(f"{file}: no page of ours: {error}")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            found.append(f"{file}: no page of Grafana's: {error!r}")
        else:
            read.append(page)
            uids.append(page["uid"])
            continue
        uids.append(PurePath(file).stem)  # so that links to it are judged all the same
    found += [f"{uid}: two pages have this uid" for uid in sorted(set(uids)) if uids.count(uid) > 1]
    for page in read:
        found += [f"{page['uid']}: {words}" for words in _of_page(page, set(uids))]
    return found


def queries(page: PageJson) -> Iterator[Query]:
    """Return every query of a page: its panels', folded ones too, and its variables'."""
    uid = page["uid"]
    for variable in page["templating"]["list"]:
        text = variable["query"]["query"]
        yield Query(uid, variable["label"], variable["datasource"]["uid"], text)
    for panel in panels(page):
        for target in panel.get("targets", []):
            yield Query(uid, panel["title"], target["datasource"]["uid"], target["query"])


def refusals(page: PageJson, store: Store) -> list[str]:
    """Return which queries of a page a store does not take. Raises: StoreError."""
    found = []
    for query in queries(page):
        try:
            store.ask(query.source, query.filled())
        except ValueError as error:
            found.append(f"{query.page}: {query.place}: {error}: {query.text}")
    return found


def panels(page: PageJson) -> Iterator[dict[str, Any]]:
    """Return every panel that asks something, folded ones too."""
    for panel in page["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def _of_page(page: PageJson, uids: set[str]) -> Iterator[str]:
    everything = [one for panel in page["panels"] for one in (panel, *panel.get("panels", []))]
    ids = [panel["id"] for panel in everything]
    yield from (f"two panels have the id {one}" for one in sorted(set(ids)) if ids.count(one) > 1)
    yield from _overlaps(page["panels"])
    for row in page["panels"]:
        if row["type"] == "row":
            yield from _overlaps(row.get("panels", []))
    for panel in panels(page):
        title = panel.get("title", "")
        yield from (f"{title or panel['id']}: {words}" for words in _of_panel(panel))
    for query in queries(page):
        if not query.text.startswith("SHOW ") and not _TIME_BOUND.search(query.text):
            yield f"{query.place}: a query without an end in time: {query.text}"
        if query.source not in set(Source):
            yield f"{query.place}: no data source of ours: {query.source}"
    yield from _untranslated(page)
    for url in _urls(page):
        target = re.match(r"/d/([\w-]+)", url)
        if not target or target[1] not in uids:
            yield f"a link leads to no page: {url}"


def _of_panel(panel: Mapping[str, Any]) -> Iterator[str]:
    for key in ("title", "description"):
        if not panel.get(key):
            yield f"no {key}"
    config = panel.get("fieldConfig", {})
    units = [config.get("defaults", {}).get("unit")]
    units += [
        one["value"]
        for override in config.get("overrides", [])
        for one in override["properties"]
        if one["id"] == "unit"
    ]
    if not all(units):
        yield "no unit"
    if not config.get("defaults", {}).get("noValue"):
        yield "says nothing where there are no rows"
    if not panel.get("targets"):
        yield "asks nothing"


def _overlaps(shown: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for panel in shown:
        place = panel["gridPos"]
        if place["x"] < 0 or place["w"] < 1 or place["x"] + place["w"] > WIDTH:
            yield f"{panel['title']}: reaches out of the grid"
    for one, other in combinations(shown, 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        if not beside and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]:
            yield f"{one['title']} lies upon {other['title']}"


def _untranslated(page: PageJson) -> Iterator[str]:
    """Return words of the other language: Chinese pages have Chinese in every text, English ones in none."""
    chinese = "onestreet-zh-TW" in page["tags"]
    for words in _words(page):
        if bool(_CHINESE.search(words)) is not chinese:
            yield f"not translated: {words}"


def _words(page: PageJson) -> Iterator[str]:
    yield page["title"]
    yield page["description"]
    for link in page["links"]:
        if link["icon"] != "external link":  # that one names the other language, in it
            yield link["title"]
    for variable in page["templating"]["list"]:
        yield variable["label"]
        yield variable["description"]
    for panel in page["panels"]:
        yield panel["title"]
    for panel in panels(page):
        yield panel["title"]
        yield panel.get("description", "")
        yield from _said(panel.get("fieldConfig", {}))


def _said(config: object) -> Iterator[str]:
    """Return the words in a panel's looks, however deep they stand."""
    if isinstance(config, Mapping):
        if config.get("id") == "displayName":
            yield str(config.get("value", ""))
        for key, value in config.items():
            if key in ("noValue", "text", "title") and isinstance(value, str):
                yield value
            else:
                yield from _said(value)
    elif isinstance(config, list):
        for one in config:
            yield from _said(one)


def _urls(value: object) -> Iterator[str]:
    """Return every address in a page, however deep it stands."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            if key == "url" and isinstance(one, str):
                if one:  # a list of pages has none
                    yield one
            else:
                yield from _urls(one)
    elif isinstance(value, list):
        for one in value:
            yield from _urls(one)
