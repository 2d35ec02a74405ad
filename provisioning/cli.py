"""`onestreet town`: what the people of a town's office type."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from exchange.enrolment import Code
from exchange.errors import ConfigError, UplinkError
from exchange.folder_lock import locked
from exchange.towns import read_towns
from provisioning import (
    backup,
    compose,
    enrolment,
    enrolment_service,
    kept_configurations,
    replacement,
    store,
)
from provisioning.access import gateway_user
from provisioning.files import make_folder, write_private
from provisioning.office import Office, init, opened

if TYPE_CHECKING:
    from argparse import _SubParsersAction

WARNING = timedelta(days=60)


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="onestreet town",
        description="Keys, accounts, broker and store of a town 管理城鎮的金鑰、帳號、訊息代理與資料庫",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = partial(_action, actions)
    one = action(
        "init", "make an office from towns' files, or make again what is missing 建立或補齊", _init
    )
    one.add_argument("towns", nargs="*", type=Path, metavar="TOWN.toml")
    one.add_argument(
        "--enrol",
        action="store_true",
        help="make no keys for gateways: each makes its own, with a code 閘道器以註冊碼自行產生金鑰",
    )
    _office(one)
    one = action("check", "check towns' files 檢查城鎮檔", _check)
    one.add_argument("towns", nargs="+", type=Path, metavar="TOWN.toml")
    one = action(
        "status", "what expires when; exit status 1 when something is due 到期狀況", _status
    )
    _office(one)
    one = action(
        "reload", "have the running broker read its files again 重新載入訊息代理設定", _reload
    )
    _office(one)
    one = action("rotate", "a new key, certificate or password 更換金鑰、憑證或密碼", _rotate)
    one.add_argument("what", metavar="COUNTY/GATEWAY|SERVICE|broker|store|enrolment|ca")
    one.add_argument(
        "--finish",
        action="store_true",
        help="of `ca`: believe the old one no longer 停止信任舊憑證機構",
    )
    one.add_argument(
        "--force",
        action="store_true",
        help="of `ca --finish`: although gateways are locked out 即使有閘道器會被拒於門外",
    )
    one.add_argument(
        "--at-once",
        action="store_true",
        help="the old one was stolen: revoke it now 立即撤銷舊憑證",
    )
    _handed(one)
    _office(one)
    one = action("store", "set InfluxDB up, and a token for each service 設定資料庫與權杖", _store)
    _store_url(one)
    one.add_argument(
        "--rotate", action="store_true", help="new tokens; the old ones are void 更換權杖"
    )
    _office(one)
    one = action(
        "backup", "office, quarantine and rows into a new folder, while all runs 備份", _backup
    )
    one.add_argument(
        "--to",
        type=Path,
        required=True,
        metavar="BACKUPS",
        help="where backups are kept; each is as secret as the office 備份存放處，與辦公室同等機密",
    )
    _store_url(one)
    _office(one)
    one = action("restore", "make the office anew from a backup 還原辦公室", _restore)
    one.add_argument("backup", type=Path, metavar="BACKUP")
    _office(one)
    one = action(
        "restore-store",
        "the rows of a backup into an InfluxDB that is new 還原資料庫",
        _restore_store,
    )
    one.add_argument("backup", type=Path, metavar="BACKUP")
    _store_url(one)
    _office(one)
    one = action("enrolment", "the service that takes installers' codes 註冊服務", _enrolment)
    one.add_argument("--listen", type=_address, default=("0.0.0.0", 8443), metavar="HOST:PORT")  # noqa: S104 - gateways come from outside
    _office(one)
    _add_gateway_actions(
        actions.add_parser(
            "gateway", help="add, list, revoke, replace; codes for installers 閘道器"
        )
    )
    return parser


def _add_gateway_actions(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="gateway_action", required=True, metavar="ACTION")
    action = partial(_action, actions)
    one = action("add", "add a gateway to its town's file, with a key or password 新增", _add)
    one.add_argument("gateway", type=_gateway, metavar="COUNTY/GATEWAY")
    one.add_argument("--site", default="", help="the field site where it stands 場域")
    one.add_argument(
        "--password", action="store_true", help="it cannot hold a key 無法存放金鑰者改用密碼"
    )
    one.add_argument(
        "--enrol",
        action="store_true",
        help="make no key here: it makes its own, with a code 以註冊碼自行產生金鑰",
    )
    _handed(one)
    _office(one)
    one = action("list", "every gateway, and what opens its door 列出", _list)
    _office(one)
    one = action("revoke", "close every door to a gateway 撤銷", _revoke)
    one.add_argument("gateway", type=_gateway, metavar="COUNTY/GATEWAY")
    _office(one)
    one = action("code", "a one-time code for the installer 一次性註冊碼", _code)
    one.add_argument("gateway", type=_gateway, metavar="COUNTY/GATEWAY")
    _coded(one)
    _office(one)
    one = action(
        "replace",
        "lock a broken gateway out and have a new one in its place, with a code 更換故障閘道器",
        _replace,
    )
    one.add_argument("gateway", type=_gateway, metavar="COUNTY/GATEWAY")
    one.add_argument("new", nargs="?", default="", metavar="NEW", help="its name 新名稱")
    one.add_argument(
        "--same-name", action="store_true", help="the new one takes the old one's name 沿用原名稱"
    )
    one.add_argument(
        "--bundle",
        type=Path,
        metavar="FILE.tar",
        help="no code: write what the gateway needs, for a USB stick 匯出給隨身碟",
    )
    _coded(one)
    _broker(one)
    _office(one)
    one = action(
        "clear", "empty what the broker retains of a gateway that is no more 清除保留狀態", _clear
    )
    one.add_argument("gateway", type=_gateway, metavar="COUNTY/GATEWAY")
    one.add_argument("--site", default="", help="where it stood, unless the town has one site 場域")
    _broker(one)
    _office(one)
    one = action(
        "configure", "keep a gateway's edge.toml; it gets it with its code 保存設定檔", _configure
    )
    one.add_argument("gateway", type=_gateway, metavar="COUNTY/GATEWAY")
    one.add_argument("file", type=Path, metavar="EDGE.toml")
    _office(one)


def _action(
    actions: _SubParsersAction[argparse.ArgumentParser],
    name: str,
    words: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    one = actions.add_parser(name, help=words, description=words)
    one.set_defaults(run=run)
    return one


def _office(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--into",
        type=Path,
        default=Path("office"),
        metavar="DIR",
        help="the office's folder (default: office) 辦公室資料夾",
    )
    parser.add_argument(
        "--ca-passphrase-file",
        type=Path,
        metavar="FILE",
        help="of the authority's key 憑證機構金鑰的密語檔",
    )


def _store_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        default="",
        help="how the store is reached from here, as https://HOST:PORT 由此處連線資料庫的位址",
    )


def _coded(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", default="", metavar="HOST[:PORT]", help="of the enrolment service 註冊服務位址"
    )
    parser.add_argument(
        "--days", type=_days, default=enrolment.DAYS, help="it is good for 有效天數"
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE.svg|FILE.png", help="the QR code 二維條碼"
    )


def _broker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--broker",
        default="",
        metavar="HOST",
        help="how the broker is reached from here (default: as the town's file says) 訊息代理位址",
    )


def _handed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--days", type=_days, help="a certificate is valid for (default: 1825) 憑證有效天數"
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="FILE.tar",
        help="write what the gateway needs, for a USB stick 匯出給隨身碟",
    )


def run(argv: Sequence[str], *, alerts: compose.Alerts | None = None) -> int:
    """Run one action and return its exit status. `alerts` makes the rules that Grafana is to find in the office."""
    arguments = parser().parse_args(argv, argparse.Namespace(alerts=alerts))
    found: int = arguments.run(arguments)
    return found


def _init(arguments: argparse.Namespace) -> int:
    with init(
        arguments.towns, arguments.into, arguments.ca_passphrase_file, hand_out=not arguments.enrol
    ) as office:
        counties = ", ".join(town.county for town in office.towns)
        _say(f"{arguments.into}: ready for {counties}", "已就緒")
        _say(f"broker: cd {arguments.into}/broker && mosquitto -c mosquitto.conf", "啟動訊息代理")
        if any(place.towns[0].store.bucket for place in office.places):
            _say(
                f"InfluxDB: start it, then onestreet town store --into {arguments.into}",
                "啟動資料庫後執行",
            )
        try:
            variables = compose.prepare(arguments.into, office.towns, arguments.alerts)
            up = f"docker compose --env-file {variables} up --detach --wait"
            _say(f"in containers: {up}", "以容器執行")
        except ConfigError as error:
            _say(f"not in containers: {error}", "無法以容器執行")
        _say_whether_told(office.reload_broker())
    return 0


def _check(arguments: argparse.Namespace) -> int:
    for town in read_towns(arguments.towns):
        gateways = sum(1 for _ in town.gateways)
        _say(
            f"{town.county} {town.name.en}: {len(town.sites)} sites, {gateways} gateways",
            f"{town.name.zh_tw} 正確",
        )
    return 0


@contextmanager
def _changing(arguments: argparse.Namespace) -> Iterator[Office]:
    """Open the office; the broker is told of what was changed, whatever fails after that."""
    with opened(arguments.into, arguments.ca_passphrase_file) as office:
        try:
            yield office
        finally:
            told = office.reload_broker()
        _say_whether_told(told)


def _add(arguments: argparse.Namespace) -> int:
    county, gateway = arguments.gateway
    if arguments.enrol and arguments.bundle:
        allowed = "goes not with --enrol: the gateway makes its key, there is nothing to bring"
        raise ConfigError("command line", "--bundle", str(arguments.bundle), allowed)
    with _changing(arguments) as office:
        office.gateway_days = arguments.days
        office.add_gateway(
            county,
            gateway,
            arguments.site,
            credential="password" if arguments.password else "certificate",
            hand_out=not arguments.enrol,
        )
        _say(f"{county}/{gateway}: added", "已新增")
        if arguments.enrol:
            _say(
                f"next: onestreet town gateway code {county}/{gateway} --into {arguments.into}",
                "接著產生註冊碼",
            )
        else:
            _hand_over(office, county, gateway, arguments.bundle)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    with opened(arguments.into, arguments.ca_passphrase_file) as office:
        for town in office.towns:
            for one in town.gateways:
                words = _door(office, town.county, one.id)
                _write(f"{town.county}/{one.id}\t{one.site}\t{one.credential}\t{words}")
    return 0


def _door(office: Office, county: str, gateway: str) -> str:
    """Say what opens a gateway's door."""
    if office.is_revoked(county, gateway):
        return "revoked 已撤銷"
    if office.gateway(county, gateway).credential == "password":
        known = office.has_password(county, gateway)
        return "password 密碼" if known else "waits for a code 待註冊"
    valid = office.authority.valid(gateway_user(county, gateway))
    if not valid:
        return "waits for a code 待註冊"
    return f"until 有效至 {max(one.not_after for one in valid):%Y-%m-%d}"


