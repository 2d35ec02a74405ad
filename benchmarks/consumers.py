"""Those that are compared: each with its payloads, its command and its settings.

Telegraf gets what it is best at: flat JSON objects (an array of them where a message holds many
samples) or line protocol; batches of our size; room for everything that it lets the broker send.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.backlog import COUNTY, Load
from benchmarks.processes import BenchmarkFailed
from exchange.readings import PackFormat, Sample, encode_pack
from exchange.topics import PREFIX, Topic
from tests.influx import ORG, Bucket

_encode = msgspec.json.Encoder().encode
_UNDELIVERED = 20_000


class Consumer(ABC):
    """A program that takes samples from a broker into InfluxDB."""

    name: str
    topic_filter: str

    @abstractmethod
    def message(self, topic: Topic, samples: Sequence[Sample]) -> tuple[str, bytes]:
        """Return topic and payload of the message that says this."""

    @abstractmethod
    def command(self, folder: Path, port: int, client_id: str, bucket: Bucket) -> list[str | Path]:
        """Write its settings into a folder and return the command that runs on them."""

    def payloads(self, load: Load) -> Iterator[tuple[str, bytes]]:
        """Yield the topic and payload of each message of a load."""
        for topic, samples in load.packs():
            yield self.message(topic, samples)


class Onestreet(Consumer):
    """`python -m ingest` as it is shipped: validation, quarantine, receipts, PUBACK after the write."""

    def __init__(
        self,
        form: PackFormat = "json",
        *,
        counties: Sequence[str] = (COUNTY,),
        store: str = "",
        max_age_ms: int = 0,
    ) -> None:
        """It takes JSON and CBOR alike; `form` is what it is sent. Without `store` it writes to the bucket."""
        self.name = f"onestreet-{form}"
        self.topic_filter = f"{PREFIX}/{counties[0]}/+/+/+/+/readings"
        self._form: PackFormat = form
        self._counties = list(counties)
        self._store = store
        self._max_age_s = max_age_ms / 1000

    def message(self, topic: Topic, samples: Sequence[Sample]) -> tuple[str, bytes]:
        return str(topic), encode_pack(topic, samples, self._form)

    def command(self, folder: Path, port: int, client_id: str, bucket: Bucket) -> list[str | Path]:
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(bucket.token)
        config = folder / "ingest.toml"
        token = "" if self._store else 'store_token_file = "token"'
        config.write_text(f"""
counties = {_encode(self._counties).decode()}
store = "{self._store or bucket.url}"
{token}
[broker]
host = "127.0.0.1"
port = {port}
client_id = "{client_id}"
[batch]
max_age_s = {self._max_age_s}
""")
        return [sys.executable, "-m", "ingest", config]


class Telegraf(Consumer):
    """inputs.mqtt_consumer into outputs.influxdb_v2."""

    topic_filter = "telegraf/#"

    def __init__(
        self,
        form: Literal["json", "line"] = "json",
        *,
        samples: int = 1,
        same_fields: bool = True,
        flush_ms: int = 1000,
    ) -> None:
        """`samples` at most are in a message; with `same_fields` it carries epoch and seq, too."""
        self.name = f"telegraf-{form}"
        self.flush_ms = flush_ms
        self._form = form
        self._samples = samples
        self._same_fields = same_fields

    def message(self, topic: Topic, samples: Sequence[Sample]) -> tuple[str, bytes]:
        where = f"telegraf/{topic.county}/{topic.site}/{topic.device}"
        if self._form == "line":
            return where, "\n".join(self._line(topic, each) for each in samples).encode()
        flat = [{"t": each.time_ms, **self._fields(each)} for each in samples]
        return where, _encode(flat if len(flat) > 1 else flat[0])

    def command(self, folder: Path, port: int, client_id: str, bucket: Bucket) -> list[str | Path]:
        program = os.environ.get("ONESTREET_TELEGRAF", "")
        if not os.access(program, os.X_OK):
            raise BenchmarkFailed("ONESTREET_TELEGRAF must name Telegraf: `make bench` sees to it")
        form = _FLAT_JSON if self._form == "json" else 'data_format = "influx"'
        config = folder / "telegraf.conf"
        config.write_text(f"""
[agent]
  interval = "1s"
  flush_interval = "{self.flush_ms}ms"
  metric_batch_size = 5000
  metric_buffer_limit = {max(100_000, _UNDELIVERED * self._samples)}
  omit_hostname = true
  skip_processors_after_aggregators = true
[[inputs.mqtt_consumer]]
  servers = ["tcp://127.0.0.1:{port}"]
  topics = ["{self.topic_filter}"]
  qos = 1
  persistent_session = true
  client_id = "{client_id}"
  max_undelivered_messages = {_UNDELIVERED}
  topic_tag = ""
  {form}
[[outputs.influxdb_v2]]
  urls = ["http://127.0.0.1:{bucket.influx.port}"]
  token = "{bucket.token}"
  organization = "{ORG}"
  bucket = "{bucket.name}"
""")
        return [program, "--config", config]

    def _fields(self, sample: Sample) -> dict[str, object]:
        named = {"epoch": sample.epoch, "seq": sample.seq} if self._same_fields else {}
        return {**sample.metrics, **named}

    def _line(self, topic: Topic, sample: Sample) -> str:
        fields = ",".join(f"{name}={value}" for name, value in self._fields(sample).items())
        tags = f"county={topic.county},site={topic.site},device={topic.device}"
        return f"air,{tags} {fields} {sample.row_time_ns}"


_FLAT_JSON = """
  data_format = "json"
  name_override = "air"
  json_time_key = "t"
  json_time_format = "unix_ms"
  [[inputs.mqtt_consumer.topic_parsing]]
    topic = "telegraf/+/+/+"
    tags = "_/county/site/device"
"""
