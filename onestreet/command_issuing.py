"""`onestreet command DEVICE NAME key=value …`: gives a device one command and waits for what comes of it."""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from getpass import getuser
from pathlib import Path
from uuid import UUID, uuid4

import msgspec

from exchange.broker_table import BrokerTable
from exchange.broker_url import read_broker_url, shown
from exchange.commands import Argument, Command, Result, decode_result, encode_command
from exchange.configuration import read_toml, secret
from exchange.conformance.arguments import add_credentials
from exchange.dictionary import ArgumentRange, dictionary
from exchange.errors import ConfigError, ContractError, UplinkError
from exchange.moments import rfc3339
from exchange.mqtt import Client, Message, Settings, Subscription
from exchange.states import State, decode_state
from exchange.tls import Tls, is_loopback
from exchange.topics import COUNTY, PREFIX, County, Topic, parse_topic

FILE = "command line"
DONE, FAILED, UNREACHABLE, EXPIRED, REJECTED, UNANSWERED = 0, 1, 3, 4, 5, 6
"""Exit statuses; 2 is a wrong command line, as everywhere."""
_STATUSES = {"done": DONE, "failed": FAILED, "expired": EXPIRED, "rejected": REJECTED}
CONNECT_S = 10.0
STATE_S = 5.0
QUIET_S = 0.2
"""A broker gives what it retains in one go: it has given all when nothing more comes for so long, or for as long as the
connection took, which is several times the way there and back."""
GRACE_S = 5.0
"""After the expiry a result may still be on its way."""
_EPILOG = """exit status 結束代碼:
  0 done 已執行            1 failed 執行失敗       2 wrong command line 指令有誤
  3 no broker 無法連線     4 expired 已逾時        5 rejected 被拒絕
  6 no answer 沒有回覆"""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `--config` names: an application's broker and its county. Paths are relative to its folder."""

    broker: BrokerTable
    county: County = ""


class _Door(msgspec.Struct, frozen=True, kw_only=True):
    """Where the broker is, and as whom to go there."""

    settings: Settings
    tls: Callable[[], ssl.SSLContext] | None
    county: str


class _Target(msgspec.Struct, frozen=True):
    """A device, as its state says where and what it is."""

    topic: Topic
    state: State


