"""`onestreet dashboards push` against a server that keeps folders, pages and data sources as Grafana's API does.

No registry has a Grafana. This one follows the documented answers of the few calls that are made, and no more:
404 for what is not there, 412 for a page that would be overwritten unasked, an id and a version of its own in pages.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dashboards.command import run
from dashboards.files import page_files
from dashboards.grafana import uid
from dashboards.pages import PAGES
from dashboards.publishing import FOLDERS, GrafanaRefused
from dashboards.texts import LANGUAGES
from provisioning.authority import Authority
from tests.ports import free_port

TOKEN, STORE_TOKEN = "token-of-an-editor", "token-of-a-reader"
Json = dict[str, Any]


class GrafanaStandIn(ThreadingHTTPServer):
    """What it was told, by kind and uid."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", free_port()), _Handler)
        self.folders: dict[str, Json] = {}
        self.pages: dict[str, Json] = {}
        self.sources: dict[str, Json] = {}
        self.writes: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, path: str, body: Json) -> tuple[int, Json]:
        if method != "GET":
            self.writes.append(f"{method} {path}")
        match method, path.removeprefix("/api/").split("/"):
            case "GET", ["folders", one]:
                return _found(self.folders.get(one))
            case "POST", ["folders"]:
                self.folders[body["uid"]] = body
                return 200, body
            case "PUT", ["folders", one]:
                self.folders[one]["title"] = body["title"]
                return 200, self.folders[one]
            case "GET", ["dashboards", "uid", one]:
                return _found(self.pages.get(one))
            case "POST", ["dashboards", "db"]:
                return self._save(body)
            case "GET", ["datasources", "uid", one]:
                return _found(self.sources.get(one))
            case "POST", ["datasources"]:
                self.sources[body["uid"]] = body
                return 200, {"datasource": body}
            case "PUT", ["datasources", "uid", one]:
                self.sources[one] = body
                return 200, {"datasource": body}
        return 404, {"message": f"{method} {path} is not known here"}

    def _save(self, body: Json) -> tuple[int, Json]:
        page, folder = body["dashboard"], body["folderUid"]
        if folder not in self.folders:
            return 400, {"message": "folder not found"}
        before = self.pages.get(page["uid"])
        if before and not body.get("overwrite"):
            return 412, {"message": "The dashboard has been changed by someone else"}
        version = before["dashboard"]["version"] + 1 if before else 1
        kept = {**page, "id": len(self.pages) + 1, "version": version}
        self.pages[page["uid"]] = {"dashboard": kept, "meta": {"folderUid": folder}}
        return 200, {"status": "success", "uid": page["uid"], "version": version}


class _Handler(BaseHTTPRequestHandler):
    server: GrafanaStandIn

    def _serve(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else {}
        if self.headers["Authorization"] == f"Bearer {TOKEN}":
            status, said = self.server.answer(self.command, self.path, body)
        else:
            status, said = 401, {"message": "Unauthorized"}
        text = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = _serve  # noqa: N815 - the names that http.server asks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing."""


def _found(one: Json | None) -> tuple[int, Json]:
    return (200, one) if one is not None else (404, {"message": "not found"})


@pytest.fixture
def server() -> Iterator[GrafanaStandIn]:
    with GrafanaStandIn() as made:
        serving = threading.Thread(target=made.serve_forever)
        serving.start()
        try:
            yield made
        finally:
            made.shutdown()
            serving.join()


@pytest.fixture
def push(server: GrafanaStandIn, tmp_path: Path) -> list[str]:
    """The words of the command line."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "store.token").write_text(f"{STORE_TOKEN}\n")
    return ["push", server.url, "--token-file", str(tmp_path / "token")]


@pytest.fixture
def store(tmp_path: Path) -> list[str]:
    authority = Authority.create(tmp_path / "authority", "a town")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    file, ca = str(tmp_path / "store.token"), str(tmp_path / "ca.pem")
    url = "influxdbs://store.example:8086/town/city"
    return ["--store", url, "--store-token-file", file, "--store-ca-file", ca]


def test_everything_is_published_once(
    server: GrafanaStandIn, push: list[str], store: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*push, *store]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 2 + len(LANGUAGES) + len(PAGES) * len(LANGUAGES)
    assert STORE_TOKEN not in said
    assert {one: folder["title"] for one, folder in server.folders.items()} == {
        "onestreet-zh-tw": "城市",
        "onestreet-en": "Town",
    }
    for language in LANGUAGES:
        for page in PAGES:
            kept = server.pages[uid(page.name, language)]
            assert kept["meta"]["folderUid"] == FOLDERS[language]
    texts = [json.loads(text) for _, text in page_files()]
    for text in texts:
        kept = server.pages[text["uid"]]["dashboard"]
        assert {**text, "id": kept["id"], "version": 1} == kept


def test_data_sources_are_those_that_pages_name(
    server: GrafanaStandIn, push: list[str], store: list[str]
) -> None:
    run([*push, *store])
    buckets = {one: source["jsonData"]["dbName"] for one, source in server.sources.items()}
    assert buckets == {"onestreet": "city", "onestreet-rollups": "city_rollups"}
    for source in server.sources.values():
        assert source["url"] == "https://store.example:8086"
        assert source["secureJsonData"]["httpHeaderValue1"] == f"Token {STORE_TOKEN}"
        assert source["secureJsonData"]["tlsCACert"].startswith("-----BEGIN")
        assert STORE_TOKEN not in json.dumps(source["jsonData"])


def test_a_second_push_changes_nothing(
    server: GrafanaStandIn, push: list[str], store: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run([*push, *store])
    server.writes.clear()
    capsys.readouterr()
    assert run(push) == 0
    assert server.writes == []
    assert capsys.readouterr().out == ""


def test_what_somebody_changed_is_put_right(
    server: GrafanaStandIn, push: list[str], store: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run([*push, *store])
    capsys.readouterr()
    server.pages["onestreet-air"]["dashboard"]["title"] = "Mine"
    server.pages["onestreet-parking"]["meta"]["folderUid"] = "elsewhere"
    server.folders["onestreet-en"]["title"] = "Old"
    run(push)
    assert capsys.readouterr().out.splitlines() == [
        "folder Town: renamed",
        "page onestreet-parking: changed",
        "page onestreet-air: changed",
    ]
    assert server.pages["onestreet-air"]["dashboard"]["title"] == "Air quality"
    assert server.pages["onestreet-air"]["dashboard"]["version"] == 2


def test_without_data_sources_it_says_what_to_do(server: GrafanaStandIn, push: list[str]) -> None:
    with pytest.raises(GrafanaRefused, match=r"no data source onestreet: .* --store"):
        run(push)
    assert server.writes == []


def test_a_wrong_token_is_said_and_not_shown(
    server: GrafanaStandIn, push: list[str], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("wrong-token")
    with pytest.raises(GrafanaRefused, match="401") as refused:
        run(push)
    assert "wrong-token" not in str(refused.value)


def test_a_grafana_that_is_not_there_is_said(push: list[str]) -> None:
    with pytest.raises(GrafanaRefused, match="127"):
        run(["push", f"http://127.0.0.1:{free_port()}", *push[2:]])
