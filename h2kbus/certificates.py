"""A certificate authority of one fleet's own, and the certificates of its servers and users."""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from h2kbus.errors import SettingsError

AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 730
RENEW_DAYS: Final = 60
"""A certificate that ends within so many days is made anew."""
_BACKDATED: Final = dt.timedelta(hours=1)
"""For clocks that are a little behind."""


class Issued(msgspec.Struct, frozen=True):
    """A certificate and its private key, both in PEM."""

    certificate: bytes
    key: bytes


def new_authority(name: str) -> Issued:
    """A new authority that signs itself."""
    key = _new_key()
    subject = _named(name)
    builder = _builder(subject, subject, key, AUTHORITY_DAYS).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    usage = _usage(key_cert_sign=True, crl_sign=True)
    return _signed(builder.add_extension(usage, critical=True), key, key)


def issue(authority: Issued, name: str, hosts: Sequence[str] = (), key: bytes | None = None) -> Issued:
    """A certificate for a user, or for a server that is reached by these names and addresses.

    `key` is one that exists already. A server's certificate also lets it connect to other servers. Raises
    SettingsError for a key that is none.
    """
    own, parent = _load_key(key) if key else _new_key(), x509.load_pem_x509_certificate(authority.certificate)
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
    builder = (
        _builder(_named(name), parent.subject, own, CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    )
    if hosts:
        names = x509.SubjectAlternativeName([_alternative(each) for each in hosts])
        builder = builder.add_extension(names, critical=False)
    return _signed(builder, own, _load_key(authority.key))


def ends_at(certificate: bytes) -> dt.datetime:
    """When a certificate stops being good. Raises SettingsError for what is no certificate."""
    return _load(certificate).not_valid_after_utc


def is_due(certificate: bytes, hosts: Sequence[str] = ()) -> bool:
    """Whether it ends soon, or lacks one of the names and addresses."""
    loaded = _load(certificate)
    if loaded.not_valid_after_utc - dt.datetime.now(dt.UTC) < dt.timedelta(days=RENEW_DAYS):
        return True
    if not hosts:
        return False
    names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return any(_alternative(each) not in names for each in hosts)


def _load(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate)
    except ValueError as error:
        raise SettingsError(f"a certificate cannot be read: {error}") from None


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingsError("a private key cannot be read")
    return key


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(**allowed: bool) -> x509.KeyUsage:
    uses = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**(dict.fromkeys(uses, False) | allowed))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _signed(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
) -> Issued:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    parent = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    certificate = (
        builder.add_extension(identifier, critical=False)
        .add_extension(parent, critical=False)
        .sign(signer, hashes.SHA256())
    )
    return Issued(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
