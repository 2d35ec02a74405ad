"""The two that are compared: each with its payloads, its command and its settings.

Telegraf gets what it is best at: one flat JSON object, or line protocol where a message holds many
samples; batches of our size; room for everything that it lets the broker send.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.backlog import COUNTY, Load
from benchmarks.processes import BenchmarkFailed
from exchange.readings import Sample, encode_pack
from exchange.topics import PREFIX, Topic
from tests.influx import ORG, Bucket

_encode = msgspec.json.Encoder().encode


class Consumer(ABC):
    """A program that takes a backlog from a broker into InfluxDB."""

    name: str
    topic_filter: str

    def __init__(self, load: Load) -> None:
        """It is to take in this load."""
        self.load = load

    @abstractmethod
    def payloads(self) -> Iterator[tuple[str, bytes]]:
        """Yield the topic and payload of each message."""

    @abstractmethod
    def command(self, folder: Path, port: int, client_id: str, bucket: Bucket) -> list[str | Path]:
        """Write its settings into a folder and return the command that runs on them."""


class Onestreet(Consumer):
    """`python -m ingest` as it is shipped: validation, quarantine, receipts, PUBACK after the write."""

    name = "onestreet"
    topic_filter = f"{PREFIX}/{COUNTY}/+/+/+/+/readings"

    def payloads(self) -> Iterator[tuple[str, bytes]]:
        for topic, samples in self.load.packs():
            yield str(topic), encode_pack(topic, samples)

    def command(self, folder: Path, port: int, client_id: str, bucket: Bucket) -> list[str | Path]:
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(bucket.token)
        config = folder / "ingest.toml"
        config.write_text(f"""
counties = ["{COUNTY}"]
store = "{bucket.url}"
store_token_file = "token"
[broker]
host = "127.0.0.1"
port = {port}
client_id = "{client_id}"
""")
        return [sys.executable, "-m", "ingest", config]


class Telegraf(Consumer):
    """inputs.mqtt_consumer into outputs.influxdb_v2."""

    name = "telegraf"
    topic_filter = "telegraf/#"

    def __init__(self, load: Load, *, same_fields: bool) -> None:
        """With `same_fields` its messages carry epoch and seq, too, as two more fields."""
        super().__init__(load)
        self._same_fields = same_fields

    def payloads(self) -> Iterator[tuple[str, bytes]]:
        for topic, samples in self.load.packs():
            where = f"telegraf/{topic.county}/{topic.site}/{topic.device}"
            if self.load.samples == 1:
                yield where, _encode({"t": samples[0].time_ms, **self._fields(samples[0])})
            else:
                yield where, "\n".join(self._line(topic, each) for each in samples).encode()

    def command(self, folder: Path, port: int, client_id: str, bucket: Bucket) -> list[str | Path]:
        program = os.environ.get("ONESTREET_TELEGRAF", "")
        if not os.access(program, os.X_OK):
            raise BenchmarkFailed("ONESTREET_TELEGRAF must name Telegraf: `make bench` sees to it")
        form = _FLAT_JSON if self.load.samples == 1 else 'data_format = "influx"'
        config = folder / "telegraf.conf"
        config.write_text(f"""
[agent]
  interval = "1s"
  flush_interval = "1s"
  metric_batch_size = 5000
  metric_buffer_limit = {max(100_000, 20_000 * self.load.samples)}
  omit_hostname = true
  skip_processors_after_aggregators = true
[[inputs.mqtt_consumer]]
  servers = ["tcp://127.0.0.1:{port}"]
  topics = ["{self.topic_filter}"]
  qos = 1
  persistent_session = true
  client_id = "{client_id}"
  max_undelivered_messages = 20000
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
