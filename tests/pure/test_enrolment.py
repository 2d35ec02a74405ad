"""One-time codes as people meet them, what is kept of them, and how often somebody may be wrong."""

from __future__ import annotations

import json
import os
import string
import tomllib
from binascii import crc_hqx
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import enrolment as gateway_side
from edge_agent import enrolment_command
from edge_agent.cli import run
from edge_agent.config_reading import read_config
from exchange.enrolment import (
    WORDS,
    BrokerAddress,
    Code,
    EnrolmentRefused,
    Grant,
    Request,
    new_code,
    read_code,
)
from exchange.errors import ConfigError
from exchange.states import Label, Location
from provisioning.authority import requested_key
from provisioning.enrolment import picture, terminal_picture
from provisioning.enrolment_service import (
    ADDRESS_ATTEMPTS,
    ADDRESS_S,
    ADDRESSES,
    ALL_ATTEMPTS,
    Attempts,
)

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
DOCS = Path(__file__).parents[2] / "docs" / "installers"
SECRETS = st.binary(min_size=16, max_size=16)
HOSTS = st.sampled_from(
    ["enrol.example.org", "localhost", "10.0.0.7", "2001:db8::7", "a", "xn--fiq228c.example"]
)
CODES = st.builds(Code, host=HOSTS, port=st.integers(1, 65535), fingerprint=SECRETS, secret=SECRETS)


@given(CODES)
def test_a_code_is_read_as_it_was_shown(code: Code) -> None:
    assert read_code(code.text) == code


@given(CODES, st.randoms(use_true_random=False))
def test_a_code_is_read_as_people_type_it(code: Code, chance: object) -> None:
    address, groups = code.text.split(" ")
    full_width = str.maketrans(
        string.ascii_uppercase + string.digits + "-:",
        "".join(chr(ord(char) + 0xFEE0) for char in string.ascii_uppercase + string.digits + "-:"),
    )
    for typed in (
        code.text.lower(),
        code.text.translate(full_width),
        f"  {address}\n{groups.replace('-', ' ')}\r\n",
        f"{address}\u3000{groups.replace('-', '—')}",
        f"{address} {groups.replace('-', '')}",
        f"{address} {groups.replace('0', 'O').replace('1', 'l')}",
    ):
        assert read_code(typed) == code


@given(CODES, st.integers(0, 55), st.sampled_from(ALPHABET))
def test_every_wrong_character_is_found_and_its_group_named(
    code: Code, place: int, other: str
) -> None:
    address, groups = code.text.split(" ")
    chars = list(groups.replace("-", ""))
    if chars[place] == other:
        return
    chars[place] = other
    with pytest.raises(EnrolmentRefused) as caught:
        read_code(f"{address} {''.join(chars)}")
    assert caught.value.reason == "mistyped"
    detail = caught.value.detail
    assert f"group {place // 4 + 1} " in detail or "compare it" in detail


@given(CODES, st.integers(0, 54))
def test_every_swap_of_neighbours_is_found(code: Code, place: int) -> None:
    address, groups = code.text.split(" ")
    chars = list(groups.replace("-", ""))
    if chars[place] == chars[place + 1]:
        return
    chars[place : place + 2] = chars[place + 1], chars[place]
    with pytest.raises(EnrolmentRefused, match="typing error"):
        read_code(f"{address} {''.join(chars)}")


def test_a_wrong_character_is_nearly_always_placed() -> None:
    code = new_code("enrol.example.org", b"the town's")
    address, groups = code.text.split(" ")
    chars = list(groups.replace("-", ""))
    placed = 0
    for place, char in enumerate(chars):
        wrong = ALPHABET[(ALPHABET.index(char) + 7) % 32]
        with pytest.raises(EnrolmentRefused) as caught:
            read_code(f"{address} {''.join([*chars[:place], wrong, *chars[place + 1 :]])}")
        placed += f"look at group {place // 4 + 1} first" in caught.value.detail
    assert placed > 40


def test_another_address_is_found() -> None:
    code = new_code("enrol.example.org", b"the town's")
    with pytest.raises(EnrolmentRefused, match="typing error"):
        read_code(code.text.replace("ENROL.", "EMROL."))
    with pytest.raises(EnrolmentRefused, match="typing error"):
        read_code(code.text.replace("ORG ", "ORG:8444 "))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "begins with an address"),
        ("enrol_example 0000", "begins with an address"),
        ("enrol.example:99999 0000", "begins with an address"),
        ("enrol.example", "0 / 56"),
        ("enrol.example 0123-4567", "8 / 56"),
        ("enrol.example 0123-456U", "group 2 has a character"),
        ("enrol.example 0123-45臺7", "group 2 has a character"),
    ],
)
def test_what_is_wrong_with_a_code_is_said(text: str, words: str) -> None:
    with pytest.raises(EnrolmentRefused, match=words):
        read_code(text)


@given(st.text(max_size=300))
def test_whatever_is_typed_is_a_code_or_a_typing_error(text: str) -> None:
    try:
        read_code(text)
    except EnrolmentRefused as error:
        assert error.reason == "mistyped"
        shown = str(error)
        assert all(word not in shown for word in text.split() if len(word) > 8)


