"""The authority: what its certificates are good for is asked of OpenSSL, not of the library that made them."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from exchange.errors import ConfigError
from provisioning.authority import (
    CA_DAYS,
    CLIENT_DAYS,
    SERVER_DAYS,
    Authority,
    AuthorityError,
    fits,
    names_of,
    new_key,
    serial_of,
)
from tests.offices import signing_request


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", "Test")


def verified(authority: Authority, certificate: bytes, purpose: str, *more: str) -> str:
    """Return what OpenSSL says of a certificate, as strict as it can be, with the revocation list."""
    file = authority.folder / "asked.pem"
    file.write_bytes(certificate)
    folder = authority.folder
    argv = ["openssl", "verify", "-x509_strict", "-crl_check", "-purpose", purpose]
    argv += ["-CAfile", str(folder / "ca.pem"), "-CRLfile", str(folder / "crl.pem"), *more]
    done = subprocess.run([*argv, str(file)], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


def test_a_certificate_is_good_for_its_kind_only(authority: Authority) -> None:
    for kind, purpose, other in (
        ("server", "sslserver", "sslclient"),
        ("client", "sslclient", "sslserver"),
    ):
        key, certificate = authority.issue("a", kind, names=["broker.example", "192.0.2.7"])  # type: ignore[arg-type]  # both are
        assert fits(key, certificate)
        assert names_of(certificate) == {"broker.example", "192.0.2.7"}
        assert verified(authority, certificate, purpose).endswith(": OK")
        assert "unsuitable certificate purpose" in verified(authority, certificate, other)
        assert "hostname mismatch" in verified(
            authority, certificate, purpose, "-verify_hostname", "elsewhere.example"
        )


def test_validity_is_counted_from_now(authority: Authority) -> None:
    now = datetime.now(UTC)
    for kind, days in (("server", SERVER_DAYS), ("client", CLIENT_DAYS)):
        authority.issue("a", kind)  # type: ignore[arg-type]  # both are
        assert abs(authority.issued[-1].not_after - now - timedelta(days=days)) < timedelta(hours=1)
    assert abs(authority.not_after - now - timedelta(days=CA_DAYS)) < timedelta(hours=2)
    authority.issue("a", "client", days=10 * CA_DAYS)
    assert authority.issued[-1].not_after == authority.not_after, "never beyond the authority's"


def test_an_authority_signs_no_authority(authority: Authority) -> None:
    """Whoever holds a gateway's key can make certificates with it; nobody believes them."""
    key, certificate = authority.issue("a", "client")
    folder = authority.folder
    for name, data in (("k", key), ("c", certificate), ("r", signing_request(new_key(), "b"))):
        (folder / name).write_bytes(data)
    argv: list[str | Path] = [
        "openssl",
        "x509",
        "-req",
        "-in",
        folder / "r",
        "-CA",
        folder / "c",
        "-CAkey",
        folder / "k",
    ]
    forged = subprocess.run(argv, capture_output=True, check=True).stdout
    said = verified(authority, forged, "sslclient", "-untrusted", str(folder / "c"))
    assert "error" in said, said


def test_revoking_is_by_name_or_serial_and_once(authority: Authority) -> None:
    _, first = authority.issue("gw", "client")
    _, second = authority.issue("gw", "client")
    _, other = authority.issue("other", "client")
    assert [one.serial for one in authority.revoke(serial_of(first))] == [serial_of(first)]
    assert "certificate revoked" in verified(authority, first, "sslclient")
    assert verified(authority, second, "sslclient").endswith(": OK")
    assert [one.serial for one in authority.revoke("gw")] == [serial_of(second)]
    assert authority.revoke("gw") == []
    assert "certificate revoked" in verified(authority, second, "sslclient")
    assert verified(authority, other, "sslclient").endswith(": OK")


def test_the_revocation_list_outlives_every_certificate(authority: Authority) -> None:
    [crl] = [x509.load_pem_x509_crl(authority.crl())]
    assert crl.next_update_utc == authority.not_after


