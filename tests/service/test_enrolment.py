"""From a one-time code to a gateway that delivers: with the real service, broker and agent, and those who attack it."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import socket
import sqlite3
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.clock import Clock
from edge_agent.enrolment import (
    CERTIFICATE,
    CONFIG,
    KEY,
    NEXT_KEY,
    PASSWORD,
    RECORD,
    Enrolled,
    enrol,
)
from exchange.enrolment import (
    MAX_REQUEST_BYTES,
    Code,
    EnrolmentDelayed,
    EnrolmentError,
    EnrolmentRefused,
    Request,
    read_message,
)
from exchange.errors import ConfigError
from provisioning import enrolment_service
from provisioning.authority import AuthorityError, fits, new_key
from provisioning.enrolment import grant, read_codes
from provisioning.enrolment_service import Service
from provisioning.office import opened
from tests.agents import running_agent, until
from tests.enrolments import BY_KEY, BY_PASSWORD, COUNTY, DEADLINE_S, ONESTREET, Bureau, command
from tests.offices import signing_request
from tests.ports import free_port, is_open


@pytest.fixture
def bureau(tmp_path: Path) -> Bureau:
    return Bureau(tmp_path)


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """The folder of a gateway."""
    folder = tmp_path / "box"
    folder.mkdir(0o700)
    return folder


async def enrolled(code: Code, into: Path, patience_s: float = 20.0) -> Enrolled:
    """Enrol in this process."""
    work = partial(enrol, code, into, state_dir=into / "state", patience_s=patience_s)
    return await asyncio.to_thread(work)


async def refused(code: Code, into: Path) -> EnrolmentError:
    """Return why a gateway is not enrolled, without trying again."""
    with pytest.raises(EnrolmentError) as caught:
        await enrolled(code, into, 0.0)
    return caught.value


def has_gateway_sample(store: Path) -> bool:
    if not store.exists():
        return False
    query = "SELECT count(*) FROM points WHERE measurement = 'gateway'"
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as shell:
            return bool(shell.execute(query).fetchone()[0])
    except sqlite3.OperationalError:  # its tables are being made
        return False


def of_process(pid: int) -> bytes:
    """What everybody, or its owner, can see of a process."""
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))


def is_said(code: Code, text: str) -> bool:
    """Whether a text has the code's secret, in any of its forms."""
    groups = code.text.split(" ")[1]
    return any(
        form.lower() in text.lower()
        for form in (groups, groups.replace("-", ""), code.secret.hex(), groups.split("-", 8)[-1])
    )


# --------------------------------------------------------------------------------------------------------- the way


async def test_a_code_brings_a_gateway_from_nothing_to_its_first_sample(
    bureau: Bureau, box: Path
) -> None:
    code = bureau.code()
    words = ["edge", "enrol", "--into", str(box), "--state-dir", str(box / "state")]
    async with bureau.serving(), bureau.running():
        said = await command(*words, typed=code.text + "\n")
        assert said.status == 0, said.err
        assert f"{COUNTY}/{BY_KEY}: enrolled 已完成註冊" in said.out
        assert "paste" not in said.out
        for name, mode in ((KEY, 0o600), (CERTIFICATE, 0o644), ("ca.pem", 0o644), (CONFIG, 0o644)):
            assert (box / name).stat().st_mode & 0o777 == mode, name
        assert not (box / NEXT_KEY).exists()
        checked = await command("edge", "check", str(box / CONFIG))
        assert checked.status == 0, checked.err
        async with running_agent(box / CONFIG, clock=Clock()):  # whatever the kernel here says
            await until(lambda: has_gateway_sample(bureau.store), DEADLINE_S)
        before = (box / KEY).read_bytes(), (box / CERTIFICATE).read_bytes()
        again = await command(*words, typed=code.text)
        assert again.status == 0
        assert "already before 先前已完成" in again.out
        assert before == ((box / KEY).read_bytes(), (box / CERTIFICATE).read_bytes())
    assert not is_said(code, bureau.log() + said.out + said.err + again.out + again.err)
    assert f'"gateway":"{COUNTY}/{BY_KEY}"' in bureau.log()
    key = (box / KEY).read_bytes()
    everything = [path for path in bureau.folder.rglob("*") if path.is_file()]
    assert [path for path in everything if key in path.read_bytes()] == []
    assert [path for path in everything if is_said(code, path.read_text(errors="replace"))] == []


