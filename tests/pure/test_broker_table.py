"""The table `[broker]` that every program has: its keys go together, and its paths are the file's folder's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exchange.broker_table import BrokerTable
from exchange.configuration import converted
from exchange.errors import ConfigError
from exchange.tls import Tls


def table(**keys: Any) -> BrokerTable:
    return converted({"host": "localhost"} | keys, BrokerTable, "f", "broker")


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, ("localhost", 1883)),
        ({"tls": {"ca_file": "ca.pem"}}, ("localhost", 8883)),
        ({"port": 1}, ("localhost", 1)),
        ({"host": "::1"}, ("::1", 1883)),
    ],
)
def test_where_it_is(keys: dict[str, object], wanted: tuple[str, int]) -> None:
    assert table(**keys).address == wanted


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"host": "mqtt.example"}, "broker.tls"),
        ({"username": "u", "password_file": "p", "password_env": "E"}, "broker.password_env"),
        ({"password_file": "p"}, "broker.username"),
        ({"password_env": "E"}, "broker.username"),
    ],
)
def test_keys_that_do_not_go_together(keys: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        table(**keys).check("f")
    assert (caught.value.file, caught.value.key) == ("f", key)


@pytest.mark.parametrize("host", ["", "a..b", "a b", "a\n", "x" * 64])
def test_a_host_is_a_name_or_an_address(host: str) -> None:
    with pytest.raises(ConfigError):
        table(host=host)


def test_its_paths_are_seen_from_its_file() -> None:
    given = table(username="u", password_file="word", tls={"ca_file": "ca.pem", "key_file": "/k"})
    found = given.anchored(Path("/etc/x"))
    assert found.password_file == Path("/etc/x/word")
    assert found.tls == Tls(ca_file=Path("/etc/x/ca.pem"), key_file=Path("/k"))
    assert table().anchored(Path("/etc/x")) == table()