def test_what_was_issued_is_there_after_a_restart(authority: Authority) -> None:
    _, certificate = authority.issue("gw", "client")
    again = Authority.load(authority.folder)
    assert again.issued == authority.issued
    again.revoke("gw")
    assert "certificate revoked" in verified(again, certificate, "sslclient")


def test_a_signing_request_gets_the_name_that_it_is_given(authority: Authority) -> None:
    key = new_key()
    certificate = authority.sign_request(
        signing_request(key, "tw-tpe.somebody-else"), "tw-tpe.gw-1"
    )
    assert fits(key, certificate)
    subject = x509.load_pem_x509_certificate(certificate).subject
    assert subject.rfc4514_string() == "CN=tw-tpe.gw-1"
    assert verified(authority, certificate, "sslclient").endswith(": OK")


def test_signing_requests_that_are_none(authority: Authority) -> None:
    good = signing_request(new_key(), "a")
    request = x509.load_pem_x509_csr(good)
    forged = bytearray(request.public_bytes(serialization.Encoding.DER))
    forged[-3] ^= 1
    old = rsa.generate_private_key(65537, 2048)
    by_rsa = x509.CertificateSigningRequestBuilder().subject_name(request.subject)
    for pem, words in (
        (b"", "not a signing request"),
        (good[:100], "not a signing request"),
        (x509.load_der_x509_csr(bytes(forged)).public_bytes(serialization.Encoding.PEM), "own key"),
        (by_rsa.sign(old, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), "must be EC"),
    ):
        with pytest.raises(AuthorityError, match=words):
            authority.sign_request(pem, "gw")
    assert authority.issued == []


def test_the_key_is_private_and_may_be_encrypted(tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca", "Test", b"a phrase")
    key = tmp_path / "ca" / "ca.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in key.read_bytes()
    Authority.load(tmp_path / "ca", b"a phrase").issue("gw", "client")
    for passphrase in (None, b"another"):
        with pytest.raises(ConfigError, match="passphrase") as told:
            Authority.load(tmp_path / "ca", passphrase)
        assert "phrase'" not in str(told.value)
        assert "another'" not in str(told.value)
    key.chmod(0o640)
    Path(key).chmod(0o604)
    with pytest.raises(ConfigError, match="must be private"):
        Authority.load(tmp_path / "ca", b"a phrase")


def test_an_authority_is_made_once(authority: Authority) -> None:
    with pytest.raises(AuthorityError, match="made once"):
        Authority.create(authority.folder, "Again")


def test_during_a_rotation_both_are_believed_and_the_old_one_can_still_revoke(
    authority: Authority,
) -> None:
    _, old = authority.issue("old", "client")
    _, stolen = authority.issue("stolen", "client")
    authority.rotate("Test")
    _, new = authority.issue("new", "client")
    authority = Authority.load(authority.folder)
    assert authority.is_rotating
    authority.revoke("stolen")
    for certificate in (old, new):
        assert verified(authority, certificate, "sslclient").endswith(": OK")
    assert "certificate revoked" in verified(authority, stolen, "sslclient")
    with pytest.raises(AuthorityError, match="finish that first"):
        authority.rotate("Test")
    authority.retire_previous()
    authority = Authority.load(authority.folder)
    assert not authority.is_rotating
    assert not (authority.folder / "previous.key").exists()
    assert verified(authority, new, "sslclient").endswith(": OK")
    assert "error" in verified(authority, old, "sslclient")
    assert [one.name for one in authority.all_valid()] == ["new"]


@pytest.mark.parametrize("damage", ["ca.pem", "ca.key", "issued.json"])
def test_damaged_files_are_named(authority: Authority, damage: str) -> None:
    (authority.folder / damage).write_bytes(b"\x00 not what it was")
    with pytest.raises(ConfigError, match=damage):
        Authority.load(authority.folder)
