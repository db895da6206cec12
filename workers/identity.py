"""Who this worker is: its key and certificate, and how it gets them from the orchestrator once.

Enrolment (docs/wire_protocol.md): ask for the CA's certificate on an unverified connection, check it
against the fingerprint in the operator's token, reconnect verifying against it, send the token's secret
and a certificate request. The private key never leaves the state directory.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import logging
import os
import re
import ssl
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from workers.errors import ConfigError, EnrolmentError, RemoteError
from workers.wire import connections, tls

logger = logging.getLogger(__name__)

TOKEN = re.compile(r"([A-Za-z0-9_-]{16,128})\.([0-9a-f]{64})")
RENEW_BEFORE = datetime.timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The operator's word: a secret that works once, and which authority to believe."""

    secret: str
    ca_sha256: str

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read `<secret>.<sha256 of the CA certificate in DER, hex>`."""
        match = TOKEN.fullmatch(text.strip())
        if match is None:
            raise EnrolmentError(
                "the enrolment token is not <secret>.<64 hex digits>; copy it whole, or have a new one made"
            )
        return cls(secret=match[1], ca_sha256=match[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A node's name and the files that prove it."""

    node: str
    ca_path: Path
    certificate_path: Path
    key_path: Path

    def client_context(self) -> ssl.SSLContext:
        """Make the context with which this node dials others; raises EnrolmentError."""
        return self._context(tls.client_context)

    def server_context(self) -> ssl.SSLContext:
        """Make the context with which this node takes others' connections; raises EnrolmentError."""
        return self._context(tls.server_context)

    def _context(self, make: Callable[..., ssl.SSLContext]) -> ssl.SSLContext:
        try:
            return make(ca_path=self.ca_path, certificate_path=self.certificate_path, key_path=self.key_path)
        except OSError as error:  # ssl.SSLError is one
            raise EnrolmentError(
                f"the certificates of {self.node!r} in {self.ca_path.parent} cannot be read any more "
                f"({error}); start the worker again with a new token"
            ) from error


def stored(state_dir: Path, node: str, *, token: Token | None, now: datetime.datetime) -> Identity | None:
    """Give the identity kept in `state_dir`, or None where there is none that can be used.

    None if a file is missing or unreadable, the certificate is for another node, of another authority than
    the one kept or the one that `token` names, or ends within the hour.
    """
    identity = _at(state_dir, node)
    try:
        ca = x509.load_pem_x509_certificate(identity.ca_path.read_bytes())
        certificate = x509.load_pem_x509_certificate(identity.certificate_path.read_bytes())
        key = serialization.load_pem_private_key(identity.key_path.read_bytes(), password=None)
        certificate.verify_directly_issued_by(ca)
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the files, enrolling anew is the way out
        logger.warning("identity in %s cannot be used: %s", state_dir, error)
        return None
    names = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    reasons = {
        f"is of {names}, not of {node!r}": names != [node],
        "does not belong to the key": certificate.public_key() != key.public_key(),
        "has ended": certificate.not_valid_after_utc - RENEW_BEFORE < now,
        "is of another authority than the token's": token is not None
        and not hmac.compare_digest(ca.fingerprint(hashes.SHA256()).hex(), token.ca_sha256),
    }
    for reason, applies in reasons.items():
        if applies:
            logger.info("the certificate in %s %s: enrolling anew", state_dir, reason)
            return None
    return identity


