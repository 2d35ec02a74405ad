"""`python -m benchmarks.discarding CONFIG`: the agent's buses alone; what they read is thrown away.

What Telegraf does with `outputs.discard`: the cost of polling without that of delivery.
"""

from __future__ import annotations

import sys
from pathlib import Path

from device_drivers.kit.driver import Reading
from edge_agent.buses import BusTask, Line
from edge_agent.config import Config
from edge_agent.config_reading import read_config
from edge_agent.health import DeviceHealth
from exchange.runtime import log_to_stderr, run, stop_on_signals


async def _discard(_line: Line, _reading: Reading) -> None:
    """Take nothing."""


async def _serve(config: Config) -> int:
    stop = stop_on_signals()
    for bus in config.bus:
        lines = [
            Line(device, device.package.driver(device.settings), DeviceHealth(device.id))
            for device in config.device
            if device.bus == bus.id
        ]
        await BusTask(bus, lines, _discard, stop).run()
    return 0


if __name__ == "__main__":
    log_to_stderr()
    sys.exit(run(_serve(read_config(Path(sys.argv[1])))))
