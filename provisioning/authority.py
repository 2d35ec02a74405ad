"""A town's certificate authority. The one file that knows the library `cryptography`.

Keys are EC P-256. The list of what was issued stands in `issued.json` before a certificate leaves this file, so
that none exists that cannot be revoked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from exchange.configuration import check_private
from exchange.errors import ConfigError, OnestreetError
from provisioning.files import write_private, write_public

Kind: TypeAlias = Literal["server", "client"]

CA_DAYS = 20 * 365
SERVER_DAYS = 2 * 365
CLIENT_DAYS = 5 * 365
OVERLAP_DAYS = 30
_BEGUN_EARLIER = timedelta(hours=1)  # a gateway's clock may be behind ours
_PEM = serialization.Encoding.PEM
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_USAGE = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
}


class AuthorityError(OnestreetError):
    """A certificate cannot be issued or revoked as asked."""


class Issued(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One certificate that this authority signed.

    Units: times are RFC 3339, UTC. Shape: `serial` is hexadecimal; `authority` is the key identifier
    of the CA that signed; after `superseded_until` a superseded certificate is revoked.
    """

    serial: str
    name: str
    kind: Kind
    authority: str
    not_before: datetime
    not_after: datetime
    superseded_until: datetime | None = None
    revoked_at: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Whether it opens doors: neither expired nor revoked."""
        return self.revoked_at is None and now < self.not_after


class _Signer(msgspec.Struct, frozen=True):
    """One CA: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def id(self) -> str:
        return _key_id(self.certificate)