def test_a_code_of_a_later_version_says_so() -> None:
    address, inner = "enrol.example.org", bytes([2]) + bytes(32)
    check = crc_hqx(address.encode() + inner, 0xFFFF).to_bytes(2, "big")
    number = int.from_bytes(inner + check, "big")
    chars = "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(56)))
    with pytest.raises(EnrolmentRefused, match="version 2; this software is too old"):
        read_code(f"{address} {chars}")


def test_no_secret_is_shown() -> None:
    code = new_code("enrol.example.org", b"the town's")
    shown = repr(code) + str(code) + repr([code])
    groups = code.text.split(" ")[1]
    assert code.secret.hex() not in shown
    assert repr(code.secret) not in shown
    assert groups not in shown
    assert code.secret.hex() not in code.digest
    request = Request(secret=code.secret.hex(), request="x")
    assert code.secret.hex() not in repr(request) + str(request) + repr([request])


def test_two_codes_of_a_town_share_the_fingerprint_alone() -> None:
    one, other = (new_code("enrol.example.org", b"the town's") for _ in range(2))
    assert one.fingerprint == other.fingerprint
    assert one.secret != other.secret


def test_pictures_are_made() -> None:
    code = new_code("enrol.example.org", b"the town's")
    assert picture(code, "svg").startswith(b"<?xml")
    assert picture(code, "png").startswith(b"\x89PNG")
    assert terminal_picture(code).count("\n") > 15


# ------------------------------------------------------------------------------------------------------ how often


def test_an_address_may_be_wrong_some_times_and_then_now_and_then() -> None:
    now = [1000.0]
    attempts = Attempts(lambda: now[0])
    for _ in range(ADDRESS_ATTEMPTS):
        assert attempts.wait_s("192.0.2.1") == 0
        attempts.fail("192.0.2.1")
    assert 0 < attempts.wait_s("192.0.2.1") <= ADDRESS_S
    assert attempts.wait_s("192.0.2.2") == 0
    now[0] += ADDRESS_S
    assert attempts.wait_s("192.0.2.1") == 0
    attempts.fail("192.0.2.1")
    assert attempts.wait_s("192.0.2.1") > 0
    now[0] += 1000 * ADDRESS_S
    assert attempts.wait_s("192.0.2.1") == 0


def test_what_one_customer_has_of_ipv6_counts_as_one() -> None:
    attempts = Attempts(lambda: 0.0)
    for number in range(ADDRESS_ATTEMPTS):
        attempts.fail(f"2001:db8:0:7::{number:x}")
    assert attempts.wait_s("2001:db8:0:7:ffff::1") > 0
    assert attempts.wait_s("2001:db8:0:8::1") == 0


def test_all_addresses_together_have_an_end_and_take_bounded_room() -> None:
    attempts = Attempts(lambda: 0.0)
    for number in range(ALL_ATTEMPTS):
        assert attempts.wait_s("192.0.2.1") == 0
        attempts.fail(f"10.0.{number // 256}.{number % 256}")
    assert attempts.wait_s("192.0.2.1") > 0
    for number in range(2 * ADDRESSES):
        attempts.fail(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}")
    assert len(attempts._addresses) == ADDRESSES
    assert attempts.failed == ALL_ATTEMPTS + 2 * ADDRESSES


# ---------------------------------------------------------------------------------------------- the gateway's files


def granted(**more: object) -> Grant:
    fields: dict[str, object] = {
        "county": "tw-tpe",
        "site": "daan",
        "gateway": "gw-1",
        "broker": BrokerAddress(host="mqtt.example.org", port=8884, username="tw-tpe.gw-1"),
        "ca": "PEM",
        "password": "word",
        "label": Label(en='A "quoted" name', zh_tw="大安一號"),
        "location": Location(lat=25.0, lon=121.5),
        "township": "daan",
        "intervals": {"gateway": 300.0, "air": 60.0},
    }
    return Grant(**(fields | more))  # type: ignore[arg-type]  # fields of the tests


@pytest.mark.parametrize("secret", [{}, {"certificate": "PEM", "password": ""}])
def test_the_configuration_that_is_written_is_good(tmp_path: Path, secret: dict[str, str]) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(gateway_side._config(granted(**secret), tmp_path / "state"), "utf-8")
    found = read_config(config)
    assert (found.gateway.county, found.gateway.site, found.gateway.id) == (
        "tw-tpe",
        "daan",
        "gw-1",
    )
    assert found.gateway.interval_s == 300
    assert found.gateway.label.en == 'A "quoted" name'
    assert found.broker.address == ("mqtt.example.org", 8884)
    assert found.broker.tls is not None
    assert found.broker.tls.ca_file == tmp_path / "ca.pem"
    assert bool(found.broker.tls.key_file) == bool(secret)
    assert bool(found.broker.password_file) != bool(secret)
    assert "air 60" in config.read_text("utf-8")