async def test_a_code_brings_a_password_where_no_key_can_be_held(bureau: Bureau, box: Path) -> None:
    code = bureau.code(BY_PASSWORD)
    async with bureau.running(), bureau.serving():
        await enrolled(code, box)
        assert not (box / KEY).exists()
        assert not (box / NEXT_KEY).exists()
        assert (box / PASSWORD).stat().st_mode & 0o777 == 0o600
        async with running_agent(box / CONFIG, clock=Clock()):  # whatever the kernel here says
            await until(lambda: has_gateway_sample(bureau.store), DEADLINE_S)
    word = (box / PASSWORD).read_text().strip()
    for path in [*bureau.folder.rglob("*"), box / RECORD]:
        assert path.is_dir() or word not in path.read_text(errors="replace"), path
    assert word not in bureau.log()


async def test_a_code_is_taken_from_a_private_file(
    bureau: Bureau, box: Path, tmp_path: Path
) -> None:
    file = tmp_path / "code"
    file.touch(0o600)
    file.write_text(bureau.code().text.lower() + "\n")
    async with bureau.serving():
        said = await command("edge", "enrol", "--code-file", str(file), "--into", str(box))
    assert said.status == 0, said.err


async def test_who_types_it_wrong_at_the_prompt_is_asked_again(bureau: Bureau, box: Path) -> None:
    code = bureau.code().text
    ours, theirs = pty.openpty()
    async with bureau.serving():
        process = await asyncio.create_subprocess_exec(
            *[*ONESTREET, "edge", "enrol", "--into", str(box)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        screen = bytearray()

        def look() -> None:
            with suppress(OSError):  # the other side has ended
                screen.extend(os.read(ours, 4096))

        loop = asyncio.get_running_loop()
        loop.add_reader(ours, look)
        try:
            await until(lambda: "Code 註冊碼: ".encode() in screen, DEADLINE_S)
            os.write(ours, code[:-1].encode() + b"\n")
            await until(lambda: b"55 / 56" in screen, DEADLINE_S)
            os.write(ours, code.lower().encode() + b"\n")
            await until(lambda: "已完成註冊".encode() in screen, DEADLINE_S)
            async with asyncio.timeout(DEADLINE_S):
                assert await process.wait() == 0
        finally:
            loop.remove_reader(ours)
            os.close(ours)
    assert (box / CERTIFICATE).exists()


async def test_an_operators_file_is_left_alone_and_what_it_lacks_is_shown(
    bureau: Bureau, box: Path
) -> None:
    (box / CONFIG).write_text("# mine\n")
    async with bureau.serving():
        said = await command("edge", "enrol", "--into", str(box), typed=bureau.code().text)
    assert said.status == 0, said.err
    assert (box / CONFIG).read_text() == "# mine\n"
    assert "was there and is left as it is" in said.out
    assert f'id = "{BY_KEY}"' in said.out
    assert 'key_file = "key.pem"' in said.out


async def test_a_new_code_replaces_key_and_certificate(bureau: Bureau, box: Path) -> None:
    async with bureau.serving():
        await enrolled(bureau.code(), box)
        first = (box / KEY).read_bytes()
        done = await enrolled(bureau.code(), box)
    assert not done.before
    assert (box / KEY).read_bytes() != first
    assert fits((box / KEY).read_bytes(), (box / CERTIFICATE).read_bytes())


async def test_the_same_gateway_gets_the_same_answer_again_when_it_was_lost(
    bureau: Bureau, box: Path
) -> None:
    code = bureau.code()
    async with bureau.serving():
        await enrolled(code, box)
        certificate = (box / CERTIFICATE).read_bytes()
        # as after a cut of power: the answer came, and nothing of it reached the disk
        (box / KEY).rename(box / NEXT_KEY)
        for name in (CERTIFICATE, RECORD, CONFIG, "ca.pem"):
            (box / name).unlink()
        assert not (await enrolled(code, box)).before
        assert (box / CERTIFICATE).read_bytes() == certificate
    with opened(bureau.folder) as office:
        assert len(office.authority.valid(f"{COUNTY}.{BY_KEY}")) == 1


async def test_a_service_that_is_killed_after_it_granted_grants_the_same_again(
    bureau: Bureau, box: Path, tmp_path: Path
) -> None:
    code = bureau.code()
    key = new_key()
    (box / NEXT_KEY).touch(0o600)
    (box / NEXT_KEY).write_bytes(key)
    request = Request(secret=code.secret.hex(), request=signing_request(key, "me").decode())
    async with bureau.serving() as service:
        connection = await tls(bureau, code)
        connection.write(posted(msgspec.json.encode(request)))
        await until(lambda: used(bureau, code), DEADLINE_S)
        service.kill()
        connection.transport.abort()  # whatever the answer was, it never came
        await enrolled(code, box)
    assert fits(key, (box / CERTIFICATE).read_bytes())
    with opened(bureau.folder) as office:
        assert len(office.authority.valid(f"{COUNTY}.{BY_KEY}")) == 1


async def test_kills_at_any_moment_leave_one_certificate_that_fits(tmp_path: Path) -> None:
    bureau = Bureau(tmp_path, gateways=3)
    async with bureau.serving() as service:
        for number, gateway in enumerate(("gw-1", "gw-3", "gw-4")):
            code, into = bureau.code(gateway), tmp_path / gateway
            enrolling = asyncio.create_task(enrolled(code, into, 25.0))
            await asyncio.wait([enrolling], timeout=0.01 * 3**number)
            service.kill()
            await enrolling
            assert fits((into / KEY).read_bytes(), (into / CERTIFICATE).read_bytes())
            await until(lambda: bool(service.pid), DEADLINE_S)
    assert all(entry.used for entry in read_codes(bureau.folder).codes.values())


async def test_what_has_begun_is_finished_on_sigterm(bureau: Bureau, tmp_path: Path) -> None:
    code = bureau.code()
    request = Request(secret=code.secret.hex(), request=signing_request(new_key(), "me").decode())
    async with bureau.serving() as service:
        connection = await tls(bureau, code)
        whole = posted(msgspec.json.encode(request))
        connection.write(whole[:-20])
        await connection.drain()
        # another whole request was answered, so that the first half of ours was read
        other = await tls(bureau, code)
        other.write(b"GET /v1/ca HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await other.read()).startswith(b"HTTP/1.1 200")
        stopping = asyncio.create_task(service.stop(DEADLINE_S))
        await until(lambda: not is_open(bureau.port), DEADLINE_S)
        connection.write(whole[-20:])
        answer = await connection.read()
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert await stopping
    assert used(bureau, code)


async def test_a_gateway_waits_for_a_service_that_is_not_there_yet(
    bureau: Bureau, box: Path
) -> None:
    code = bureau.code()
    error = await refused(code, box)
    assert isinstance(error, EnrolmentDelayed)
    assert error.reason == "unreachable"
    waiting = asyncio.create_task(enrolled(code, box))
    async with bureau.serving():
        await waiting


async def test_no_code_is_in_the_list_of_processes(bureau: Bureau, box: Path) -> None:
    code = bureau.code()
    process = await asyncio.create_subprocess_exec(
        *ONESTREET, "edge", "enrol", "--into", str(box), stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(code.text.encode())
    process.stdin.close()
    try:
        async with asyncio.timeout(DEADLINE_S):
            line = (await process.stderr.readline()).decode()
        assert "trying again" in line
        seen = of_process(process.pid)
        assert b"enrol" in seen
        assert not is_said(code, seen.decode(errors="replace") + line)
    finally:
        process.kill()
        await process.wait()


# --------------------------------------------------------------------------------------------------------- refusals


async def test_a_used_code_is_worthless_to_another_key(
    bureau: Bureau, box: Path, tmp_path: Path
) -> None:
    code = bureau.code()
    async with bureau.serving():
        await enrolled(code, box)
        error = await refused(code, tmp_path / "thief")
        assert (type(error), error.reason) == (EnrolmentRefused, "used")
    assert not (tmp_path / "thief" / CERTIFICATE).exists()


async def test_of_two_gateways_with_one_code_one_wins(tmp_path: Path) -> None:
    bureau = Bureau(tmp_path, gateways=3)
    async with bureau.serving():
        for gateway in ("gw-1", "gw-3", "gw-4"):
            code = bureau.code(gateway)
            outcomes = await asyncio.gather(
                *(enrolled(code, tmp_path / f"{gateway}-{name}") for name in "abc"),
                return_exceptions=True,
            )
            lost = [one.reason for one in outcomes if isinstance(one, EnrolmentError)]
            assert lost == ["used", "used"], outcomes
            assert sum(isinstance(one, Enrolled) for one in outcomes) == 1
    with opened(bureau.folder) as office:
        for gateway in ("gw-1", "gw-3", "gw-4"):
            assert len(office.authority.valid(f"{COUNTY}.{gateway}")) == 1


async def test_each_refusal_says_why(bureau: Bureau, tmp_path: Path) -> None:
    expired = bureau.code(days=-0.001)
    async with bureau.serving():
        assert (await refused(expired, tmp_path / "a")).reason == "expired"
        older, newer = bureau.code(), bureau.code()
        assert (await refused(older, tmp_path / "b")).reason == "unknown"
        with opened(bureau.folder) as office:
            office.revoke_gateway(COUNTY, BY_KEY)
        assert (await refused(newer, tmp_path / "c")).reason == "withdrawn"
    for reason in ("expired", "unknown", "withdrawn"):
        assert f'"reason":"{reason}"' in bureau.log()


async def test_a_code_from_before_a_gateway_was_revoked_stays_worthless(
    bureau: Bureau, tmp_path: Path
) -> None:
    code, name, into = bureau.code(), f"{COUNTY}/{BY_KEY}", str(bureau.folder)
    assert (await command("town", "gateway", "revoke", name, "--into", into)).status == 0
    added = await command("town", "gateway", "add", name, "--enrol", "--into", into)
    assert added.status == 0, added.err
    async with bureau.serving():
        assert (await refused(code, tmp_path / "thief")).reason == "unknown"


def test_a_revoked_gateway_gets_no_code(bureau: Bureau) -> None:
    with opened(bureau.folder) as office:
        office.revoke_gateway(COUNTY, BY_KEY)
    with pytest.raises(ConfigError, match="add it again first"):
        bureau.code()


def test_an_address_that_the_service_cannot_prove_gets_no_code(bureau: Bureau) -> None:
    with pytest.raises(ConfigError, match=r"broker\.names"):
        bureau.code(address="elsewhere.example")
    with pytest.raises(ConfigError, match="begins with an address"):
        bureau.code(address="no address")


def test_the_time_for_the_same_key_ends(bureau: Bureau) -> None:
    code = bureau.code(BY_PASSWORD)
    pem = signing_request(new_key(), "me").decode()
    request = Request(secret=code.secret.hex(), request=pem)
    now = datetime.now(UTC)
    with opened(bureau.folder) as office:
        first = grant(office, request, now=now - timedelta(minutes=16))
        assert first.password
        with pytest.raises(EnrolmentRefused, match="used already"):
            grant(office, request, now=now)
    bureau.code()  # whatever is written next wipes what a password was made of
    assert read_codes(bureau.folder).codes[code.digest].salt == ""


def test_a_password_needs_proof_of_the_key(bureau: Bureau) -> None:
    code = bureau.code(BY_PASSWORD)
    key = new_key()
    with opened(bureau.folder) as office:
        grant(
            office, Request(secret=code.secret.hex(), request=signing_request(key, "me").decode())
        )
        der = bytearray(ssl_der(signing_request(key, "me")))
        der[-3] ^= 1  # the public key alone, without a signature of it
        forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
        with pytest.raises(AuthorityError, match="not signed"):
            grant(office, Request(secret=code.secret.hex(), request=forged.decode()))


def ssl_der(pem: bytes) -> bytes:
    return x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("request_pem", ["x", "-----BEGIN CERTIFICATE REQUEST-----\n-----END"])
def test_a_broken_request_uses_no_code_up(bureau: Bureau, request_pem: str) -> None:
    code = bureau.code()
    with opened(bureau.folder) as office, pytest.raises(AuthorityError):
        grant(office, Request(secret=code.secret.hex(), request=request_pem))
    assert not used(bureau, code)


async def test_guessing_is_held_up_even_with_the_right_code_at_the_end(
    bureau: Bureau, tmp_path: Path
) -> None:
    code = bureau.code()
    pem = signing_request(new_key(), "me").decode()
    async with bureau.serving():
        statuses = []
        for number in range(enrolment_service.ADDRESS_ATTEMPTS + 3):
            guess = Request(secret=f"{number:032x}", request=pem)
            statuses.append(await status_of(bureau, code, posted(msgspec.json.encode(guess))))
        assert statuses == [403] * enrolment_service.ADDRESS_ATTEMPTS + [429] * 3
        error = await refused(code, tmp_path / "box")
        assert error.reason == "busy"
        assert isinstance(error, EnrolmentDelayed)
        assert 0 < error.retry_after_s <= enrolment_service.ADDRESS_S
    attempts = [line for line in bureau.log().splitlines() if "an attempt failed" in line]
    assert json.loads(attempts[-1])["failed_attempts"] == enrolment_service.ADDRESS_ATTEMPTS
    assert not used(bureau, code)


# -------------------------------------------------------------------------------------------- somebody in the middle


async def test_another_towns_service_gets_nothing(
    bureau: Bureau, box: Path, tmp_path: Path
) -> None:
    (tmp_path / "else").mkdir()
    other = Bureau(tmp_path / "else")
    other.port = bureau.port  # it answers where ours is expected
    async with other.serving():
        error = await refused(bureau.code(), box)
        assert (type(error), error.reason) == (EnrolmentRefused, "authority")
    assert "an attempt" not in other.log()
    assert '"failed_attempts":0' in other.log()


def certified(
    bureau: Bureau, folder: Path, *, by: Path | None = None, **more: object
) -> ssl.SSLContext:
    """Return the context of a server whose certificate the town's authority signed, or another's."""
    ca = by or bureau.folder / "ca"
    signer = serialization.load_pem_private_key((ca / "ca.key").read_bytes(), None)
    issuer = x509.load_pem_x509_certificate((ca / "ca.pem").read_bytes())
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    usage = more.get("usage", ExtendedKeyUsageOID.SERVER_AUTH)
    names = more.get("names", ["localhost"])
    begins = more.get("begins", now - timedelta(hours=1))
    ends = more.get("ends", now + timedelta(days=1))
    assert isinstance(usage, x509.ObjectIdentifier)
    assert isinstance(names, list)
    assert isinstance(begins, datetime)
    assert isinstance(ends, datetime)
    key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "middle")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False
        )
        .add_extension(authority, critical=False)
        .sign(signer, hashes.SHA256())
    )
    (folder / "middle.pem").write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "middle.pem")
    return context


