"""Those that poll meters, beside each other: each with its settings and the command that runs on them.

Each gets what it is best at; where that is not its default, the words are beside it.
"""

from __future__ import annotations

import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from benchmarks import meters
from benchmarks.backlog import COUNTY, SITE
from benchmarks.machine import ROOT
from benchmarks.processes import BenchmarkFailed
from exchange.configuration import toml_table

DOMAIN = "streetlight"
_PAUSE_MS = 5  # the line's 3.5 characters of silence: the peers leave them out unless told


class Launch(NamedTuple):
    """What to start, where, and in which environment."""

    argv: list[str | Path]
    folder: Path
    environment: Mapping[str, str]


class Meters(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be polled: meters by unit id with how many values each has."""

    tags: dict[int, int]
    interval_s: float
    timeout_s: float


class Poller(ABC):
    """A program that polls meters."""

    name: str

    @abstractmethod
    def serial(self, folder: Path, port: Path, baud: int, polled: Meters, broker: int) -> Launch:
        """Write its settings for meters on a serial line; `broker` is an MQTT broker's port."""


class NetworkPoller(Poller):
    """One that polls over Modbus TCP, too."""

    @abstractmethod
    def network(self, folder: Path, port: int, polled: Meters, broker: int) -> Launch:
        """Write its settings for meters behind a port of this machine."""


class Onestreet(NetworkPoller):
    """`python -m edge_agent` as it is shipped: outbox on disk, packs to the broker, receipts.

    Shape: with `discarding` readings end where they came from the bus (`benchmarks.discarding`).
    """

    def __init__(
        self,
        *,
        discarding: bool = False,
        profile: Path | None = None,
        tables: Iterable[str] = (),
    ) -> None:
        """`profile` is where to note where its CPU time goes; `tables` are further ones of its file."""
        self.name = "onestreet, discarding" if discarding else "onestreet"
        self._module = "benchmarks.discarding" if discarding else "edge_agent"
        self._profile = profile
        self._tables = list(tables)

    def serial(self, folder: Path, port: Path, baud: int, polled: Meters, broker: int) -> Launch:
        bus = {"kind": "modbus-rtu", "port": str(port), "baudrate": baud}
        return self._launch(folder, bus, polled, broker)

    def network(self, folder: Path, port: int, polled: Meters, broker: int) -> Launch:
        bus = {"kind": "modbus-tcp", "host": meters.HOST, "port": port}
        return self._launch(folder, bus, polled, broker)

    def _launch(self, folder: Path, bus: dict[str, object], polled: Meters, broker: int) -> Launch:
        environment = meters.install(folder / "drivers", polled.tags.values())
        config = folder / "edge.toml"
        config.write_text(
            "\n".join(
                [
                    gateway_tables(folder, broker),
                    *self._tables,
                    toml_table("[[bus]]", id="line", timeout_s=polled.timeout_s, **bus),
                    *(
                        toml_table(
                            "[[device]]",
                            id=f"meter-{unit:03d}",
                            domain=DOMAIN,
                            driver=meters.driver_id(tags),
                            bus="line",
                            interval_s=polled.interval_s,
                            settings={"unit": unit},
                        )
                        for unit, tags in polled.tags.items()
                    ),
                ]
            ),
            encoding="utf-8",
        )
        sampler: list[str | Path] = []
        if self._profile is not None:
            sampler = ["benchmarks.sampler", self._profile]
        return Launch([sys.executable, "-m", *sampler, self._module, config], ROOT, environment)


def gateway_tables(folder: Path, broker: int) -> str:
    """Return the tables that every agent's file of a benchmark begins with; the folder names the gateway."""
    return "\n".join(
        [
            toml_table(
                "[gateway]",
                id=folder.name,
                county=COUNTY,
                site=SITE,
                state_dir=str(folder / "state"),
                label={"en": "Cabinet", "zh-TW": "機箱"},
            ),
            toml_table("[broker]", host="127.0.0.1", port=broker),
        ]
    )


class Telegraf(NetworkPoller):
    """inputs.modbus, one request a meter, to outputs.mqtt or outputs.discard.

    Shape: one plugin for the whole line, since two would speak at once.
    """

    def __init__(self, form: Literal["json", "influx", "discard"] = "discard") -> None:
        self.name = {
            "json": "Telegraf, JSON",
            "influx": "Telegraf, line protocol",
            "discard": "Telegraf, discarding",
        }[form]
        self._form = form

    def serial(self, folder: Path, port: Path, baud: int, polled: Meters, broker: int) -> Launch:
        lines = [
            f'  controller = "file://{port}"',
            f"  baud_rate = {baud}",
            '  transmission_mode = "RTU"',
        ]
        pause = f'  [inputs.modbus.workarounds]\n    pause_between_requests = "{_PAUSE_MS}ms"'
        return self._launch(folder, lines, [pause], polled, broker)

    def network(self, folder: Path, port: int, polled: Meters, broker: int) -> Launch:
        lines = [f'  controller = "tcp://{meters.HOST}:{port}"']
        return self._launch(folder, lines, [], polled, broker)

    def _launch(
        self, folder: Path, lines: list[str], last: list[str], polled: Meters, broker: int
    ) -> Launch:
        program = os.environ.get("ONESTREET_TELEGRAF", "")
        if not os.access(program, os.X_OK):
            raise BenchmarkFailed("ONESTREET_TELEGRAF must name Telegraf: `make bench` sees to it")
        config = folder / "telegraf.conf"
        interval_ms = round(1000 * polled.interval_s)
        config.write_text(
            "\n".join(
                [
                    "[agent]",
                    f'  interval = "{interval_ms}ms"',
                    f'  flush_interval = "{min(interval_ms, 1000)}ms"',
                    "  metric_batch_size = 5000",
                    "  metric_buffer_limit = 100000",
                    "  omit_hostname = true",
                    "  skip_processors_after_aggregators = true",
                    "[[inputs.modbus]]",
                    '  name = "line"',
                    f'  timeout = "{round(1000 * polled.timeout_s)}ms"',
                    '  configuration_type = "request"',
                    *lines,
                    *(self._request(unit, tags) for unit, tags in polled.tags.items()),
                    *last,
                    *self._output(broker),
                    "",
                ]
            ),
            encoding="utf-8",
        )
        return Launch([program, "--config", config], folder, os.environ)

    @staticmethod
    def _request(unit: int, tags: int) -> str:
        fields = ", ".join(
            f'{{ address = {2 * n}, name = "t{n:03d}", type = "FLOAT32" }}' for n in range(tags)
        )
        return "\n".join(
            [
                "  [[inputs.modbus.request]]",
                f"    slave_id = {unit}",
                '    byte_order = "ABCD"',
                '    register = "holding"',
                f"    fields = [{fields}]",
            ]
        )

    def _output(self, broker: int) -> list[str]:
        if self._form == "discard":
            return ["[[outputs.discard]]"]
        return [
            "[[outputs.mqtt]]",
            f'  servers = ["tcp://127.0.0.1:{broker}"]',
            """  topic = 'telegraf/{{ .Tag "slave_id" }}'""",
            "  qos = 1",
            "  keep_alive = 30",
            f'  data_format = "{self._form}"',
        ]


class ThingsBoard(Poller):
    """thingsboard-gateway with one serial connector, its telemetry to a broker that stands in for the server.

    Shape: it reads value by value; a range of addresses makes one request of a meter's values.
    """

    name = "thingsboard-gateway"

    def serial(self, folder: Path, port: Path, baud: int, polled: Meters, broker: int) -> Launch:
        place = os.environ.get("ONESTREET_THINGSBOARD_GATEWAY", "")
        program = Path(place) / "bin" / "thingsboard-gateway"
        if not os.access(program, os.X_OK):
            raise BenchmarkFailed(
                "ONESTREET_THINGSBOARD_GATEWAY must name its virtual environment:"
                " `make bench` sees to it"
            )
        config = folder / "config"
        (folder / "logs").mkdir()
        config.mkdir()
        slaves = [_slave(port, baud, unit, tags, polled) for unit, tags in polled.tags.items()]
        _write(config / "modbus.json", {"master": {"slaves": slaves}})
        _write(config / "tb_gateway.json", _gateway(broker))
        _write(config / "logs.json", _LOGS)
        # It reports to its makers unless it cannot: nothing leaves this machine.
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
        environment = {**os.environ, **nowhere, "TB_GW_CONFIG_DIR": str(config)}
        return Launch([program], folder, environment)


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _slave(port: Path, baud: int, unit: int, tags: int, polled: Meters) -> dict[str, object]:
    return {
        "type": "serial",
        "method": "rtu",
        "port": str(port),
        "baudrate": baud,
        "stopbits": 1,
        "bytesize": 8,
        "parity": "N",
        "unitId": unit,
        "deviceName": f"meter-{unit:03d}",
        "timeout": polled.timeout_s,
        "retries": 0,  # 3 unless told: a dead slave would cost four time-outs
        "pollPeriod": round(1000 * polled.interval_s),
        "delayBetweenRequestsMs": _PAUSE_MS,
        "connectAttemptTimeMs": 500,
        "connectAttemptCount": 2,
        "waitAfterFailedAttemptsMs": 30_000,  # the least that it takes
        "byteOrder": "BIG",
        "wordOrder": "BIG",
        "attributes": [],
        "timeseries": [
            {
                "tag": "t${address}",
                "type": "32float",
                "functionCode": meters.FUNCTION,
                "objectsCount": 2,
                "address": f"0-{2 * tags - 2}",
                "maxRegistersPerRequest": 2 * tags,
            }
        ],
        "attributeUpdates": [],
        "rpc": [],
    }


def _gateway(broker: int) -> dict[str, object]:
    return {
        "thingsboard": {
            "host": "127.0.0.1",
            "port": broker,
            "remoteShell": False,
            "remoteConfiguration": False,
            "statistics": {"enable": False},
            "deviceFiltering": {"enable": False},
            "security": {"accessToken": "benchmark"},
            "qos": 1,
            "checkConnectorsConfigurationInSeconds": 3600,
            "handleDeviceRenaming": False,
        },
        "storage": {
            "type": "memory",
            "read_records_count": 100,
            "max_records_count": 100_000,
        },
        "grpc": {"enabled": False},
        "connectors": [{"name": "line", "type": "modbus", "configuration": "modbus.json"}],
    }


_LOGS = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler", "level": "INFO"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
