"""A broker on a command line: what it says, and that no secret of it is said on."""

from __future__ import annotations

import pytest

from exchange.broker_url import BrokerUrl, read_broker_url
from exchange.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("mqtt://localhost", BrokerUrl("localhost", 1883, None, is_tls=False)),
        ("mqtts://broker.example", BrokerUrl("broker.example", 8883, None, is_tls=True)),
        ("mqtts://ops@broker.example:443/", BrokerUrl("broker.example", 443, "ops", is_tls=True)),
        ("mqtt://a%40b@[::1]:1884", BrokerUrl("::1", 1884, "a@b", is_tls=False)),
        ("MQTT://LOCALHOST", BrokerUrl("localhost", 1883, None, is_tls=False)),
    ],
)
def test_what_it_says(url: str, wanted: BrokerUrl) -> None:
    assert read_broker_url(url, "command line", "--broker") == wanted


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://localhost",
        "mqtt://",
        "mqtt://localhost/topic",
        "mqtt://localhost?x=1",
        "mqtt://localhost#x",
        "mqtt://localhost:port",
        "mqtt://localhost:99999",
        "mqtt://[::1",
        "mqtt://ops:s3cret@localhost",
        "mqtt://ops:s3cret@localhost:port",
        "mqtt://:s3cret@localhost",
        "mqtt://ops:s3/cret@localhost",
        "ops:s3cret@localhost",
    ],
)
def test_what_is_none_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigError, match="a password comes from a file") as caught:
        read_broker_url(url, "command line", "--broker")
    assert caught.value.key == "--broker"
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)