class Authority:
    """The CA in a folder: `ca.key`, `ca.pem`, `crl.pem`, `issued.json`.

    While the CA itself is being rotated, `previous.key` is beside them, `ca.pem` holds both
    certificates (the new one first) and `crl.pem` one list of each.
    """

    def __init__(self, folder: Path, signers: Sequence[_Signer], issued: list[Issued]) -> None:
        """Use `create` or `load`."""
        self.folder = folder
        self.issued = issued
        self._signers = list(signers)

    @classmethod
    def create(cls, folder: Path, name: str, passphrase: bytes | None = None) -> Authority:
        """Make a new CA in a folder. Raises: AuthorityError when there is one."""
        if (folder / "ca.pem").exists():
            raise AuthorityError(f"{folder / 'ca.pem'} exists: an authority is made once")
        signer = _self_signed(name)
        authority = cls(folder, [signer], [])
        write_private(folder / "ca.key", _key_pem(signer.key, passphrase))
        authority._save()
        authority.crl()
        write_public(folder / "ca.pem", authority.certificate)  # last: it says that there is one
        return authority

    @classmethod
    def load(cls, folder: Path, passphrase: bytes | None = None) -> Authority:
        """Read it. Raises: ConfigError when a file is missing, damaged, or readable by others."""
        certificates = _read_certificates(folder / "ca.pem")
        first = _signer(folder / "ca.key", certificates, passphrase)
        if first is None:
            allowed = f"must be the key of a certificate in {folder / 'ca.pem'}"
            raise ConfigError(str(folder / "ca.key"), "file", "another key", allowed)
        signers = [first]
        if (folder / "previous.key").exists():
            # a rotation that was killed half-way leaves a key without a certificate, or the same twice
            previous = _signer(folder / "previous.key", certificates, passphrase)
            signers += [previous] if previous and previous.id != first.id else []
        issued_file = folder / "issued.json"
        try:
            issued = msgspec.json.decode(issued_file.read_bytes(), type=list[Issued])
        except (OSError, msgspec.MsgspecError) as error:
            allowed = "must be the list of what this authority issued"
            raise ConfigError(str(issued_file), "file", str(error), allowed) from error
        return cls(folder, signers, issued)

    @property
    def certificate(self) -> bytes:
        """What others are to believe, in PEM; two certificates while the CA is being rotated."""
        return b"".join(_pem(signer.certificate) for signer in self._signers)

    @property
    def not_after(self) -> datetime:
        """When the CA itself expires."""
        return self._signers[0].certificate.not_valid_after_utc

    @property
    def is_rotating(self) -> bool:
        """Whether an older CA is still believed."""
        return len(self._signers) > 1

    def issue(
        self,
        common_name: str,
        kind: Kind,
        *,
        names: Iterable[str] = (),
        days: int | None = None,
        key_pem: bytes | None = None,
        by_previous: bool = False,
    ) -> tuple[bytes, bytes]:
        """Return a key (a new one, if none is given) and its certificate, in PEM.

        Shape: `names` are host names and addresses, of a server; `by_previous` has the CA sign that
        is being rotated out, for a server whose clients may not know the new one yet.
        """
        key_pem = key_pem or new_key()
        public = _private_key(key_pem, None).public_key()
        return key_pem, self._certified(
            public,
            common_name,
            kind,
            names=names,
            days=days,
            signer=self._signers[-1 if by_previous else 0],
        )

    def sign_request(
        self,
        request_pem: bytes,
        common_name: str,
        kind: Kind = "client",
        *,
        names: Iterable[str] = (),
        days: int | None = None,
    ) -> bytes:
        """Return a certificate for the key of a signing request; whatever else it asks for is ignored.

        Raises: AuthorityError when it is no request, is not signed by its own key, or its key is not
        on one of the curves P-256 and P-384.
        """
        public = _requested_key(request_pem)
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(
            public.curve, _CURVES
        ):
            raise AuthorityError("the key of a signing request must be EC, on P-256 or P-384")
        return self._certified(
            public, common_name, kind, names=names, days=days, signer=self._signers[0]
        )

    def valid(self, common_name: str) -> list[Issued]:
        """Return a name's certificates that open doors, the newest last."""
        return [one for one in self.all_valid() if one.name == common_name]

    def all_valid(self) -> list[Issued]:
        """Return every certificate that opens doors."""
        now, believed = datetime.now(UTC), {signer.id for signer in self._signers}
        return [one for one in self.issued if one.is_valid(now) and one.authority in believed]

    def is_current(self, one: Issued) -> bool:
        """Whether the newest CA signed it."""
        return one.authority == self._signers[0].id

    def supersede(self, common_name: str, *, keep: str = "") -> None:
        """Let a name's certificates, but the one of serial `keep`, be valid for some days more only."""
        until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=OVERLAP_DAYS)
        for one in self.valid(common_name):
            if one.serial != keep:
                one.superseded_until = one.superseded_until or until
        self._save()

    def revoke(self, name_or_serial: str) -> list[Issued]:
        """Revoke every valid certificate of a name, or the one with a serial; return them."""
        now = datetime.now(UTC).replace(microsecond=0)
        chosen = [
            one
            for one in self.issued
            if name_or_serial in (one.name, one.serial) and one.is_valid(now)
        ]
        for one in chosen:
            one.revoked_at = now
        self._save()
        self.crl()
        return chosen

    def revoke_superseded(self) -> list[Issued]:
        """Revoke what was superseded and has had its days."""
        now = datetime.now(UTC)
        due = [
            one
            for one in self.issued
            if one.is_valid(now) and one.superseded_until and one.superseded_until <= now
        ]
        return [revoked for one in due for revoked in self.revoke(one.serial)]

    def crl(self) -> bytes:
        """Write the list of what is revoked to `crl.pem`, one of each CA, and return it.

        It is good for as long as its CA: Mosquitto lets nobody in when a list has expired, and the
        list reaches the broker by the same hand as everything else, so that an expiry proves nothing.
        """
        text = b"".join(self._crl_of(signer) for signer in self._signers)
        write_public(self.folder / "crl.pem", text)
        return text

    def rotate(self, name: str, passphrase: bytes | None = None) -> None:
        """Begin to rotate the CA: a new one signs, the old one is believed until `retire_previous`.

        Raises: AuthorityError when that has begun.
        """
        if self.is_rotating:
            raise AuthorityError("the authority is being rotated: finish that first")
        old, new = self._signers[0], _self_signed(name)
        self._signers = [new, old]
        # in this order: whatever is done last, `load` finds an authority that works
        write_private(self.folder / "previous.key", _key_pem(old.key, passphrase))
        write_public(self.folder / "ca.pem", self.certificate)
        write_private(self.folder / "ca.key", _key_pem(new.key, passphrase))
        self.crl()

    def retire_previous(self) -> None:
        """Finish the rotation: the old CA is believed no longer, and its key is gone."""
        if not self.is_rotating:
            raise AuthorityError("the authority is not being rotated")
        del self._signers[1]
        write_public(self.folder / "ca.pem", self.certificate)
        self.crl()
        (self.folder / "previous.key").unlink(missing_ok=True)

    def _certified(
        self,
        public: ec.EllipticCurvePublicKey,
        common_name: str,
        kind: Kind,
        *,
        names: Iterable[str],
        days: int | None,
        signer: _Signer,
    ) -> bytes:
        default = SERVER_DAYS if kind == "server" else CLIENT_DAYS
        begun = datetime.now(UTC).replace(microsecond=0) - _BEGUN_EARLIER
        ends = begun + _BEGUN_EARLIER + timedelta(days=default if days is None else days)
        ends = min(ends, signer.certificate.not_valid_after_utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(signer.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(begun, ends))
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_USAGE[kind]]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(_authority_id(signer), critical=False)
        )
        if alternatives := [_general_name(name) for name in names]:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=False
            )
        certificate = builder.sign(signer.key, hashes.SHA256())
        self.issued.append(
            Issued(
                serial=f"{certificate.serial_number:x}",
                name=common_name,
                kind=kind,
                authority=signer.id,
                not_before=certificate.not_valid_before_utc,
                not_after=certificate.not_valid_after_utc,
            )
        )
        self._save()
        return _pem(certificate)

    def _crl_of(self, signer: _Signer) -> bytes:
        now = datetime.now(UTC).replace(microsecond=0)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(signer.certificate.subject)
            .last_update(now - _BEGUN_EARLIER)
            .next_update(signer.certificate.not_valid_after_utc)
            .add_extension(_authority_id(signer), critical=False)
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
        )
        for one in self.issued:
            if one.revoked_at is not None and one.authority == signer.id and now < one.not_after:
                entry = x509.RevokedCertificateBuilder(int(one.serial, 16), one.revoked_at)
                builder = builder.add_revoked_certificate(entry.build())
        crl = builder.sign(signer.key, hashes.SHA256())
        return crl.public_bytes(_PEM)

    def _save(self) -> None:
        lines = msgspec.json.format(msgspec.json.encode(self.issued), indent=1)
        write_private(self.folder / "issued.json", lines)


