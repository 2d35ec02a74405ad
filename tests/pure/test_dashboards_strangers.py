"""`onestreet dashboards check|push` where tokens, files and answers are not what they are expected to be."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards.command import run
from dashboards.files import page_files
from dashboards.judgement import findings
from dashboards.publishing import GrafanaRefused
from exchange.errors import ConfigError, StoreError

TOKEN = "hidden-token"


def http(status: int, body: bytes, kind: str = "application/json", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{more}Connection: close\r\n\r\n".encode() + body


class Stranger:
    """A server that says the same whatever it is asked. Shape: `asked` is what came, in order."""

    def __init__(self) -> None:
        self.says = b""
        self.asked: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._serving = threading.Thread(target=self._serve)

    def __enter__(self) -> Stranger:
        self._serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._serving.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # until it is closed
            while True:
                client, _ = self._socket.accept()
                with client, contextlib.suppress(OSError):
                    client.settimeout(5)
                    self.asked.append(client.recv(65_536))
                    client.sendall(self.says)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(
                        65_536
                    ):  # a body that came later: closed before, it would reset
                        pass


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    with Stranger() as made:
        yield made


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n", encoding="ascii")
    return file


def check(port: int, token: Path) -> list[str]:
    store = f"influxdb://127.0.0.1:{port}/town/city"
    return ["check", "--store", store, "--store-token-file", str(token)]


def push(port: int, token: Path, *, store: bool = True) -> list[str]:
    words = ["push", f"http://127.0.0.1:{port}", "--token-file", str(token)]
    address = "influxdbs://store.example:8086/town/city"
    return [*words, "--store", address, "--store-token-file", str(token)] if store else words


# -------------------------------------------------------------------------------------------------------- answers

NO_ANSWERS = {
    "html": http(200, b"<html>login</html>", "text/html"),
    "html as json": http(200, b"<html>login</html>"),
    "empty": http(200, b""),
    "null": http(200, b"null"),
    "list": http(200, b"[]"),
    "object": http(200, b"{}"),
    "number": http(200, b'{"results":3}'),
    "nothing": http(200, b'{"results":[]}'),
    "no result": http(200, b'{"results":[5]}'),
    "no utf-8": http(200, b"\xff\xfe\xfd"),
    "no utf-8 inside": http(200, b'{"results":[{"error":"\xff"}]}'),
    "junk": b"\x00\xff junk\r\n\r\n",
    "cut off": http(200, b" " * 99)[:-9],
    "not found": http(404, b"<html>no</html>", "text/html"),
    "bad request": http(400, b"<html>no</html>", "text/html"),
    "unauthorized": http(401, b"<html>no</html>", "text/html"),
}


@pytest.mark.parametrize("says", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_answers_otherwise_than_influxdb_is_named_once(
    says: bytes, stranger: Stranger, token: Path
) -> None:
    stranger.says = says
    with pytest.raises(StoreError, match=f"^http://127.0.0.1:{stranger.port}: .*InfluxDB") as told:
        run(check(stranger.port, token))
    assert len(stranger.asked) == 1
    assert TOKEN not in str(told.value)


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("says", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_answers_otherwise_than_grafana_is_named_once(
    says: bytes,
    store: bool,
    stranger: Stranger,
    token: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stranger.says = says
    broken = "|illegal status line|IncompleteRead"
    allowed = f"^http://127.0.0.1:{stranger.port}: (does not answer as Grafana does: .{broken})"
    with pytest.raises(GrafanaRefused, match=allowed):
        run(push(stranger.port, token, store=store))
    assert len(stranger.asked) == 1
    assert capsys.readouterr().out == ""


def test_what_the_store_says_no_to_is_told_in_its_words(stranger: Stranger, token: Path) -> None:
    stranger.says = http(401, b'{"code":"unauthorized","message":"unauthorized access"}')
    with pytest.raises(StoreError, match=r"401 unauthorized access$"):
        run(check(stranger.port, token))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nobody_is_sent_elsewhere_with_a_token(
    status: int, stranger: Stranger, token: Path
) -> None:
    with Stranger() as other:
        location = f"Location: http://127.0.0.1:{other.port}/x\r\n"
        stranger.says = http(status, b"", more=location)
        with pytest.raises(StoreError, match=f"127.0.0.1:{stranger.port}: .*redirect"):
            run(check(stranger.port, token))
        with pytest.raises(GrafanaRefused, match=f"127.0.0.1:{stranger.port}: .*redirect"):
            run(push(stranger.port, token))
        assert other.asked == []
    assert len(stranger.asked) == 2


# ---------------------------------------------------------------------------------------------- tokens, addresses


@pytest.mark.parametrize(
    "text", ["", "\n", "two\nlines", "hidden\r\nX: y", "hidden\0", "密碼", "é"]
)
@pytest.mark.parametrize("key", ["--token-file", "--store-token-file"])
def test_a_token_that_no_header_may_hold_is_refused_unseen(
    text: str, key: str, tmp_path: Path, token: Path, stranger: Stranger
) -> None:
    bad = tmp_path / "bad"
    bad.write_text(text, encoding="utf-8", newline="")
    words = push(stranger.port, token) if key == "--token-file" else check(stranger.port, token)
    words[words.index(key) + 1] = str(bad)
    with pytest.raises(ConfigError, match="one line") as told:
        run(words)
    assert (told.value.file, told.value.key) == (str(bad), key)
    assert not text.strip() or text.strip()[:3] not in str(told.value)
    assert stranger.asked == []


def test_a_token_in_no_encoding_is_refused_unseen(tmp_path: Path, token: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="one line") as told:
        run(["push", "https://grafana.example", "--token-file", str(bad)])
    assert "ff" not in str(told.value).removeprefix(str(bad))


@pytest.mark.parametrize(
    "url", ["http://me:hidden@127.0.0.1:1", "https://hidden@[::1", "me:hidden@x"]
)
def test_a_password_in_grafanas_address_is_refused_unseen(url: str, token: Path) -> None:
    with pytest.raises(ConfigError, match="--token-file") as told:
        run(["push", url, "--token-file", str(token)])
    assert told.value.key == "url"
    assert "hidden" not in str(told.value).replace(str(token), "")


@pytest.mark.parametrize(
    "store", ["influxdbs://me:hidden@127.0.0.1/o/b", "influxdbs://x/o/b?token=hidden"]
)
def test_a_password_in_the_stores_address_is_refused_unseen(store: str, token: Path) -> None:
    with pytest.raises(ConfigError, match="--store-token-file") as told:
        run(["check", "--store", store, "--store-token-file", str(token)])
    assert told.value.key == "--store"
    assert "hidden" not in str(told.value).replace(str(token), "")


@pytest.mark.parametrize("host", ["a..b", ".a", "x" * 64])
def test_a_host_that_can_be_none_is_named(host: str, token: Path) -> None:
    with pytest.raises(ConfigError) as told:
        run(["push", f"https://{host}", "--token-file", str(token)])
    assert (told.value.key, told.value.value) == ("url", f"https://{host}")
    address = f"influxdbs://{host}/o/b"
    with pytest.raises(ConfigError) as told:
        run(["check", "--store", address, "--store-token-file", str(token)])
    assert (told.value.key, told.value.value) == ("--store", address)


@pytest.mark.parametrize("text", ["", "no certificate\n", "-----BEGIN CERTIFICATE-----\n"])
def test_a_file_without_certificates_is_named(
    text: str, tmp_path: Path, token: Path, stranger: Stranger
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(text, encoding="ascii")
    for key, words in (
        ("--store-ca-file", check(stranger.port, token)),
        ("--store-ca-file", push(stranger.port, token)),
        ("--ca-file", push(stranger.port, token)),
    ):
        with pytest.raises(ConfigError, match="PEM") as told:
            run([*words, key, str(ca)])
        assert (told.value.file, told.value.key) == (str(ca), key)
    assert stranger.asked == []


@pytest.mark.parametrize("key", ["--store-token-file", "--store-ca-file"])
def test_what_belongs_to_a_store_is_refused_without_one(key: str, token: Path) -> None:
    with pytest.raises(ConfigError, match=key) as told:
        run(["check", key, str(token)])
    assert told.value.key == "--store"


# ---------------------------------------------------------------------------------------------------------- pages

NAME = "en/onestreet-overview.json"
Page = dict[str, Any]


def harmed(harm: Callable[[Page], object]) -> dict[str, str]:
    pages = dict(page_files())
    page = json.loads(pages[NAME])
    harm(page)
    return {**pages, NAME: json.dumps(page)}


@pytest.mark.parametrize(
    ("harm", "place"),
    [
        (lambda page: page["templating"].pop("list"), "$.templating"),
        (lambda page: page["templating"]["list"][0].pop("label"), "$.templating.list[0]"),
        (lambda page: page["panels"][0].pop("id"), "$.panels[0]"),
        (lambda page: page["panels"][0].update(gridPos=None), "$.panels[0].gridPos"),
        (lambda page: page["panels"][0]["targets"][0].pop("query"), "$.panels[0].targets[0]"),
        (lambda page: page["panels"][0]["targets"].append(5), "$.panels[0].targets[1]"),
        (lambda page: page["panels"][0].update(title=5), "$.panels[0].title"),
        (lambda page: page["panels"].append({}), "$.panels["),
        (lambda page: page["links"][0].pop("title"), "$.links[0]"),
        (lambda page: page.update(tags=3), "$.tags"),
        (lambda page: page.update(uid=["x"]), "$.uid"),
    ],
)
def test_a_page_that_is_none_of_ours_is_named_with_the_place(
    harm: Callable[[Page], object], place: str
) -> None:
    [words] = findings(harmed(harm))
    assert words.startswith(f"{NAME}: no page of ")
    assert place in words


def test_a_panel_that_asks_nothing_is_no_end_of_judgement() -> None:
    def harm(page: Page) -> None:
        del page["panels"][0]["targets"]

    [words] = findings(harmed(harm))
    assert words == "onestreet-overview: Open incidents: asks nothing"


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "[]", "3", '{"uid": "x"}', ""])
def test_the_other_pages_are_judged_all_the_same(text: str) -> None:
    def harm(page: Page) -> None:
        page["panels"][0]["title"] = ""

    words = findings({**harmed(harm), "en/onestreet-air.json": text})
    assert words[0].startswith("en/onestreet-air.json: no page of ")
    assert words[1:] == ["onestreet-overview: 1: no title"], "links to that page are none to blame"