@asynccontextmanager
async def middle(
    bureau: Bureau, context: ssl.SSLContext, answer: Callable[[bytes], bytes]
) -> AsyncIterator[list[bytes]]:
    """Stand where the service is expected; yields what is heard."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            body = answer(heard[-1])
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", bureau.port, ssl=context)
    try:
        yield heard
    finally:
        server.close()


def says_the_ca(bureau: Bureau) -> Callable[[bytes], bytes]:
    """Anybody can know the town's certificate."""
    return lambda _: (bureau.folder / "ca" / "ca.pem").read_bytes()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"by": "else"}, "authority"),
        # a gateway that was stolen has a certificate of the town's, too
        ({"usage": ExtendedKeyUsageOID.CLIENT_AUTH}, "authority"),
        ({"names": ["elsewhere.example"]}, "authority"),
        ({"begins": datetime.now(UTC) + timedelta(hours=2)}, "clock"),
        ({"ends": datetime.now(UTC) - timedelta(minutes=2)}, "clock"),
    ],
)
async def test_whoever_shows_the_towns_certificate_and_is_not_the_town_gets_nothing(
    bureau: Bureau, box: Path, tmp_path: Path, more: dict[str, object], reason: str
) -> None:
    code = bureau.code()
    if more.get("by"):
        (tmp_path / "else").mkdir()
        more = {"by": Bureau(tmp_path / "else").folder / "ca"}
    context = certified(bureau, tmp_path, **more)  # type: ignore[arg-type]  # by is a path
    async with middle(bureau, context, says_the_ca(bureau)) as heard:
        error = await refused(code, box)
    assert (type(error), error.reason) == (EnrolmentRefused, reason)
    assert [line.split(b" ")[0] for line in heard] == [b"GET"]
    if reason == "clock":
        assert datetime.now(UTC).strftime("%Y-%m-%d") in str(error)


