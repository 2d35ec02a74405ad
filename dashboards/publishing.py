"""Pages and data sources to a running Grafana, over its HTTP API; no other file knows grafana-client.

What is there already is made as it is here; so it can be run again after any change. Nothing else is touched.

Source: grafana.com/docs, HTTP API: folder, dashboard, data source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from grafana_client.api import GrafanaApi
from grafana_client.client import GrafanaClientError, GrafanaException

from dashboards.files import page_files
from dashboards.grafana import PLUGIN
from dashboards.panels import Source, bucket_of
from dashboards.texts import LANGUAGES, Language, say
from exchange.errors import OnestreetError

TIMEOUT_S = 20.0
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
            there = _or_none(lambda: api.get_datasource_by_uid(source.value))
            if store is None:
                if there is None:
                    words = f"has no data source {source.value}: provision it, or give --store"
                    raise GrafanaRefused(f"{self._url}: {words}")
                return
            wanted = _source_json(source, store)
            if there is None:
                api.create_datasource(wanted)
                yield f"data source {source.value}: made"
            else:  # its token cannot be read back, so it is written each time
                api.update_datasource_by_uid(source.value, wanted)
                yield f"data source {source.value}: written"

    def _folder(self, language: Language) -> Iterator[str]:
        api, uid, title = self._api.folder, FOLDERS[language], say("folder", language)
        with self._said():
            there = _or_none(lambda: api.get_folder(uid))
            if there is None:
                api.create_folder(title, uid)
                yield f"folder {title}: made"
            elif there["title"] != title:
                api.update_folder(uid, title=title, overwrite=True)
                yield f"folder {title}: renamed"

    def _page(self, path: str, text: str) -> Iterator[str]:
        page = json.loads(text)
        folder = FOLDERS["zh-TW" if path.startswith("zh-TW") else "en"]
        with self._said():
            there = _or_none(lambda: self._api.dashboard.get_dashboard(page["uid"]))
            if there is not None and _same(there, page, folder):
                return
            asked = {"dashboard": page, "folderUid": folder, "overwrite": True}
            self._api.dashboard.update_dashboard(asked)
            yield f"page {page['uid']}: {'made' if there is None else 'changed'}"

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Translate the client's errors. Shape: no token is part of them."""
        try:
            yield
        except GrafanaException as error:
            raise GrafanaRefused(f"{self._url}: {error.status_code}: {error.message}") from None
        except OSError as error:  # those of the client's connections are among them
            raise GrafanaRefused(f"{self._url}: {error}") from None


def _or_none(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except GrafanaClientError as error:
        if error.status_code == 404:
            return None
        raise


def _same(there: Any, page: dict[str, Any], folder: str) -> bool:
    """Return whether Grafana has this page: with a number and a version of its own beside."""
    found = {
        key: value for key, value in there["dashboard"].items() if key not in ("id", "version")
    }
    return found == page and there["meta"].get("folderUid") == folder


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