def _revoke(arguments: argparse.Namespace) -> int:
    county, gateway = arguments.gateway
    with _changing(arguments) as office:
        enrolment.forget_codes(office, county, gateway)
        revoked = office.revoke_gateway(county, gateway)
        _say(f"{county}/{gateway}: revoked, {len(revoked)} certificates", "已撤銷")
    _say(
        "what else to do: docs/security/stolen-gateway.md",
        "後續處理 docs/security/stolen-gateway.zh-TW.md",
    )
    return 0


def _code(arguments: argparse.Namespace) -> int:
    _check_picture(arguments.picture)
    with _changing(arguments) as office:
        code = _new_code(office, arguments, *arguments.gateway)
    _show(code, arguments, "/".join(arguments.gateway))
    return 0


def _check_picture(picture: Path | None) -> None:
    if picture and picture.suffix not in (".svg", ".png"):
        allowed = "must end in .svg or .png"
        raise ConfigError("command line", "picture", str(picture), allowed)


def _new_code(office: Office, arguments: argparse.Namespace, county: str, gateway: str) -> Code:
    return enrolment.add_code(
        office, county, gateway, address=arguments.address, days=arguments.days
    )


def _show(code: Code, arguments: argparse.Namespace, name: str) -> None:
    picture: Path | None = arguments.picture
    if picture:
        write_private(picture, enrolment.picture(code, picture.suffix.removeprefix(".")))
    elif sys.stdout.isatty():
        _write(enrolment.terminal_picture(code))
    _write(code.text)
    _say(f"good once, for {arguments.days:g} days, for {name}", "限用一次")