GARBAGE = st.binary(max_size=300) | st.just(b"[]") | st.just(b'{"v":1}') | st.just(b"x" * 200_000)


@given(GARBAGE)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_service_that_answers_garbage_is_found_out(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes
) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    bureau = one_bureau(tmp_path_factory)
    says = says_the_ca(bureau)

    async def meet() -> None:
        async with middle(
            bureau,
            certified(bureau, folder),
            lambda head: says(head) if b"GET" in head else garbage,
        ):
            error = await refused(CODES[bureau], folder / "box")
            assert error.reason == "answer"

    asyncio.run(meet())
    assert not (folder / "box" / CERTIFICATE).exists()


BUREAUS: list[Bureau] = []
CODES: dict[Bureau, Code] = {}


def one_bureau(factory: pytest.TempPathFactory) -> Bureau:
    """Return an office that examples share: none of them changes it."""
    if not BUREAUS:
        BUREAUS.append(Bureau(factory.mktemp("shared")))
        CODES[BUREAUS[0]] = BUREAUS[0].code()
    return BUREAUS[0]


# ------------------------------------------------------------------------------------------------- against the service


async def tls(bureau: Bureau, code: Code) -> Connection:
    context = ssl.create_default_context(cafile=str(bureau.folder / "ca" / "ca.pem"))
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", bureau.port, ssl=context, server_hostname="localhost"
    )
    return Connection(reader, writer)