class _Ended(Exception):
    """It ends here, with this exit status and these words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="onestreet command",
        description="Gives a device one command and waits for its result. 對一個設備下達命令，並等候結果。",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("device", metavar="DEVICE", help="its id 設備代號, lamp-0231")
    parser.add_argument("name", metavar="NAME", help="of the command 命令名稱, set_level")
    parser.add_argument("arguments", nargs="*", metavar="KEY=VALUE", help="參數, level=40")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--broker", metavar="URL", help="mqtt[s]://[user@]host[:port]")
    where.add_argument("--config", type=Path, metavar="FILE", help="with county and [broker]")
    parser.add_argument("--county", help="such as tw-tpe 縣市代碼; default: any that may be read")
    words = "how long it is valid 有效秒數; default: 60"
    parser.add_argument("--expires", type=_seconds, default=60.0, metavar="SECONDS", help=words)
    parser.add_argument("--issued-by", default="", help="for people 下達者; default: your login")
    add_credentials(parser, "credentials, with --broker 憑證")
    return parser


def run(argv: Sequence[str]) -> int:
    """Give the command and return the exit status. Raises: ConfigError."""
    asked = parser().parse_intermixed_args(argv)
    if asked.county is not None and not COUNTY.fullmatch(asked.county):
        allowed = "ISO 3166-2 in lower case, as tw-tpe"
        raise ConfigError(FILE, "--county", asked.county, allowed)
    door = _configured(asked) if asked.config is not None else _asked(asked)
    arguments = _arguments(asked.arguments)
    try:
        return asyncio.run(_Issuer(door, asked, arguments).issue())
    except _Ended as end:
        sys.stderr.write(f"{asked.device}: {end}\n")
        return end.status
    except UplinkError as error:
        sys.stderr.write(f"no broker 無法連線: {error}\n")
        return UNREACHABLE


# ------------------------------------------------------------------------------------------------ what was asked


def _configured(asked: argparse.Namespace) -> _Door:
    for key in ("password_file", "password_env", "ca", "cert", "key"):
        if getattr(asked, key) is not None:
            option = f"--{key.replace('_', '-')}"
            raise ConfigError(FILE, option, str(getattr(asked, key)), "goes with --broker only")
    file, folder = str(asked.config), asked.config.resolve().parent
    config = read_toml(asked.config, Config)
    broker = config.broker.anchored(folder)
    broker.check(file)
    tls = broker.tls
    return _Door(
        settings=_settings(*broker.address, broker.username or None, broker.password(file)),
        tls=None if tls is None else lambda: tls.context(file, "broker.tls"),
        county=asked.county or config.county or "+",
    )


def _asked(asked: argparse.Namespace) -> _Door:
    found, url = read_broker_url(asked.broker, FILE, "--broker"), shown(asked.broker)
    password = secret(FILE, "--broker", asked.password_file, asked.password_env)
    if password is not None and found.username is None:
        raise ConfigError(FILE, "--broker", url, "a password needs a user: user@host")
    if not found.is_tls:
        if asked.ca or asked.cert or asked.key:
            raise ConfigError(FILE, "--ca", str(asked.ca), "goes with mqtts:// only")
        if not is_loopback(found.host):
            allowed = f"{found.host} is not this machine, and goes by mqtts:// only"
            raise ConfigError(FILE, "--broker", url, allowed)
        tls = None
    elif asked.ca is not None:
        files = Tls(ca_file=asked.ca, certificate_file=asked.cert, key_file=asked.key)
        files.context(FILE, "--broker")  # a file that is missing is said now
        tls = lambda: files.context(FILE, "--broker")  # noqa: E731 - what the other branch has by name
    elif asked.cert is not None or asked.key is not None:
        raise ConfigError(FILE, "--ca", None, "--cert and --key need --ca beside them")
    else:
        tls = ssl.create_default_context
    return _Door(
        settings=_settings(found.host, found.port, found.username, password),
        tls=tls,
        county=asked.county or "+",
    )


def _settings(host: str, port: int, username: str | None, password: str | None) -> Settings:
    return Settings(
        host=host,
        port=port,
        client_id=f"onestreet-command-{uuid4().hex[:12]}",
        username=username,
        password=password,
        clean_start=True,
        connect_timeout_s=CONNECT_S,
        fail_fast=True,
    )


def _arguments(words: Sequence[str]) -> dict[str, Argument]:
    """Return the arguments: numbers and true or false where they look so, else texts. Raises: ConfigError."""
    found: dict[str, Argument] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key or key in found:
            raise ConfigError(FILE, "KEY=VALUE", word, "each argument once, as level=40")
        try:
            found[key] = msgspec.json.decode(text, type=float | int | bool)
        except msgspec.DecodeError:
            found[key] = text
    return found


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 7 * 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to 604800")
    return value


# ----------------------------------------------------------------------------------------------------- the giving


class _Issuer:
    """Finds the device, gives the command, hears what comes of it."""

    def __init__(
        self, door: _Door, asked: argparse.Namespace, arguments: dict[str, Argument]
    ) -> None:
        self._asked, self._arguments = asked, arguments
        heads = f"{PREFIX}/{door.county}/+/+/+/{asked.device}"
        self._client = Client(
            door.settings,
            [Subscription(f"{heads}/state"), Subscription(f"{heads}/results")],
            self._take,
            tls=door.tls,
        )
        self._targets: dict[str, _Target] = {}
        self._results: asyncio.Queue[Result] = asyncio.Queue()
        self._id: UUID = uuid4()
        self._heard = asyncio.Event()

    async def issue(self) -> int:
        """Return the exit status. Raises: UplinkError, _Ended."""
        running = asyncio.create_task(self._client.run())
        working = asyncio.create_task(self._work())
        try:
            await asyncio.wait({running, working}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await running  # raises what the broker said
            return await working
        finally:
            working.cancel()
            await self._client.stop(1.0)
            await asyncio.gather(running, working, return_exceptions=True)

    async def _work(self) -> int:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await self._client.wait_connected(CONNECT_S)
        target = await self._target(max(QUIET_S, loop.time() - began_s))
        self._check(target)
        now = datetime.now(UTC)
        command = Command(
            id=self._id,
            name=self._asked.name,
            args=self._arguments,
            issued_at=now,
            expires_at=now + timedelta(seconds=self._asked.expires),
            issued_by=self._asked.issued_by or _user(),
        )
        topic = str(msgspec.structs.replace(target.topic, channel="commands"))
        await self._client.publish(topic, encode_command(command), deadline_s=CONNECT_S)
        _say(f"sent 已送出 {self._id}, valid until 有效至 {rfc3339(command.expires_at)}")
        return await self._result()

    async def _target(self, quiet_s: float) -> _Target:
        """Return the device: of all that are retained the one whose state has the newest epoch."""
        wait_s = STATE_S
        with suppress(TimeoutError):
            async with asyncio.timeout(STATE_S + quiet_s):  # one that speaks without a pause
                while True:
                    async with asyncio.timeout(wait_s):
                        await self._heard.wait()
                    self._heard.clear()
                    wait_s = quiet_s
        if not self._targets:
            words = f"no state of it in {STATE_S:g} s: no such device, or not for you to read"
            raise _Ended(UNANSWERED, f"{words} 找不到設備狀態，代號有誤或沒有讀取權限")
        counties = {target.topic.county for target in self._targets.values()}
        if len(counties) > 1:
            words = f"it is in {', '.join(sorted(counties))}: say which by --county 請以 --county 指定縣市"
            raise _Ended(2, words)
        return max(self._targets.values(), key=lambda target: target.state.epoch)

    def _check(self, target: _Target) -> None:
        """Check what the state and the dictionary say of the command before it is sent. Raises: _Ended."""
        state, name = target.state, self._asked.name
        takes = state.descriptor.commands
        if name not in takes:
            known = ", ".join(takes) or "none 無"
            raise _Ended(2, f"it takes no {name} 不接受此命令; its commands 可用命令: {known}")
        if not state.online:
            _say("its gateway says that it is offline 閘道器表示設備離線")
        limits = _limits(target.topic.domain, name)
        if limits is None:
            return  # a maker's own: the device judges
        if self._arguments.keys() != limits.keys():
            wanted = ", ".join(f"{key}={one.min:g}…{one.max:g}" for key, one in limits.items())
            raise _Ended(2, f"{name} takes 參數應為: {wanted or 'none 無'}")
        for key, value in self._arguments.items():
            low, high = limits[key].min, limits[key].max
            if isinstance(value, bool | str) or not low <= value <= high:
                raise _Ended(2, f"{key}={value}: must be 必須介於 {low:g} … {high:g}")

    async def _result(self) -> int:
        """Wait for what comes of it."""
        try:
            async with asyncio.timeout(self._asked.expires + GRACE_S):
                while (result := await self._results.get()).status == "accepted":
                    _say("accepted, waits for its turn 已受理，等候執行")
        except TimeoutError:
            raise _Ended(UNANSWERED, "no answer before it expired 逾時仍沒有回覆") from None
        about = {"device": self._asked.device, **msgspec.to_builtins(result)}
        about["at"] = rfc3339(result.at)
        sys.stdout.write(msgspec.json.encode(about).decode() + "\n")
        if result.status != "done":
            reason = f": {result.reason}" if result.reason else ""
            raise _Ended(_STATUSES[result.status], f"{result.status} {_ZH[result.status]}{reason}")
        return DONE

    def _take(self, messages: list[Message], generation: int) -> None:
        for message in messages:
            try:
                topic = parse_topic(message.topic)
                if topic.channel == "state":
                    state = decode_state(bytes(message.payload))
                    if state is None:
                        self._targets.pop(message.topic, None)
                    else:
                        self._targets[message.topic] = _Target(topic, state)
                        self._heard.set()
                elif (result := decode_result(bytes(message.payload))).id == self._id:
                    self._results.put_nowait(result)
            except ContractError as error:
                _say(f"not understood 無法解讀: {error}")
        self._client.acknowledge([message.packet_id for message in messages], generation)


_ZH = {"failed": "執行失敗", "expired": "已逾時，未執行", "rejected": "被拒絕，未執行"}


def _limits(domain: str, name: str) -> dict[str, ArgumentRange] | None:
    """Return what every device that announces the command takes, None for a command of a maker's own."""
    for profile in dictionary()[domain].profiles:
        if name in profile.commands:
            return profile.commands[name].args
    return None


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        return "onestreet command"


def _say(words: str) -> None:
    """Tell whoever waits; on stderr, so that the result stands alone."""
    sys.stderr.write(f"… {words}\n")
    sys.stderr.flush()