def _replace(arguments: argparse.Namespace) -> int:
    county, old = arguments.gateway
    new = old if arguments.same_name else arguments.new
    if bool(arguments.new) == arguments.same_name or (new == old and not arguments.same_name):
        allowed = "either another name for the new gateway, or --same-name 請給新名稱或 --same-name"
        raise ConfigError("command line", "NEW", arguments.new or None, allowed)
    _check_picture(arguments.picture)
    code = None
    with opened(arguments.into, arguments.ca_passphrase_file) as office:
        try:
            site = replacement.replace_gateway(
                office, county, old, new, hand_out=arguments.bundle is not None
            )
            if arguments.bundle is None:
                code = _new_code(office, arguments, county, new)
        finally:
            told = office.reload_broker()
        _say(f"{county}/{old}: locked out", "舊閘道器已停用")
        _say_whether_told(told)
        if code:
            _say("at the gateway: sudo onestreet edge enrol", "在新閘道器執行，並輸入註冊碼")
            _show(code, arguments, f"{county}/{new}")
        else:
            _hand_over(office, county, new, arguments.bundle)
        if not kept_configurations.kept(office, county, new):
            keep = f"onestreet town gateway configure {county}/{new} EDGE.toml"
            _say(f"its edge.toml is not kept here: bring it, or {keep}", "辦公室沒有保存設定檔")
        if told:
            return _swept(office, arguments, county, site, old, is_gone=new != old)
        if new != old:
            then = f"onestreet town gateway clear {county}/{old} --site {site}"
            _say(f"then: {then}", "之後清除舊狀態")
        else:
            words = "what the old one has open ends when the new one comes, or the broker restarts"
            _say(words, "舊機已開啟的連線，於新機上線或訊息代理重新啟動後結束")
    return 0


