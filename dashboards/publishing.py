"""Pages and data sources to a running Grafana, over its HTTP API; no other file knows grafana-client.

What is there already is made as it is here; so it can be run again after any change. Nothing else is touched.

Source: grafana.com/docs, HTTP API: folder, dashboard, data source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
from grafana_client.api import GrafanaApi
from grafana_client.client import GrafanaClientError, GrafanaException

from dashboards.files import page_files
from dashboards.grafana import PLUGIN
from dashboards.panels import Source, bucket_of
from dashboards.texts import LANGUAGES, Language, say
from exchange.errors import OnestreetError

TIMEOUT_S = 20.0
MOST_WORDS = 300
"""Of an error: somebody else's may be a page of HTML."""
FOLDERS: dict[Language, str] = {"zh-TW": "onestreet-zh-tw", "en": "onestreet-en"}
"""Their uids."""


class GrafanaRefused(OnestreetError):
    """Grafana does not answer, or says no."""


class StoreAddress(NamedTuple):
    """Where Grafana finds the rows. Shape: `url` is `http(s)://HOST:PORT`, `bucket` that of raw rows."""

    url: str
    bucket: str
    token: str
    ca: str = ""
    """A certificate authority of one's own, in PEM."""


class Grafana:
    """A running Grafana. Shape: `token` is one of a service account that may write folders, pages and sources."""

    def __init__(self, url: str, token: str, *, ca_file: str = "") -> None:
        parts = urlsplit(url)
        self._api = GrafanaApi(
            token,
            host=parts.hostname or "",
            port=parts.port,
            url_path_prefix=f"{parts.path.strip('/')}/".lstrip("/"),
            protocol=parts.scheme,
            verify=ca_file or True,
            timeout=TIMEOUT_S,
        )
        self._url = url
        self._api.client.s.hooks["response"].append(self._stay)

    def push(self, store: StoreAddress | None) -> Iterator[str]:
        """Publish everything, and say each thing that was made or changed. Raises: GrafanaRefused."""
        for source in Source:
            yield from self._source(source, store)
        for language in LANGUAGES:
            yield from self._folder(language)
        for path, text in page_files():
            yield from self._page(path, text)

    def _source(self, source: Source, store: StoreAddress | None) -> Iterator[str]:
        api = self._api.datasource
        with self._said():
            there = _or_none(_Named, lambda: api.get_datasource_by_uid(source.value))
            if store is None:
                if there is None:
                    words = f"has no data source {source.value}: provision it, or give --store"
                    raise GrafanaRefused(f"{self._url}: {words}")
                return
            wanted = _source_json(source, store)
            if there is None:
                _shaped(_SourceWritten, api.create_datasource(wanted))
                yield f"data source {source.value}: made"
            else:  # its token cannot be read back, so it is written each time
                written = api.update_datasource_by_uid(source.value, wanted)
                _shaped(_SourceWritten, written)
                yield f"data source {source.value}: written"

    def _folder(self, language: Language) -> Iterator[str]:
        api, uid, title = self._api.folder, FOLDERS[language], say("folder", language)
        with self._said():
            there = _or_none(_Folder, lambda: api.get_folder(uid))
            if there is None:
                _shaped(_Folder, api.create_folder(title, uid))
                yield f"folder {title}: made"
            elif there.title != title:
                _shaped(_Folder, api.update_folder(uid, title=title, overwrite=True))
                yield f"folder {title}: renamed"

    def _page(self, path: str, text: str) -> Iterator[str]:
        page = json.loads(text)
        folder = FOLDERS["zh-TW" if path.startswith("zh-TW") else "en"]
        with self._said():
            there = _or_none(_Page, lambda: self._api.dashboard.get_dashboard(page["uid"]))
            if there is not None and _same(there, page, folder):
                return
            asked = {"dashboard": page, "folderUid": folder, "overwrite": True}
            _shaped(_Named, self._api.dashboard.update_dashboard(asked))
            yield f"page {page['uid']}: {'made' if there is None else 'changed'}"

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Translate the client's errors, and what is no answer of Grafana's. Shape: no token is part of them."""
        try:
            yield
        except GrafanaException as error:
            known = error.status_code == 0 or _is_refusal(error.response)
            said = " ".join(error.message.split())[:MOST_WORDS]
            words = f"{error.status_code}: {said}"
            raise self._refused(words) if known else self._stranger(words) from None
        except (msgspec.ValidationError, JSONDecodeError, UnicodeDecodeError) as error:
            raise self._stranger(str(error)) from None
        except (OSError, ValueError) as error:  # those of the client's connections are among them
            raise self._refused(str(error)) from None

    def _stay(self, answer: Any, **_: object) -> None:
        """Follow no redirect, with the token and as another question than was asked. Raises: GrafanaRefused."""
        if 300 <= answer.status_code < 400:
            raise self._refused(f"{answer.status_code}: a redirect, and none is followed")

    def _refused(self, words: str) -> GrafanaRefused:
        return GrafanaRefused(f"{self._url}: {words}")

    def _stranger(self, words: str) -> GrafanaRefused:
        return self._refused(f"does not answer as Grafana does: {words}")


class _Named(msgspec.Struct):
    uid: str


class _SourceWritten(msgspec.Struct):
    datasource: dict[str, Any]


class _Folder(msgspec.Struct):
    uid: str
    title: str


class _Page(msgspec.Struct):
    dashboard: dict[str, Any]
    meta: dict[str, Any]


Answer = TypeVar("Answer")


def _shaped(kind: type[Answer], answer: object) -> Answer:
    """Return an answer of Grafana's. Raises: msgspec.ValidationError where it is somebody else's."""
    return msgspec.convert(answer, kind)


def _or_none(kind: type[Answer], get: Callable[[], object]) -> Answer | None:
    try:
        answer = get()
    except GrafanaClientError as error:
        if error.status_code == 404 and _is_refusal(error.response):
            return None
        raise
    return _shaped(kind, answer)


def _is_refusal(response: object) -> bool:
    return isinstance(response, dict) and "message" in response


def _same(there: _Page, page: dict[str, Any], folder: str) -> bool:
    """Return whether Grafana has this page: with a number and a version of its own beside."""
    found = {key: value for key, value in there.dashboard.items() if key not in ("id", "version")}
    return found == page and there.meta.get("folderUid") == folder


def _source_json(source: Source, store: StoreAddress) -> dict[str, Any]:
    """Return a data source as deploy/grafana/provisioning/datasources has it."""
    return {
        "name": source.value,
        "uid": source.value,
        "type": PLUGIN,
        "access": "proxy",
        "url": store.url,
        "isDefault": source is Source.RAW,
        "jsonData": {
            "version": "InfluxQL",
            "httpMode": "POST",
            "dbName": bucket_of(source, store.bucket),
            "httpHeaderName1": "Authorization",
            "tlsAuthWithCACert": bool(store.ca),
        },
        "secureJsonData": {
            "httpHeaderValue1": f"Token {store.token}",
            **({"tlsCACert": store.ca} if store.ca else {}),
        },
    }
