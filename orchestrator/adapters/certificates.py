"""The orchestrator as certificate authority: who is a node, and who is trusted, is the operator's word.

A node gets a certificate once, against a one-time token that the operator made for its name. The
authority's key and the registry of nodes live in one directory that only this user can read.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import re
import secrets
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.errors import EnrolmentRefused, InvalidRequest, NotFound
from workers.wire import tls

log = logging.getLogger(__name__)

ORCHESTRATOR = tls.ORCHESTRATOR
NODE_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_RESERVED = {ORCHESTRATOR, "orch"}
_AUTHORITY_DAYS = 3650
_CERTIFICATE_DAYS = 365
_CSR_LIMIT = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTrust:
    """What the operator and the authority know of one node name."""

    node: str
    trusted: bool
    token_sha256: str | None = None
    """Digest of the secret that is still to be used; None once it was, or was withdrawn."""
    serials: tuple[int, ...] = ()
    """Serial number of the certificate in force, if there is one."""
    revoked_serials: tuple[int, ...] = ()
    enrolled: tuple[str, str] | None = None
    """Digests of the secret that bought the certificate in force, and of the key that it was bought for."""

    @property
    def revoked(self) -> bool:
        """Say whether the node was cut off and has not been invited again."""
        return bool(self.revoked_serials) and not self.serials and self.token_sha256 is None


class Authority:
    """Issues and revokes certificates; keeps the registry of node names and their trust."""

    def __init__(self, directory: Path, *, address: str, now: Callable[[], datetime.datetime]) -> None:
        """Open the authority in `directory`, making it on first use; `address` goes into the server's SAN."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._now = now
        self._lock = threading.Lock()
        self._key = _load_or_make_key(directory / "ca.key")
        self._certificate = self._load_or_make_authority()
        self._registry = _read_registry(directory / "nodes.json")
        self._issue_server(address)

    @property
    def ca_pem(self) -> str:
        """Give the authority's certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def fingerprint(self) -> str:
        """Give the SHA-256 of the authority's certificate (DER), in hex: the tokens' second half."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def server_context(self, on_certificate: Callable[[str, int], None]) -> ssl.SSLContext:
        """Make the data listener's TLS context; a client may show no certificate.

        `on_certificate` gets the address (`ip:port`) of each client that shows one of this authority, and
        its serial number, before anything is read from it. A revoked one passes the handshake, so that
        `attach` can tell the worker why it is turned away.
        """
        context = tls.server_context(
            ca_path=self._directory / "ca.pem",
            certificate_path=self._directory / "server.pem",
            key_path=self._directory / "server.key",
            anonymous=True,
        )
        context.sslsocket_class = _reporting_serials(on_certificate)
        return context

    def create_token(self, node: str, *, trusted: bool | None) -> str:
        """Make the one-time token with which `node` may enrol; an older unused one stops working.

        `trusted` None leaves the operator's word about a known node as it is; a new one is not trusted.

        Raises:
            InvalidRequest: the name is not a node name or is reserved.
        """
        if not NODE_NAME.fullmatch(node) or node in _RESERVED:
            raise InvalidRequest(
                f"node {node!r} is not a usable name; use letters, digits, '.', '_', '-' (63 at most), "
                f"and not {' or '.join(sorted(_RESERVED))}",
                field="node",
            )
        secret = secrets.token_hex(24)  # a word that begins with "-" is no value to many command lines
        with self._lock:
            known = self._registry.get(node) or NodeTrust(node=node, trusted=False)
            trust = known.trusted if trusted is None else trusted
            self._put(replace(known, trusted=trust, token_sha256=_digest(secret)))
        return f"{secret}.{self.fingerprint}"

    def enrol(self, *, node: str, secret: str, csr_pem: str) -> str:
        """Issue the certificate that `node` asks for and use its token up; answers PEM.

        Asked again with the token and the key that bought the certificate in force, it issues another one
        in its place: the answer before may have been lost on its way.

        Raises:
            EnrolmentRefused: wrong or used token, or a certificate request that is not for this node.
        """
        public_key = _requested_key(csr_pem, node)
        bought = _digest(secret), _key_digest(public_key)
        with self._lock:
            known = self._registry.get(node)
            again = known is not None and known.token_sha256 is None and known.enrolled == bought
            if known is None or (known.token_sha256 is None and not again):
                raise EnrolmentRefused(
                    f"node {node!r} has no unused enrolment token; make one with "
                    "POST /api/v1/enrolment-tokens and start the worker with it"
                )
            if known.token_sha256 is not None and not hmac.compare_digest(known.token_sha256, bought[0]):
                raise EnrolmentRefused(
                    f"the enrolment token is not the one made for node {node!r}; make a new one with "
                    "POST /api/v1/enrolment-tokens"
                )
            certificate = self._issue(public_key, node, san=x509.SubjectAlternativeName([x509.DNSName(node)]))
            # One certificate per node: a worker that enrols anew has lost or given up its older one.
            retired = (*known.revoked_serials, *known.serials)
            serials = (certificate.serial_number,)
            self._put(
                replace(known, token_sha256=None, serials=serials, revoked_serials=retired, enrolled=bought)
            )
        log.info("node %s enrolled, certificate serial %x", node, certificate.serial_number)
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def revoke(self, node: str) -> None:
        """Take `node`'s certificates and its unused token out of force.

        Raises:
            NotFound: no such node was ever invited.
        """
        with self._lock:
            known = self._registry.get(node)
            if known is None:
                raise NotFound(f"node {node!r} is not known; known nodes: {self._names()}")
            revoked = (*known.revoked_serials, *known.serials)
            self._put(replace(known, token_sha256=None, serials=(), revoked_serials=revoked, enrolled=None))
        log.info("node %s revoked", node)

    def accepts(self, node: str, serial: int) -> bool:
        """Say whether the certificate with `serial` is in force for `node`."""
        with self._lock:
            known = self._registry.get(node)
            return known is not None and serial in known.serials

    def known(self) -> tuple[NodeTrust, ...]:
        """List every node name that was ever invited, in order of name."""
        with self._lock:
            return tuple(self._registry[name] for name in sorted(self._registry))

    def _names(self) -> str:
        return ", ".join(sorted(self._registry)) or "none"

    def _put(self, trust: NodeTrust) -> None:
        self._registry[trust.node] = trust
        _write_registry(self._directory / "nodes.json", self._registry)

    def _load_or_make_authority(self) -> x509.Certificate:
        path = self._directory / "ca.pem"
        if path.exists():
            return x509.load_pem_x509_certificate(path.read_bytes())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Utopia authority")])
        now = self._now()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=_AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        _write_private(path, certificate.public_bytes(serialization.Encoding.PEM))
        return certificate

    def _issue_server(self, address: str) -> None:
        """Make a fresh key and certificate for this process: the address may differ from the last run's."""
        key = ec.generate_private_key(ec.SECP256R1())
        san = x509.SubjectAlternativeName(
            [x509.DNSName(ORCHESTRATOR), x509.IPAddress(ipaddress.ip_address(address))]
        )
        certificate = self._issue(key.public_key(), ORCHESTRATOR, san=san)
        _write_private(self._directory / "server.key", _key_pem(key))
        _write_private(self._directory / "server.pem", certificate.public_bytes(serialization.Encoding.PEM))

    def _issue(
        self, public_key: ec.EllipticCurvePublicKey, name: str, *, san: x509.SubjectAlternativeName
    ) -> x509.Certificate:
        now = self._now()
        # A node is a server to its peers and a client to everyone; the orchestrator likewise.
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=_CERTIFICATE_DAYS))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(san, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(issuer_key, critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _reporting_serials(on_certificate: Callable[[str, int], None]) -> type[ssl.SSLSocket]:
    """Make a socket class that tells the serial number of the peer's certificate after the handshake."""

    class ReportingSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            certificate = self.getpeercert()
            if certificate:
                address = self.getpeername()
                on_certificate(f"{address[0]}:{address[1]}", int(str(certificate["serialNumber"]), 16))

    return ReportingSocket


def _requested_key(csr_pem: str, node: str) -> ec.EllipticCurvePublicKey:
    """Check that `csr_pem` is a sound request for `node`; answers its P-256 key."""
    if len(csr_pem) > _CSR_LIMIT:
        raise EnrolmentRefused(
            f"the certificate request of node {node!r} has {len(csr_pem)} bytes, more than {_CSR_LIMIT}"
        )
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        names = [item.value for item in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        key = request.public_key()
        sound = request.is_signature_valid
    except (ValueError, InvalidSignature, UnicodeError) as error:
        raise EnrolmentRefused(f"the certificate request of node {node!r} is not usable: {error}") from error
    if not sound:
        raise EnrolmentRefused(f"the certificate request of node {node!r} is not signed by its own key")
    if names != [node]:
        raise EnrolmentRefused(f"the certificate request is for {names!r}, the enrolment for node {node!r}")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EnrolmentRefused(f"the key of node {node!r} is not an EC P-256 key; make one of that kind")
    return key


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _load_or_make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if path.exists():
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise EnrolmentRefused(
                f"{path} is not an EC key; remove the directory to begin with a new authority"
            )
        return key
    key = ec.generate_private_key(ec.SECP256R1())
    _write_private(path, _key_pem(key))
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only this user can read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key_digest(key: ec.EllipticCurvePublicKey) -> str:
    return hashlib.sha256(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def _read_registry(path: Path) -> dict[str, NodeTrust]:
    if not path.exists():
        return {}
    return {
        item["node"]: NodeTrust(
            node=item["node"],
            trusted=item["trusted"],
            token_sha256=item["token_sha256"],
            serials=tuple(int(serial, 16) for serial in item["serials"]),
            revoked_serials=tuple(int(serial, 16) for serial in item["revoked_serials"]),
            enrolled=(item["enrolled"][0], item["enrolled"][1]) if item.get("enrolled") else None,
        )
        for item in json.loads(path.read_text(encoding="utf-8"))
    }


def _write_registry(path: Path, registry: dict[str, NodeTrust]) -> None:
    rows = [
        {
            "node": trust.node,
            "trusted": trust.trusted,
            "token_sha256": trust.token_sha256,
            "serials": [f"{serial:x}" for serial in trust.serials],
            "revoked_serials": [f"{serial:x}" for serial in trust.revoked_serials],
            "enrolled": trust.enrolled,
        }
        for _, trust in sorted(registry.items())
    ]
    _write_private(path, json.dumps(rows, indent=1).encode())