class Connection:
    """A raw connection to the service."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.write = writer.write
        self.drain = writer.drain
        self.transport = writer.transport

    async def read(self) -> bytes:
        """Return everything until the service closes."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._reader.read()
        except (ConnectionError, ssl.SSLError):
            return b""
        finally:
            self._writer.close()


def posted(body: bytes) -> bytes:
    head = f"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def status_of(bureau: Bureau, code: Code, request: bytes) -> int:
    connection = await tls(bureau, code)
    connection.write(request)
    answer = await connection.read()
    return int(answer.split(b" ")[1]) if answer else 0


def used(bureau: Bureau, code: Code) -> bool:
    return read_codes(bureau.folder).codes[code.digest].used is not None


@asynccontextmanager
async def served_here(bureau: Bureau) -> AsyncIterator[Service]:
    """Run the service in this process, so that its limits can be changed."""
    service, stop = Service(bureau.folder), asyncio.Event()
    running = asyncio.create_task(service.run("127.0.0.1", bureau.port, stop))
    try:
        await until(lambda: is_open(bureau.port) or running.done())
        yield service
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await running


async def test_broken_requests_are_answered_and_leave_no_trace(
    bureau: Bureau, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment_service, "ADDRESS_ATTEMPTS", 10_000)
    monkeypatch.setattr(enrolment_service, "ALL_ATTEMPTS", 10_000)
    code = bureau.code()
    secret, pem = code.secret.hex(), signing_request(new_key(), "me").decode()
    good = json.dumps({"v": 1, "secret": secret, "request": pem}).encode()
    cases: list[tuple[bytes, set[int]]] = [
        (posted(b""), {400}),
        (posted(b'{"v":1,"\x80":1}'), {400}),
        (posted(b"\xff\xfe" + secret.encode()), {400}),
        (posted(b"[" * 5000 + secret.encode()), {400}),
        (posted(json.dumps({"v": 2, "secret": secret, "request": pem}).encode()), {400}),
        (posted(json.dumps({"v": 1, "secret": secret, "request": pem, "x": 1}).encode()), {400}),
        (posted(json.dumps({"v": 1, "secret": secret.upper(), "request": pem}).encode()), {400}),
        (posted(json.dumps({"v": 1, "secret": [secret], "request": pem}).encode()), {400}),
        (posted(json.dumps({"v": 1, "secret": secret, "request": "x"}).encode()), {400}),
        (posted(json.dumps({"v": 1, "secret": secret, "request": "x" * 9000}).encode()), {400}),
        (posted(good + b" " * MAX_REQUEST_BYTES), {400}),
        (b"GET /v1/enrol HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {405}),
        (b"GET /v1/codes.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
        (b"GET /v1/../ca/ca.key HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
        (f"{secret}\r\n\r\n".encode(), {400, 0}),
        (b"POST /v1/enrol HTTP/1.1\r\n" + secret.encode() * 1000 + b"\r\n\r\n", {400, 0}),
        (b"POST /v1/enrol HTTP/1.1\r\nContent-Length: -1\r\n\r\n" + good, {400, 0}),
    ]
    async with served_here(bureau):
        for request, statuses in cases:
            assert await status_of(bureau, code, request) in statuses, request[:80]
        assert not used(bureau, code)
        assert await status_of(bureau, code, posted(good)) == 200
    assert not is_said(code, caplog.text)


@given(data=st.binary(max_size=2000), place=st.integers(0, 400), whole=st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_is_a_request_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, place: int, whole: bool
) -> None:
    bureau = one_bureau(tmp_path_factory)
    code = CODES[bureau]
    good = json.dumps({"v": 1, "secret": code.secret.hex(), "request": "?"}).encode()
    body = good[:place] + data + good[place:] if whole else data
    try:
        request = read_message(body, Request)
    except EnrolmentRefused as error:
        assert error.reason == "answer"
        return
    with opened(bureau.folder) as office, pytest.raises((AuthorityError, EnrolmentRefused)):
        grant(office, request)
    assert not used(bureau, code)


async def test_who_drips_is_cut_off(bureau: Bureau, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment_service, "CONNECTION_S", 0.3)
    monkeypatch.setattr(enrolment_service, "BODY_S", 600.0)  # it is not this that ends it
    code = bureau.code()
    async with served_here(bureau):
        connection = await tls(bureau, code)
        connection.write(b"POST /v1/enrol HTTP/1.1\r\nX-Slow: ")
        assert await connection.read() == b""


async def test_who_sends_half_a_body_is_told_and_cut_off(
    bureau: Bureau, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment_service, "BODY_S", 0.2)
    code = bureau.code()
    async with served_here(bureau):
        connection = await tls(bureau, code)
        connection.write(posted(b"{" * 100)[:-10])
        assert (await connection.read()).startswith(b"HTTP/1.1 400")


async def test_one_connection_too_many_is_closed_and_the_others_go_on(
    bureau: Bureau, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment_service, "CONNECTIONS", 2)
    code, ask = bureau.code(), b"GET /v1/ca HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with served_here(bureau):
        await until(lambda: True)
        held = [await tls(bureau, code) for _ in range(2)]
        third = await tls(bureau, code)
        third.write(ask)
        assert await third.read() == b""
        for one in held:
            one.write(ask)
            assert (await one.read()).startswith(b"HTTP/1.1 200")


# ----------------------------------------------------------------------------------------------- what must be private


@pytest.mark.parametrize("name", ["enrolment/codes.json", "enrolment/server.key", "ca/ca.key"])
async def test_a_secret_that_others_may_read_keeps_the_service_from_starting(
    bureau: Bureau, name: str
) -> None:
    bureau.code()
    (bureau.folder / name).chmod(0o644)
    listen = f"127.0.0.1:{free_port()}"
    said = await command("town", "enrolment", "--into", str(bureau.folder), "--listen", listen)
    assert said.status == 2
    assert "must be private" in said.err
    assert Path(name).name in said.err


async def test_a_port_that_is_taken_is_named(bureau: Bureau) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = "127.0.0.1:{1}".format(*taken.getsockname())
        said = await command("town", "enrolment", "--into", str(bureau.folder), "--listen", listen)
    assert said.status == 2
    assert listen in said.err


async def test_a_new_certificate_of_the_service_is_taken_up(bureau: Bureau, box: Path) -> None:
    async with served_here(bureau) as service:
        with opened(bureau.folder) as office:
            office.rotate_service("enrolment")
        serial = x509.load_pem_x509_certificate(
            (bureau.folder / "enrolment" / "server.pem").read_bytes()
        ).serial_number
        await asyncio.to_thread(service.refresh)
        connection = await tls(bureau, bureau.code())
        shown = connection.transport.get_extra_info("ssl_object").getpeercert(True)
        connection.transport.abort()
        assert x509.load_der_x509_certificate(shown).serial_number == serial


async def test_codes_work_while_the_authority_is_rotated(bureau: Bureau, tmp_path: Path) -> None:
    async with bureau.serving():
        before = bureau.code(BY_KEY)
        with opened(bureau.folder) as office:
            office.rotate_authority()
        await enrolled(before, tmp_path / "before")
        await enrolled(bureau.code(BY_PASSWORD), tmp_path / "after")
