"""What is allowed in a configuration and still hardly meant: for `onestreet edge check`."""

from __future__ import annotations

from collections.abc import Iterator

from device_drivers.kit.profile import Transport
from device_drivers.kit.requests import requests
from edge_agent.config import Config, Device
from edge_agent.config_checks import transport_of
from edge_agent.config_reading import Examined
from exchange.errors import ConfigError

EACH = 3
"""So many devices of a file are told the same one by one; further ones are counted."""
BUSY = 0.8
"""A line that is polled for more than this part of its time has no room for a command, or a device that is silent."""
TURN_S = 0.01
"""What a device takes to begin its answer, when nothing better is known."""
SILENCE_CHARACTERS, SILENCE_LEAST_S = 3.5, 0.00175
REQUEST_CHARACTERS, WRITE_CHARACTERS, ANSWER_CHARACTERS = 8, 8, 5
"""Of Modbus RTU; an answer has two more for each register. Source: Modbus over Serial Line 1.02, 2.5.1"""


def advice(examined: Examined) -> list[ConfigError]:
    """Return what an installer should look at again, each as an error that is none."""
    config = examined.config
    if config is None:
        return []
    return [
        *_about_the_gateway(examined, config),
        *_about_devices(examined, config),
        *_about_buses(examined, config),
        *_about_templates(examined, config),
    ]


def _about_the_gateway(examined: Examined, config: Config) -> Iterator[ConfigError]:
    if config.gateway.location is None:
        allowed = (
            "no location: it will not be on the map, and no lamp programme can go by the sun"
            " 沒有位置，地圖上不會顯示，路燈也無法依日出日落開關"
        )
        yield _said(examined, "gateway.location", None, allowed)


def _about_devices(examined: Examined, config: Config) -> Iterator[ConfigError]:
    found: dict[tuple[str, str], list[ConfigError]] = {}
    for device in config.device:
        wrong = examined.origins[device.id].wrong
        cadence_s = device.package.profile.timing.cadence_s
        said = []
        if device.location is None:
            allowed = "no location: will not be on the map 沒有位置，地圖上不會顯示"
            said.append(wrong(ConfigError("", "location", None, allowed)))
        if device.interval_s < cadence_s:
            allowed = f"its device has new values every {cadence_s:g} s only 設備沒那麼快有新數值"
            said.append(wrong(ConfigError("", "interval_s", device.interval_s, allowed)))
        for one in said:
            found.setdefault((one.file, one.allowed), []).append(one)
    for same in found.values():
        yield from same[:EACH]
        if (further := len(same) - EACH) > 0:
            allowed = f"so are {further} further devices of this file 此檔另有 {further} 個設備也是"
            key, value = same[0].key.rpartition(".")[2], same[0].value
            yield ConfigError(same[0].file, key, value, allowed)


def _about_buses(examined: Examined, config: Config) -> Iterator[ConfigError]:
    for index, bus in enumerate(config.bus):
        place = f"bus[{index}]"
        devices = [device for device in config.device if device.bus == bus.id]
        if not devices:
            yield _said(examined, f"{place}.id", bus.id, "no device is on it 沒有設備使用它")
        elif transport := transport_of(bus, devices):
            polls_s = ((_poll_s(transport, device), device.interval_s) for device in devices)
            share = sum(poll_s / interval_s for poll_s, interval_s in polls_s)
            if share > BUSY:
                allowed = (
                    f"its {len(devices)} devices take {100 * share:.0f} % of its time: poll less often, or at a"
                    " higher rate 輪詢過密，請加長 interval_s 或提高 baudrate"
                )
                yield _said(examined, f"{place}.baudrate", transport.baudrate, allowed)


def _about_templates(examined: Examined, config: Config) -> Iterator[ConfigError]:
    if not config.inventory:
        for name in config.template:
            allowed = "no [[inventory]] uses it 沒有清單使用它"
            yield _said(examined, f"template.{name}", name, allowed)


def _said(examined: Examined, key: str, value: object, allowed: str) -> ConfigError:
    toml = examined.toml
    return ConfigError(toml.name, key, value, allowed, line=toml.line_of(key))


def _poll_s(line: Transport, device: Device) -> float:
    """Return how long one reading of a device holds the line."""
    profile = device.package.profile
    bits = 1 + line.bytesize + (line.parity != "N") + line.stopbits
    character_s = bits / line.baudrate
    silence_s = max(SILENCE_CHARACTERS * character_s, SILENCE_LEAST_S)
    overhead_s = 2 * silence_s + TURN_S + profile.read.pause_s
    blocks = requests(profile)
    characters = (
        sum(REQUEST_CHARACTERS + ANSWER_CHARACTERS + 2 * block.count for block in blocks)
        + len(profile.fresh) * 2 * WRITE_CHARACTERS
    )
    return characters * character_s + (len(blocks) + len(profile.fresh)) * overhead_s