def enrol(address: str, port: int, *, token: Token, node: str, state_dir: Path, timeout_s: float) -> Identity:
    """Get a certificate for `node` against the token and keep it in `state_dir`.

    The key is kept from before it is asked: where the answer is lost, the token still works for that key.

    Raises:
        ConnectFailed: the orchestrator cannot be reached (try again).
        EnrolmentError: the authority is not the token's, or the orchestrator refused.
    """
    _make_private_dir(state_dir)
    identity = _at(state_dir, node)
    ca_pem = _fetch_authority(address, port, token=token, timeout_s=timeout_s)
    _write_private(identity.ca_path, ca_pem)
    asked_for = state_dir / "enrolling.key"
    key = _kept_or_new_key(asked_for)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    fields = {
        "secret": token.secret,
        "node": node,
        "csr_pem": csr.public_bytes(serialization.Encoding.PEM).decode(),
    }
    context = tls.client_context(ca_path=identity.ca_path)
    reply = _ask(address, port, "enrol", fields, context=context, name=tls.ORCHESTRATOR, timeout_s=timeout_s)
    pem = _text(reply, "certificate_pem")
    _check_issued(pem, node=node, key=key, ca_pem=ca_pem)
    _write_private(identity.key_path, _key_pem(key))
    _write_private(identity.certificate_path, pem.encode())
    asked_for.unlink(missing_ok=True)
    logger.info("%s enrolled with %s:%d", node, address, port)
    return identity


def _kept_or_new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Give the key of an enrolment that was not answered, else a new one, which is kept."""
    try:
        kept = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        pass
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, a new one serves as well
        logger.warning("the key in %s cannot be used: %s", path, error)
    else:
        if isinstance(kept, ec.EllipticCurvePrivateKey):
            return kept
    key = ec.generate_private_key(ec.SECP256R1())
    _write_private(path, _key_pem(key))
    return key


def _fetch_authority(address: str, port: int, *, token: Token, timeout_s: float) -> bytes:
    context = tls.client_context(ca_path=None)
    pem = _text(_ask(address, port, "ca", {}, context=context, name=None, timeout_s=timeout_s), "ca_pem")
    try:
        der = ssl.PEM_cert_to_DER_cert(pem)
    except ValueError as error:
        raise EnrolmentError(
            f"{address}:{port} answered 'ca' with something that is no certificate"
        ) from error
    found = hashlib.sha256(der).hexdigest()
    if not hmac.compare_digest(found, token.ca_sha256):
        raise EnrolmentError(
            f"the authority at {address}:{port} has fingerprint {found}, but the token was made under "
            f"{token.ca_sha256}: somebody else answers there, or the token is of another orchestrator"
        )
    return pem.encode()


def _ask(
    address: str,
    port: int,
    kind: str,
    fields: dict[str, Any],
    *,
    context: ssl.SSLContext,
    name: str | None,
    timeout_s: float,
) -> dict[str, Any]:
    channel = connections.connect(address, port, context=context, expected_name=name, timeout_s=timeout_s)
    with closing(channel):
        try:
            return dict(channel.request(kind, fields, timeout_s=timeout_s).fields)
        except RemoteError as error:
            raise EnrolmentError(f"the orchestrator refused {kind!r}: {error}") from error


def _text(reply: dict[str, Any], key: str) -> str:
    value = reply.get(key)
    if not isinstance(value, str):
        raise EnrolmentError(f"the orchestrator's reply has no text {key!r}")
    return value


def _check_issued(pem: str, *, node: str, key: ec.EllipticCurvePrivateKey, ca_pem: bytes) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem))
    except Exception as error:
        raise EnrolmentError(
            f"the orchestrator issued a certificate that is not of its CA: {error}"
        ) from error
    names = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [node] or certificate.public_key() != key.public_key():
        raise EnrolmentError(
            f"the orchestrator issued a certificate for {names} or another key, not for {node!r}"
        )


def _at(state_dir: Path, node: str) -> Identity:
    return Identity(
        node=node,
        ca_path=state_dir / "ca.pem",
        certificate_path=state_dir / "worker.pem",
        key_path=state_dir / "worker.key",
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _make_private_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"state_dir {path} cannot be made: {error.strerror}") from error


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only this user can read, whole or not at all."""
    temporary = path.with_suffix(path.suffix + ".new")
    try:
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; give another state_dir") from error