def test_an_operators_file_that_fits_needs_nothing_pasted(tmp_path: Path) -> None:
    grant, config = granted(), tmp_path / "edge.toml"
    config.write_text(gateway_side._config(grant, tmp_path), "utf-8")
    assert gateway_side._paste(tmp_path, grant, tmp_path) == ""
    for before, after in (('"gw-1"', '"gw-2"'), ("8884", "8883"), ('"ca.pem"', '"other.pem"')):
        changed = config.read_text("utf-8").replace(before, after, 1)
        (tmp_path / "edge.toml").write_text(changed, "utf-8")
        tables = tomllib.loads(gateway_side._paste(tmp_path, grant, tmp_path))
        assert tables["broker"]["tls"] == {"ca_file": "ca.pem"}
        config.write_text(gateway_side._config(grant, tmp_path), "utf-8")
    config.write_text("no TOML", "utf-8")
    assert gateway_side._paste(tmp_path, grant, tmp_path)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_an_answer_of_anything_is_no_grant(value: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps(value), type=Grant)


@pytest.mark.parametrize(
    "change",
    [
        {"password": ""},
        {"certificate": "PEM"},
        {"ca": "no PEM"},
        {"certificate": "no PEM", "password": ""},
    ],
)
def test_a_grant_of_nonsense_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(EnrolmentRefused, match="makes no sense"):
        gateway_side._check(granted(**change), ec.generate_private_key(ec.SECP256R1()))


def test_a_request_is_of_the_key_that_signed_it(tmp_path: Path) -> None:
    key = gateway_side._next_key(tmp_path)
    one, again = gateway_side._request(key), gateway_side._request(key)
    assert one != again
    assert requested_key(one.encode()) == requested_key(again.encode())
    other = gateway_side._request(ec.generate_private_key(ec.SECP256R1()))
    assert requested_key(other.encode()) != requested_key(one.encode())


def test_the_waiting_key_is_private_and_kept(tmp_path: Path) -> None:
    key = gateway_side._next_key(tmp_path)
    file = tmp_path / gateway_side.NEXT_KEY
    assert file.stat().st_mode & 0o777 == 0o600
    assert gateway_side._next_key(tmp_path).private_numbers() == key.private_numbers()
    file.chmod(0o640 if file.stat().st_uid else 0o644)
    with pytest.raises(ConfigError, match="must be private"):
        gateway_side._next_key(tmp_path)
    file.chmod(0o600)
    file.write_text("half a k")
    assert gateway_side._next_key(tmp_path).private_numbers() != key.private_numbers()


def test_a_folder_that_others_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    code = new_code("localhost:1", b"")
    with pytest.raises(ConfigError, match="others must not write there"):
        gateway_side.enrol(code, tmp_path, state_dir=tmp_path, patience_s=0)


def test_what_root_writes_belongs_to_the_folders_owner(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, 54321)
    gateway_side._write(tmp_path / "key.pem", b"key", 0o600)
    owner, found = tmp_path.stat(), (tmp_path / "key.pem").stat()
    assert (found.st_uid, found.st_gid) == (owner.st_uid, owner.st_gid)
    assert found.st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem"]


# ------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("off_s", "words"), [(3600.0, "behind 慢"), (-3600.0, "ahead 快"), (20.0, "")]
)
def test_a_clock_that_is_off_is_told(
    off_s: float, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = gateway_side.Enrolled(name="tw-tpe/gw-1", before=False, paste="", clock_off_s=off_s)
    enrolment_command._say(done, Path("/etc/onestreet"))
    said = capsys.readouterr().out
    assert ("clock" in said) == bool(words)
    assert words in said


@pytest.mark.parametrize("words", ["-1", "nan", "soon", "3601"])
def test_patience_has_an_end(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["enrol", "--patience", words])
    assert "0 to 3600" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["{code}"], ["--code", "{code}"], ["--code={code}"], ["--into", ".", "{code}"]]
)
def test_a_code_as_an_argument_is_refused_and_not_repeated(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = new_code("localhost:1", b"")
    assert run(["enrol", *(word.format(code=code.text) for word in words)]) == 2
    said = capsys.readouterr()
    assert "a code is no argument" in said.err
    assert "請勿將註冊碼放在指令參數中" in said.err
    assert code.text.split(" ")[1] not in said.out + said.err


def test_a_code_file_that_others_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "code"
    file.write_text("x")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="must be private"):
        run(["enrol", "--code-file", str(file), "--into", str(tmp_path)])


def test_a_code_in_place_of_its_file_is_not_repeated(tmp_path: Path) -> None:
    code = new_code("localhost:1", b"")
    with pytest.raises(ConfigError) as caught:
        run(["enrol", "--code-file", code.text, "--into", str(tmp_path)])
    assert code.text.split(" ")[1] not in str(caught.value)


# --------------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize("file", ["enrol.md", "enrol.zh-TW.md"])
def test_the_installers_page_explains_every_reason(file: str) -> None:
    text = (DOCS / file).read_text(encoding="utf-8")
    missing = [words for words in WORDS.values() if words["zh-TW" in file] not in text]
    assert missing == []
