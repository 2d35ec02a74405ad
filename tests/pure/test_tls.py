"""TLS of clients: which files are taken, and that only loopback goes without."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from exchange.errors import ConfigError
from exchange.tls import Tls, check_plain, is_loopback


@pytest.fixture
def files(tmp_path: Path) -> Tls:
    """A certificate that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a town")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = tmp_path / "key.pem"
    secret.touch(mode=0o600)
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return Tls(ca_file=Path("ca.pem"), certificate_file=Path("ca.pem"), key_file=secret).anchored(
        tmp_path
    )


def test_a_client_checks_names_and_speaks_tls_1_2_or_newer(files: Tls) -> None:
    context = files.context("edge.toml", "broker.tls")
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_key_that_others_can_read_is_refused(files: Tls) -> None:
    assert files.key_file is not None
    files.key_file.chmod(0o604)
    with pytest.raises(
        ConfigError, match=r"must be private \(chmod 600\): its mode is 0604"
    ) as caught:
        files.context("edge.toml", "broker.tls")
    assert (caught.value.file, caught.value.key) == ("edge.toml", "broker.tls.key_file")


@pytest.mark.parametrize("missing", ["ca_file", "certificate_file", "key_file"])
@pytest.mark.parametrize("content", [None, "", "no PEM"])
def test_a_file_that_is_none_is_named(
    files: Tls, tmp_path: Path, missing: str, content: str | None
) -> None:
    other = tmp_path / "other.pem"
    if content is not None:
        other.touch(mode=0o600)
        other.write_text(content)
    given = {name: getattr(files, name) for name in files.__struct_fields__} | {missing: other}
    with pytest.raises(ConfigError) as caught:
        Tls(**given).context("edge.toml", "broker.tls")
    # a key that does not fit is found with its certificate
    key = "certificate_file" if missing == "key_file" and content is not None else missing
    assert caught.value.key == f"broker.tls.{key}"


def test_a_certificate_and_its_key_belong_together(files: Tls) -> None:
    with pytest.raises(ConfigError, match="belong together") as caught:
        Tls(ca_file=files.ca_file, certificate_file=files.certificate_file).context("f", "tls")
    assert caught.value.key == "tls.key_file"


def test_only_loopback_goes_without() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"):
        assert is_loopback(host)
        check_plain("f", "broker", host, None)
    for host in ("10.0.0.1", "mqtt.example", "localhost.example", "fe80::1"):
        assert not is_loopback(host)
        with pytest.raises(ConfigError, match="TLS only"):
            check_plain("f", "broker", host, None)
