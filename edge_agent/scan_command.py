"""`onestreet edge scan`: says what is connected and proposes its configuration, in English and in Chinese.

What it hears is printed and nowhere else: no file is written and nothing is logged.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from exchange.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from edge_agent.scan import Line, Looked

ADAPTER = "hci0"


def add_parser(actions: _SubParsersAction[Any]) -> None:
    """Add the subcommand's arguments."""
    words = (
        "say what is connected and propose its configuration; nothing is written to any device"
        " 掃描已連接的設備並建議設定（唯讀，不寫入設備）"
    )
    more = (
        "Without arguments every serial port and the radio are listened to. A Modbus bus is asked only when it is"
        " named. 未指定參數時只聆聽序列埠與藍牙；Modbus 匯流排須指名才會查詢。"
    )
    action = actions.add_parser(
        "scan", help=words, description=f"{words}. {more}", allow_abbrev=False
    )
    repeated: dict[str, Any] = {"action": "append", "default": []}
    action.add_argument(
        "--serial", **repeated, metavar="PORT", help="listen to this serial port 聆聽序列埠"
    )
    action.add_argument(
        "--rtu",
        **repeated,
        metavar="PORT",
        help="ask the units of this Modbus RTU bus 查詢 RTU 站號",
    )
    action.add_argument(
        "--tcp",
        **repeated,
        metavar="HOST[:PORT]",
        help="ask the units behind this Modbus TCP server 查詢 TCP 站號",
    )
    action.add_argument(
        "--ble",
        **repeated,
        nargs="?",
        const=ADAPTER,
        metavar="ADAPTER",
        help=f"listen to this radio 聆聽藍牙 (default: {ADAPTER})",
    )
    action.add_argument(
        "--units",
        type=_units,
        default=range(1, 33),
        metavar="FIRST-LAST",
        help="Modbus units to ask, 1-247 站號範圍 (default: 1-32)",
    )
    usual = "(default: the usual ones in turn 依序嘗試常用設定)"
    action.add_argument("--baudrate", type=int, help=f"of RTU 鮑率 {usual}")
    action.add_argument("--parity", choices="NEO", help=f"of RTU 同位元 {usual}")
    action.add_argument("--stopbits", type=int, choices=(1, 2), help=f"of RTU 停止位元 {usual}")
    for name, default_s, most_s, purpose in (
        ("--timeout", 0.3, 60, "for a unit's answer 等候回應"),
        ("--listen", 8, 3600, "to listen to a line or radio 聆聽時間"),
        ("--limit", 120, 86400, "for one Modbus bus at most 每條匯流排上限"),
    ):
        action.add_argument(
            name,
            type=_seconds(most_s),
            default=float(default_s),
            metavar="SECONDS",
            help=f"{purpose} (default: {default_s})",
        )
    action.add_argument("--json", action="store_true", help="print JSON 以 JSON 輸出")


def carry_out(arguments: argparse.Namespace) -> int:
    """Scan, print, and return 1 when a bus that was named could not be looked at. Raises: ConfigError."""
    from edge_agent.scan import proposal  # loads what every bus needs; --help does not

    servers = [_server(text) for text in arguments.tcp]
    looked = asyncio.run(_looked(arguments, servers))
    tables = proposal(looked)
    if arguments.json:
        document = msgspec.json.encode({"buses": looked, "toml": tables})
        sys.stdout.write(msgspec.json.format(document, indent=2).decode() + "\n")
    else:
        sys.stdout.write(_text(looked, tables))
    named = {*arguments.serial, *arguments.rtu, *arguments.tcp, *arguments.ble}
    named |= {f"{host}:{port}" for host, port in servers}
    return int(any(one.outcome in ("in use", "failed") and one.name in named for one in looked))


async def _looked(arguments: argparse.Namespace, servers: list[tuple[str, int]]) -> list[Looked]:
    """Look at everything at the same time: each bus by itself takes its time."""
    from edge_agent import scan

    serial, ble = arguments.serial, arguments.ble
    descriptions: dict[str, str] = {}
    if not (serial or ble or arguments.rtu or servers):
        descriptions = scan.serial_ports()
        serial, ble = list(descriptions), [ADAPTER]
    lines = _lines(arguments, scan.USUAL_LINES)
    modbus = {"timeout_s": arguments.timeout, "limit_s": arguments.limit}
    looked = await asyncio.gather(
        *(scan.listen(port, arguments.listen) for port in serial),
        *(scan.sweep_rtu(port, lines, arguments.units, **modbus) for port in arguments.rtu),
        *(scan.sweep_tcp(host, port, arguments.units, **modbus) for host, port in servers),
        *(scan.hear(adapter, arguments.listen) for adapter in ble),
    )
    for one in looked:
        one.description = descriptions.get(one.name, "")
    return looked


def _lines(arguments: argparse.Namespace, usual: tuple[Line, ...]) -> list[Line]:
    """Return the settings to try: what is given holds, what is not is as usual."""
    given = {
        key: value
        for key in ("baudrate", "parity", "stopbits")
        if (value := getattr(arguments, key)) is not None
    }
    lines = [line._replace(**given) for line in usual]
    return list(dict.fromkeys(lines))


# --------------------------------------------------------------------------------------------------------- output

_OUTCOMES = {
    "found": "found 已辨識",
    "unknown": "there is something, and no driver can name it 有訊號，無法辨識",
    "silent": "silent 無訊號",
    "in use": "in use, left alone; stop the agent to scan it 使用中，未掃描；請先停止代理程式",
    "failed": "could not be looked at 無法掃描",
}


def _text(looked: list[Looked], tables: str) -> str:
    lines = []
    for one in looked:
        about = f" ({one.description})" if one.description else ""
        detail = f": {one.detail}" if one.detail else ""
        lines.append(f"{one.name}{about}: {_OUTCOMES[one.outcome]}{detail}")
        lines += [f"  unit 站號 {unit.unit}: {unit.answer}" for unit in one.units]
        for device in one.devices:
            strength = "" if device.rssi_dbm is None else f" {device.rssi_dbm} dBm"
            place = device.settings.get("address") or device.settings.get("unit") or ""
            said = ", ".join(f"{name} {value}" for name, value in device.said.items())
            lines.append(f"  {device.driver} {place}{strength}: {said}".rstrip(": "))
        if one.strangers:
            lines.append(
                f"  {one.strangers} other adverts, counted and forgotten 其他廣播僅計數，不留存位址"
            )
    if not looked:
        lines.append("no serial port and no radio 沒有序列埠或藍牙")
    if tables:
        lines += [
            "",
            "# ---- paste, and fill in what is empty 貼入設定檔，並填寫空白處 ----",
            tables,
        ]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------ arguments


def _server(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host:
        return text, 502
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError(
            "scan", "--tcp", text, "HOST or HOST:PORT, a port from 1 to 65535 主機:埠號"
        )
    return host, int(port)


def _units(text: str) -> range:
    first, _, last = text.partition("-")
    try:
        units = range(int(first), int(last or first) + 1)
    except ValueError:
        units = range(0)
    if not units or units[0] < 1 or units[-1] > 247:
        raise argparse.ArgumentTypeError(f"{text!r} is not within 1-247 站號須為 1-247")
    return units


def _seconds(most_s: float) -> Callable[[str], float]:
    def seconds(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value <= most_s:
            words = f"{text!r} is not a number above 0 and up to {most_s:g} 須大於 0"
            raise argparse.ArgumentTypeError(words)
        return value

    return seconds
