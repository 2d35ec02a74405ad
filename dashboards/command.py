"""`onestreet dashboards`: pages for Grafana as files, judged, and published."""

from __future__ import annotations

import argparse
import json
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from dashboards.alert_files import write_alerts
from dashboards.files import PROVISIONED, page_files, read, write
from dashboards.judgement import Store, findings, queries, refusals
from dashboards.panels import Source, bucket_of
from dashboards.publishing import Grafana, StoreAddress
from exchange.errors import ConfigError
from exchange.tls import check_https
from exchange.towns import Store as TownStore
from exchange.towns import read_towns

DESCRIPTION = "Pages for operators in Grafana, in Chinese and English. 維運人員的 Grafana 頁面，中英文各一套。"


def run(words: Sequence[str]) -> int:
    """Run the command and return its exit status: 1 where something is wrong. Raises: ConfigError, OnestreetError."""
    chosen = _parser().parse_args(words)
    status: int = chosen.run(chosen)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onestreet dashboards", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser(
        "build", help="writes the pages as files to provision 產生頁面檔，供 Grafana 佈建"
    )
    build.add_argument("--into", type=Path, default=PROVISIONED, metavar="FOLDER")
    build.add_argument(
        "--towns",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="writes these towns' alert rules, too 一併產生這些縣市的警示規則",
    )
    build.add_argument(
        "--alerts",
        type=Path,
        metavar="FOLDER",
        help="where the rules go: Grafana's provisioning/alerting 警示規則的存放處",
    )
    build.set_defaults(run=_build)
    check = commands.add_parser(
        "check", help="judges pages, and tries their queries on an InfluxDB 檢查頁面並試跑查詢"
    )
    check.add_argument(
        "folder", type=Path, nargs="?", help="what build wrote; without it, this version's pages"
    )
    _add_store(check)
    check.set_defaults(run=_check)
    push = commands.add_parser(
        "push", help="publishes pages to a running Grafana 發布到執行中的 Grafana"
    )
    push.add_argument("url", metavar="URL", help="https://HOST:PORT (http:// on loopback)")
    push.add_argument(
        "--token-file",
        type=Path,
        required=True,
        metavar="FILE",
        help="of a service account, Editor or Admin",
    )
    push.add_argument("--ca-file", type=Path, metavar="FILE", help="of Grafana's certificate")
    _add_store(push)
    push.set_defaults(run=_push)
    return parser


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", metavar="URL", help="influxdbs://HOST:PORT/ORG/BUCKET, as in a town's file"
    )
    parser.add_argument(
        "--store-token-file", type=Path, metavar="FILE", help="a token that reads both buckets"
    )
    parser.add_argument("--store-ca-file", type=Path, metavar="FILE")


def _build(chosen: argparse.Namespace) -> int:
    if bool(chosen.towns) is not (chosen.alerts is not None):
        allowed = "must be given together: whose alert rules, and where they go"
        raise ConfigError("command line", "--towns, --alerts", None, allowed)
    changed = write(chosen.into)
    if chosen.towns:
        changed += write_alerts(chosen.alerts, read_towns(chosen.towns))
    for file in changed:
        sys.stdout.write(f"{file}\n")
    return 0


def _check(chosen: argparse.Namespace) -> int:
    store, asked = _store(chosen), 0
    pages = dict(page_files()) if chosen.folder is None else read(chosen.folder)
    found = findings(pages)
    if store is not None and not found:
        buckets = {source.value: bucket_of(source, store.bucket) for source in Source}
        ca_file = str(chosen.store_ca_file or "")
        asking = Store(store.url, store.token, buckets, ca_file)
        for text in pages.values():
            page = json.loads(text)
            asked += sum(1 for _ in queries(page))
            found += refusals(page, asking)
    for words in found:
        sys.stderr.write(f"{words}\n")
    if found:
        return 1
    tried = f", {asked} queries 項查詢" if store else ""
    sys.stdout.write(f"good 頁面無誤: {len(pages)} pages 頁{tried}\n")
    return 0


def _push(chosen: argparse.Namespace) -> int:
    if "@" in chosen.url:
        allowed = "no user and no password stand in it: a token goes by --token-file"
        raise ConfigError("command line", "url", None, allowed)
    check_https("command line", "url", chosen.url)
    token = _token("--token-file", chosen.token_file)
    if chosen.ca_file:
        _authority("--ca-file", chosen.ca_file)
    grafana = Grafana(chosen.url, token, ca_file=str(chosen.ca_file or ""))
    for words in grafana.push(_store(chosen)):
        sys.stdout.write(f"{words}\n")
    return 0


def _store(chosen: argparse.Namespace) -> StoreAddress | None:
    if not chosen.store:
        if chosen.store_token_file or chosen.store_ca_file:
            allowed = "must be given with --store-token-file and --store-ca-file"
            raise ConfigError("command line", "--store", None, allowed)
        return None
    if "@" in chosen.store or "?" in chosen.store:
        allowed = "no secret stands in it: a token goes by --store-token-file"
        raise ConfigError("command line", "--store", None, allowed)
    try:
        bucket = TownStore(url=chosen.store).bucket
    except ValueError as error:
        raise ConfigError("command line", "--store", chosen.store, str(error)) from None
    if bucket is None:
        raise ConfigError("command line", "--store", chosen.store, "Grafana reads an InfluxDB only")
    if chosen.store_token_file is None:
        raise ConfigError("command line", "--store-token-file", None, "must be given with --store")
    token = _token("--store-token-file", chosen.store_token_file)
    ca = _authority("--store-ca-file", chosen.store_ca_file) if chosen.store_ca_file else ""
    return StoreAddress(bucket.url, bucket.bucket, token, ca)


def _token(key: str, file: Path) -> str:
    """Read a token that a header may hold. Raises: ConfigError without a letter of it."""
    token = _text(key, file, errors="replace").strip()
    if not (token and token.isascii() and token.isprintable()):
        raise ConfigError(str(file), key, None, "must hold a token: one line of ASCII, no more")
    return token


def _authority(key: str, file: Path) -> str:
    text = _text(key, file)
    try:
        ssl.create_default_context(cafile=str(file))
    except OSError as error:
        raise ConfigError(str(file), key, None, f"must be certificates in PEM: {error}") from None
    return text


def _text(key: str, file: Path, errors: str = "strict") -> str:
    try:
        return file.read_text(encoding="utf-8", errors=errors)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), key, None, f"must be readable text: {error}") from None
