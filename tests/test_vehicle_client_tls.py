"""The vehicle's client over TLS: whom it trusts, and that a handshake costs no step more than its deadline."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from carla_policy_client import Action, AsyncPolicyClient, PolicyClient
from carla_policy_tools.paths import PROJECT

PATIENT_S = 20.0
ROW = [10.0, 0.0]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(timezone.utc)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    root = tmp_path_factory.mktemp("tls")
    (root / "cert.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    form, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (root / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, no_password))
    return root / "cert.pem", root / "key.pem"


@pytest.fixture(scope="module")
def fake_server() -> ModuleType:
    """The module of the client's own tests, which are a package of the same name as these."""
    spec = importlib.util.spec_from_file_location("client_fake_server", PROJECT / "client/tests/fake_server.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def act_on_a_loop(url: str, context: ssl.SSLContext | None, deadline_s: float) -> list[Action]:
    async with AsyncPolicyClient(url, deadline_s=deadline_s, ssl_context=context) as client:
        return [await client.act(ROW) for _ in range(3)]


def act(url: str, context: ssl.SSLContext | None, deadline_s: float) -> list[Action]:
    with PolicyClient(url, deadline_s=deadline_s, ssl_context=context) as client:
        return [client.act(ROW) for _ in range(3)]


def both(url: str, context: ssl.SSLContext | None, deadline_s: float) -> list[Action]:
    """Three steps of either client."""
    return act(url, context, deadline_s) + asyncio.run(act_on_a_loop(url, context, deadline_s))


def test_server_that_is_trusted_drives_over_one_connection(
    certificate: tuple[Path, Path], fake_server: ModuleType
) -> None:
    of_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    of_server.load_cert_chain(*certificate)
    with fake_server.FakeServer(context=of_server) as server:
        trusting = ssl.create_default_context(cafile=str(certificate[0]))
        assert [(taken.source, taken.throttle) for taken in both(server.url, trusting, PATIENT_S)] == [
            ("policy", 0.1)
        ] * 6
        assert server.connections == 2
        server.requests.clear()
        distrusted = both(server.url, None, 0.2)
        assert {taken.reason for taken in distrusted} == {"disconnected"}
        assert any("certificate verify failed" in taken.message.lower() for taken in distrusted)
        assert server.requests == []


def test_handshake_without_an_end_costs_no_more_than_the_deadline(fake_server: ModuleType) -> None:
    with fake_server.FakeServer() as server:  # speaks no TLS, and waits for the end of a line
        url = server.url.replace("http:", "https:")
        for taken in both(url, None, 0.05):
            assert taken.reason == "disconnected"
            assert taken.latency_s < 2.0