def _swept(
    office: Office,
    arguments: argparse.Namespace,
    county: str,
    site: str,
    gateway: str,
    *,
    is_gone: bool,
) -> int:
    """Have the broker forget a gateway, as far as it is reached, and return the exit status."""
    try:
        replacement.evict(office, county, gateway, host=arguments.broker)
        if is_gone:
            count = replacement.clear_states(office, county, site, gateway, host=arguments.broker)
            _say(f"{count} retained states emptied", "已清除保留狀態")
    except UplinkError as error:
        _say(f"not done at the broker: {error}", "訊息代理尚未處理")
        if is_gone:
            _say(
                f"again: onestreet town gateway clear {county}/{gateway} --site {site}", "請再執行"
            )
        return 1
    return 0


def _clear(arguments: argparse.Namespace) -> int:
    county, gateway = arguments.gateway
    with opened(arguments.into, arguments.ca_passphrase_file) as office:
        sites = [one.id for one in office.town(county).sites]
        site = arguments.site or (sites[0] if len(sites) == 1 else "")
        if site not in sites:
            allowed = f"one of {', '.join(sites)}"
            raise ConfigError("command line", "--site", site, allowed)
        replacement.check_gone(office, county, gateway)
        return _swept(office, arguments, county, site, gateway, is_gone=True)


def _configure(arguments: argparse.Namespace) -> int:
    county, gateway = arguments.gateway
    with opened(arguments.into, arguments.ca_passphrase_file) as office:
        files = kept_configurations.keep(office, county, gateway, arguments.file)
        _say(f"{county}/{gateway}: kept {', '.join(files)}", "已保存，註冊時一併送達")
    return 0


def _enrolment(arguments: argparse.Namespace) -> int:
    host, port = arguments.listen
    return enrolment_service.serve(arguments.into, host, port, arguments.ca_passphrase_file)