def new_key() -> bytes:
    """Return a new key in PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()), None)


def requested_key(request_pem: bytes) -> str:
    """Return the digest of a signing request's key. Raises: AuthorityError unless that key signed it."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    der = _requested_key(request_pem).public_bytes(serialization.Encoding.DER, form)
    return sha256(der).hexdigest()


def issuer_of(certificate_pem: bytes, authorities_pem: bytes) -> bytes | None:
    """Return which of these CA certificates (DER) vouches for a certificate; there are two in a rotation."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    for authority in x509.load_pem_x509_certificates(authorities_pem):
        with suppress(ValueError, TypeError, InvalidSignature):
            certificate.verify_directly_issued_by(authority)
            return authority.public_bytes(serialization.Encoding.DER)
    return None


def is_key(pem: bytes) -> bool:
    """Whether it is a key of ours, in PEM."""
    try:
        _private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def fits(key_pem: bytes, certificate_pem: bytes) -> bool:
    """Whether a certificate is this key's."""
    try:
        key = _private_key(key_pem, None).public_key()
        return key == x509.load_pem_x509_certificate(certificate_pem).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def serial_of(certificate_pem: bytes) -> str:
    """Return a certificate's serial as `issued.json` has it. Raises: AuthorityError."""
    try:
        return f"{x509.load_pem_x509_certificate(certificate_pem).serial_number:x}"
    except ValueError as error:
        raise AuthorityError(f"not a certificate in PEM: {error}") from error


def names_of(certificate_pem: bytes) -> set[str]:
    """Return the host names and addresses that a certificate is for."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in names}


def _self_signed(name: str) -> _Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    begun = datetime.now(UTC).replace(microsecond=0) - _BEGUN_EARLIER
    serial = x509.random_serial_number()
    # part of the serial in the name: of two CAs during a rotation each is found by its name
    subject = _name(f"{name[:48]} {serial >> 128:08x}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(begun)
        .not_valid_after(begun + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Signer(certificate, key)


def _signer(
    file: Path, certificates: Iterable[x509.Certificate], passphrase: bytes | None
) -> _Signer | None:
    """Return a key with its certificate, or None when none of them is the key's."""
    check_private(str(file), "file", file)
    try:
        key = _private_key(file.read_bytes(), passphrase)
    except TypeError:
        allowed = "takes --ca-passphrase-file, if and only if the key is encrypted"
        raise ConfigError(str(file), "file", "a key", allowed) from None
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        reason = getattr(error, "strerror", None) or "damaged, or another passphrase"
        allowed = f"must be the authority's key, in PEM: {reason}"
        raise ConfigError(str(file), "file", "a key", allowed) from None
    public = key.public_key()
    return next((_Signer(one, key) for one in certificates if one.public_key() == public), None)


def _read_certificates(file: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        allowed = f"must be certificates in PEM: {reason}"
        raise ConfigError(str(file), "file", "certificates", allowed) from error


def _requested_key(request_pem: bytes) -> CertificatePublicKeyTypes:
    try:
        request = x509.load_pem_x509_csr(request_pem)
        signed, public = request.is_signature_valid, request.public_key()
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise AuthorityError(f"not a signing request in PEM: {error}") from error
    if not signed:  # anybody may know a public key
        raise AuthorityError("the signing request is not signed by its own key")
    return public


def _private_key(pem: bytes, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, passphrase)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an EC key")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, encryption)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(_PEM)


def _key_id(certificate: x509.Certificate) -> str:
    found = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return found.value.digest.hex()


def _authority_id(signer: _Signer) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    except ValueError as error:
        raise AuthorityError(f"{common_name!r} cannot be a common name: {error}") from error


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return x509.DNSName(name)
