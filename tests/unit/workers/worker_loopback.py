"""What the workers' tests need of an orchestrator: an authority, sockets, waiting with a deadline."""

from __future__ import annotations

import datetime
import hashlib
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from reserved_ports import reserved_port

from workers.errors import RequestRefused
from workers.identity import Identity
from workers.wire import connections, link, tls
from workers.wire.frames import Frame

DAY = datetime.timedelta(days=1)


class TestAuthority:
    """A certificate authority in a directory, which hands out identities and checks one-time secrets."""

    __test__ = False

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.secrets: dict[str, str] = {}
        self.bought: dict[str, tuple[str, object]] = {}
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign("test authority", self.key.public_key(), ca=True)
        self.ca_path = directory / "ca.pem"
        self.ca_path.write_bytes(_pem(self.certificate))

    @property
    def ca_pem(self) -> str:
        return self.ca_path.read_text()

    def token(self, node: str) -> str:
        self.secrets[node] = secrets.token_hex(24)
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        return f"{self.secrets[node]}.{hashlib.sha256(der).hexdigest()}"

    def enrol(self, *, node: str, secret: str, csr_pem: str) -> str:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        assert csr.is_signature_valid
        bought = secret, csr.public_key()
        if self.secrets.get(node) != secret and self.bought.get(node) != bought:
            raise RequestRefused("enrolment-refused", f"the token is not the one made for {node}")
        self.secrets.pop(node, None)
        self.bought[node] = bought
        return _pem(self._sign(node, csr.public_key())).decode()

    def identity(self, name: str, *, valid_for: datetime.timedelta = DAY) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        paths = folder / "worker.pem", folder / "worker.key"
        paths[0].write_bytes(_pem(self._sign(name, key.public_key(), valid_for=valid_for)))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        (folder / "ca.pem").write_bytes(_pem(self.certificate))
        return Identity(node=name, ca_path=folder / "ca.pem", certificate_path=paths[0], key_path=paths[1])

    def orchestrator_context(self) -> ssl.SSLContext:
        identity = self.identity(tls.ORCHESTRATOR)
        return tls.server_context(
            ca_path=identity.ca_path,
            certificate_path=identity.certificate_path,
            key_path=identity.key_path,
            anonymous=True,
        )

    def _sign(
        self,
        name: str,
        public_key: ec.EllipticCurvePublicKey,
        *,
        ca: bool = False,
        valid_for: datetime.timedelta = DAY,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = subject if ca else self.certificate.subject
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + valid_for)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )


def listen() -> socket.socket:
    """Listen on a free port of 127.0.0.1."""
    return socket.create_server(("127.0.0.1", 0))


def wait_until(condition: Callable[[], object], *, what: str, within_s: float = 10.0) -> None:
    """Wait for a condition of another thread or process, with a deadline."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what}: not within {within_s:g} s")
        time.sleep(0.005)


class LoopbackOrchestrator:
    """The orchestrator's side of the wire, as far as a worker sees it: enrolment, attaching, commands."""

    def __init__(self, authority: TestAuthority, *, heartbeat_interval_s: float = 0.05) -> None:
        self.authority = authority
        self.heartbeat_interval_s = heartbeat_interval_s
        self.refuse_attach: str | None = None
        self.enrolments_to_lose = 0
        self.answers = threading.Event()
        self.answers.set()
        self.channels: dict[tuple[str, str], link.Channel] = {}
        self.attached: list[tuple[str, dict[str, Any]]] = []
        self.notified: list[tuple[str, str, dict[str, Any]]] = []
        self.server: connections.Server | None = None
        self._reserved = ExitStack()
        self.port = self._reserved.enter_context(reserved_port())
        self.open()

    def open(self) -> None:
        """Listen, after `leave` on the same port as before."""
        sock = socket.create_server(("127.0.0.1", self.port))
        self.server = connections.serve(sock, self.authority.orchestrator_context(), handler=self._handle)

    def leave(self) -> None:
        """End all connections and listen no more; the port stays ours."""
        if self.server is not None:
            self.server.close()
            self.server = None

    def close(self) -> None:
        self.leave()
        self._reserved.close()

    def request(
        self,
        node: str,
        kind: str,
        fields: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Any] | None = None,
        *,
        channel: str = "control",
        timeout_s: float = 20.0,
    ) -> Frame:
        return self.channels[node, channel].request(kind, fields, tensors, timeout_s=timeout_s)

    def wait_for(self, *nodes: str, attachments: int = 1) -> None:
        for node in nodes:
            wait_until(
                lambda node=node: len(self._attachments(node)) >= 2 * attachments,
                what=f"{node} attaching",
                within_s=30,
            )

    def place_of(self, node: str) -> tuple[str, int]:
        """Give the address and port where a node said it listens."""
        told = self._attachments(node)[-1]
        return told["address"], told["port"]

    def heartbeats(self, node: str) -> list[dict[str, Any]]:
        return [
            fields for sender, kind, fields in list(self.notified) if (sender, kind) == (node, "heartbeat")
        ]

    def _attachments(self, node: str) -> list[dict[str, Any]]:
        return [fields for sender, fields in list(self.attached) if sender == node]

    def _handle(self, channel: link.Channel, frame: Frame) -> link.Reply | None:
        node = channel.peer_name
        if frame.kind == "ca":
            return link.Reply({"ca_pem": self.authority.ca_pem})
        if frame.kind == "enrol":
            issued = self.authority.enrol(**frame.fields)
            if self.enrolments_to_lose:
                self.enrolments_to_lose -= 1
                channel.close("its answer is lost")
            return link.Reply({"certificate_pem": issued})
        assert node is not None
        if frame.kind == "attach":
            if self.refuse_attach is not None:
                raise RequestRefused("refused", self.refuse_attach)
            self.channels[node, frame.fields["channel"]] = channel
            self.attached.append((node, dict(frame.fields)))
            self.answers.wait(30)
            return link.Reply({"heartbeat_interval_s": self.heartbeat_interval_s})
        self.notified.append((node, frame.kind, dict(frame.fields)))
        return None


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