def _rotate(arguments: argparse.Namespace) -> int:
    what = arguments.what
    with _changing(arguments) as office:
        office.gateway_days = arguments.days
        if what == "ca" and arguments.finish:
            office.retire_authority(force=arguments.force)
            _say("the old authority is believed no longer", "已停止信任舊憑證機構")
            _say("restart the broker: it forgets an authority only then", "請重新啟動訊息代理")
        elif what == "ca":
            office.rotate_authority()
            _say("a new authority signs; both are believed", "新憑證機構已啟用，新舊並存")
            left = ", ".join(office.left_behind()) or "-"
            _say(
                f"rotate these, then onestreet town rotate ca --finish: {left}",
                "逐一更換後再執行 --finish",
            )
        elif "/" in what:
            county, _, gateway = what.partition("/")
            office.rotate_gateway(county, gateway, at_once=arguments.at_once)
            _hand_over(office, county, gateway, arguments.bundle)
        else:
            office.rotate_service(what, at_once=arguments.at_once)
            _say(f"{what}: new key and certificate", "已更換金鑰與憑證")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    now, due = datetime.now(UTC), False
    with opened(arguments.into, arguments.ca_passphrase_file) as office:
        if office.regenerate():
            _say_whether_told(office.reload_broker())
        lines = [("ca", office.authority.not_after, "")]
        for one in office.authority.all_valid():
            words = "superseded 已汰換" if one.superseded_until else ""
            lines.append((one.name, one.superseded_until or one.not_after, words))
        for name, ends, words in sorted(lines, key=lambda line: line[1]):
            if not words and ends - now < WARNING:
                due = True
                what = name.removeprefix("app.").replace(".", "/")
                if name.startswith("ingest"):  # one of its workers: all have new ones together
                    what = name.partition(".")[0]
                words = f"expires soon: onestreet town rotate {what}  即將到期"
            _write(f"{ends:%Y-%m-%d}\t{name}\t{words}")
        if office.authority.is_rotating:
            left = ", ".join(office.left_behind()) or "-"
            _say(f"the authority is being rotated; left: {left}", "憑證機構更換中")
    return 1 if due else 0


def _reload(arguments: argparse.Namespace) -> int:
    with _changing(arguments):
        return 0


def _store(arguments: argparse.Namespace) -> int:
    # without the authority: in a container there is none
    towns = read_towns((arguments.into / "towns").glob("*.toml"))
    if not towns:
        allowed = "must be an office's folder, with towns"
        raise ConfigError("command line", "into", str(arguments.into), allowed)
    act = store.rotate if arguments.rotate else store.set_up
    with locked(make_folder(arguments.into / "store")):
        for file in act(arguments.into, towns, url=arguments.url):
            _say(f"{file}: written", "已寫入")
    _say("the store is as the towns' files say", "資料庫設定完成")
    held = [place for place in store.places(towns) if place.towns[0].store.bucket]
    rollups = [arguments.into / "services" / f"rollups{place.suffix}" for place in held]
    if not all((folder / "ingest.toml").exists() for folder in rollups):  # of an older office
        _say(f"next: onestreet town init --into {arguments.into}", "接著執行")
    return 0


def _backup(arguments: argparse.Namespace) -> int:
    done = backup.back_up(arguments.into, arguments.to, url=arguments.url)
    _say(f"{done}: whole, and as secret as the office", "備份完成，與辦公室同等機密")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    backup.restore_office(arguments.backup, arguments.into)
    _say(f"{arguments.into}: as it was", "已還原")
    _say(f"next: onestreet town init --into {arguments.into}", "接著執行")
    return 0


def _restore_store(arguments: argparse.Namespace) -> int:
    backup.restore_store(arguments.backup, arguments.into, url=arguments.url)
    _say("the store holds what the backup holds", "資料庫已還原")
    _say(f"next: onestreet town store --into {arguments.into}", "接著執行")
    return 0


def _hand_over(office: Office, county: str, gateway: str, bundle: Path | None) -> None:
    """Say where a gateway's credentials are, or write them to one file."""
    if bundle is None:
        folder = office.gateway_folder(county, gateway)
        _say(f"take {folder} to the gateway, then delete it here", "交付後請刪除此資料夾")
    else:
        more = kept_configurations.handed(office, county, gateway)
        write_private(bundle, office.bundle(county, gateway, more))
        _say(f"take {bundle} to the gateway, then delete it: it is a key", "內含金鑰，交付後請刪除")


def _say_whether_told(told: bool) -> None:
    if told:
        _say("the running broker has read it", "執行中的訊息代理已重新載入")
    else:
        _say(
            "a broker that runs elsewhere is to be sent SIGHUP (docker compose kill -s HUP broker)",
            "請通知訊息代理重新載入",
        )


def _say(en: str, zh_tw: str) -> None:
    _write(f"{en}  {zh_tw}")


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _gateway(text: str) -> tuple[str, str]:
    county, slash, gateway = text.partition("/")
    if not (county and slash and gateway):
        raise argparse.ArgumentTypeError(f"{text!r}: expected COUNTY/GATEWAY, such as tw-tpe/gw-1")
    return county, gateway


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HOST:PORT")
    return host.strip("[]"), int(port)


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 7300:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days, 1 to 7300")
    return int(text)
