"""The authority: who gets a certificate, and who loses it."""

from __future__ import annotations

import datetime
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from orchestrator.adapters.certificates import Authority
from orchestrator.errors import EnrolmentRefused, InvalidRequest, NotFound
from workers.config import from_arguments


@pytest.fixture
def authority(tmp_path):
    return open_authority(tmp_path)


def open_authority(directory):
    return Authority(directory, address="198.18.0.1", now=lambda: datetime.datetime.now(datetime.UTC))


def request_for(name, key=None):
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def secret_of(token):
    return token.split(".")[0]


def test_a_token_buys_one_certificate_for_its_node(authority):
    token = authority.create_token("h1", trusted=True)
    pem = authority.enrol(node="h1", secret=secret_of(token), csr_pem=request_for("h1"))
    certificate = x509.load_pem_x509_certificate(pem.encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.ca_pem.encode()))
    assert [item.value for item in certificate.subject] == ["h1"]
    assert authority.accepts("h1", certificate.serial_number)
    with pytest.raises(EnrolmentRefused, match="no unused enrolment token"):
        authority.enrol(node="h1", secret=secret_of(token), csr_pem=request_for("h1"))


def test_a_token_whose_answer_was_lost_buys_again_for_the_same_key_and_no_other(authority, tmp_path):
    token, key = authority.create_token("h1", trusted=True), ec.generate_private_key(ec.SECP256R1())

    def enrol(where, key):
        pem = where.enrol(node="h1", secret=secret_of(token), csr_pem=request_for("h1", key))
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    lost = enrol(authority, key)
    after_a_restart = open_authority(tmp_path)
    found = enrol(after_a_restart, key)
    assert (after_a_restart.accepts("h1", lost), after_a_restart.accepts("h1", found)) == (False, True)
    with pytest.raises(EnrolmentRefused, match="no unused enrolment token"):
        enrol(after_a_restart, ec.generate_private_key(ec.SECP256R1()))
    after_a_restart.revoke("h1")
    with pytest.raises(EnrolmentRefused, match="no unused enrolment token"):
        enrol(after_a_restart, key)


def test_a_token_that_was_replaced_does_not_buy_again_for_its_key(authority):
    token, key = authority.create_token("h1", trusted=True), ec.generate_private_key(ec.SECP256R1())
    authority.enrol(node="h1", secret=secret_of(token), csr_pem=request_for("h1", key))
    authority.create_token("h1", trusted=True)
    with pytest.raises(EnrolmentRefused, match="is not the one made for"):
        authority.enrol(node="h1", secret=secret_of(token), csr_pem=request_for("h1", key))


def test_a_token_is_a_word_that_the_workers_command_line_takes(authority, monkeypatch):
    monkeypatch.setattr("secrets.token_bytes", lambda size: b"\xf8" * size)  # in URL-safe base64: "-Pj4"
    token = authority.create_token("h1", trusted=False)
    where = ["--orchestrator", "198.18.0.1:7000", "--listen", "198.18.0.2:7001", "--state-dir", "d"]
    assert from_arguments([*where, "--node", "h1", "--token", token]).token == token


def test_a_tokens_second_half_is_the_authoritys_fingerprint(authority):
    token = authority.create_token("h1", trusted=False)
    ca = x509.load_pem_x509_certificate(authority.ca_pem.encode())
    assert token.split(".")[1] == ca.fingerprint(hashes.SHA256()).hex()


@pytest.mark.parametrize(
    ("node", "secret", "csr_name", "word"),
    [
        ("h1", "wrong-secret-wrong-secret", "h1", "not the one made"),
        ("h2", None, "h2", "no unused enrolment token"),
        ("h1", None, "h2", "is for"),
    ],
)
def test_what_does_not_fit_the_token_is_refused(authority, node, secret, csr_name, word):
    token = authority.create_token("h1", trusted=False)
    with pytest.raises(EnrolmentRefused, match=word):
        authority.enrol(node=node, secret=secret or secret_of(token), csr_pem=request_for(csr_name))
    assert authority.enrol(node="h1", secret=secret_of(token), csr_pem=request_for("h1"))


@pytest.mark.parametrize("csr", ["", "garbage", "x" * 20_000, "é\udcff"])
def test_garbage_for_a_request_is_refused(authority, csr):
    token = authority.create_token("h1", trusted=False)
    with pytest.raises(EnrolmentRefused):
        authority.enrol(node="h1", secret=secret_of(token), csr_pem=csr)


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(public_exponent=65537, key_size=2048)],
)
def test_another_kind_of_key_is_refused(authority, key):
    token = authority.create_token("h1", trusted=False)
    with pytest.raises(EnrolmentRefused, match="P-256"):
        authority.enrol(node="h1", secret=secret_of(token), csr_pem=request_for("h1", key))


@pytest.mark.parametrize("name", ["", "orch", "orchestrator", "h 1", "h1/../x", "x" * 64])
def test_a_name_that_is_no_node_name_gets_no_token(authority, name):
    with pytest.raises(InvalidRequest, match="name"):
        authority.create_token(name, trusted=True)


def test_a_revoked_certificate_is_not_accepted_and_a_new_token_brings_the_node_back(authority):
    first = enrolled(authority, "h1")
    authority.revoke("h1")
    assert not authority.accepts("h1", first)
    assert authority.known()[0].revoked
    second = enrolled(authority, "h1")
    assert authority.accepts("h1", second)
    assert not authority.accepts("h1", first)


def test_an_unused_token_dies_with_the_revocation(authority):
    token = authority.create_token("h1", trusted=False)
    authority.revoke("h1")
    with pytest.raises(EnrolmentRefused):
        authority.enrol(node="h1", secret=secret_of(token), csr_pem=request_for("h1"))
    with pytest.raises(NotFound):
        authority.revoke("h2")


def test_a_new_token_leaves_the_operators_word_as_it_is_unless_he_changes_it(authority):
    authority.create_token("h1", trusted=True)
    authority.create_token("h1", trusted=None)
    authority.create_token("h2", trusted=None)
    assert {trust.node: trust.trusted for trust in authority.known()} == {"h1": True, "h2": False}


def test_trust_is_what_the_operator_said_last(authority):
    authority.create_token("h1", trusted=True)
    authority.create_token("h1", trusted=False)
    assert [trust.trusted for trust in authority.known()] == [False]


def test_everything_survives_a_restart(tmp_path):
    before = open_authority(tmp_path)
    serial = enrolled(before, "h1")
    token = before.create_token("h2", trusted=True)
    after = open_authority(tmp_path)
    assert after.ca_pem == before.ca_pem
    assert after.accepts("h1", serial)
    assert after.enrol(node="h2", secret=secret_of(token), csr_pem=request_for("h2"))


def test_keys_and_registry_are_readable_by_their_owner_only(authority, tmp_path):
    authority.create_token("h1", trusted=True)
    for name in ("ca.key", "server.key", "nodes.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert "secret" not in (tmp_path / "nodes.json").read_text()


def test_the_servers_certificate_names_its_data_address(authority, tmp_path):
    certificate = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["198.18.0.1"]


def enrolled(authority, node):
    token = authority.create_token(node, trusted=False)
    pem = authority.enrol(node=node, secret=secret_of(token), csr_pem=request_for(node))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number
