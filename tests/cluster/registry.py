"""A real registry on loopback for tests of images: under a certificate authority of its own with mutual TLS, or plain."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from swarm.identity import TlsFiles

START_TIMEOUT = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Authority:
    """A certificate authority for nodes and the registry."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.certificate = self._build(self.name, self.key.public_key(), authority=True)

    def _build(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(
            now + datetime.timedelta(days=1)
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        if not authority:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, directory: Path) -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, directory.name)])
        encoding = serialization.Encoding.PEM
        files = TlsFiles(directory)
        files.write(
            key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
            self._build(subject, key.public_key(), authority=False).public_bytes(encoding),
            self.certificate.public_bytes(encoding),
        )
        return files


@dataclass
class Registry:
    address: str
    process: subprocess.Popen[bytes]
    requests: Path  # its access log

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)

    def count(self, text: str) -> int:
        """How many requests contain a text."""
        return self.requests.read_text().count(text)


def start(directory: Path, tls: TlsFiles | None, *, password_file: Path | None = None) -> Registry:
    """Starts a docker-registry whose data lies in `directory`; returns once it answers."""
    program = shutil.which("docker-registry")
    assert program is not None
    address = f"127.0.0.1:{free_port()}"
    lines = [
        "version: 0.1",
        "log: {accesslog: {disabled: false}, level: error}",
        f"storage: {{filesystem: {{rootdirectory: {directory / 'data'}}}, delete: {{enabled: true}}}}",
        "http:",
        f"  addr: {address}",
    ]
    if tls is not None:
        lines.append(f"  tls: {{certificate: {tls.certificate}, key: {tls.key}, clientcas: [{tls.ca}]}}")
    if password_file is not None:
        lines.append(f"auth: {{htpasswd: {{realm: test, path: {password_file}}}}}")
    directory.mkdir(parents=True, exist_ok=True)
    configuration = directory / "registry.yml"
    configuration.write_text("\n".join(lines) + "\n")
    requests = directory / "registry.log"
    with requests.open("wb") as output:
        process = subprocess.Popen(
            [program, "serve", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
        )
    deadline = time.monotonic() + START_TIMEOUT
    while not _answers(address, tls):
        assert process.poll() is None, requests.read_text()
        assert time.monotonic() < deadline, requests.read_text()
        time.sleep(0.05)
    return Registry(address, process, requests)


def _answers(address: str, tls: TlsFiles | None) -> bool:
    host, port = address.split(":")
    connection: http.client.HTTPConnection
    if tls is not None:
        context = ssl.create_default_context(cafile=str(tls.ca))
        context.load_cert_chain(tls.certificate, tls.key)
        connection = http.client.HTTPSConnection(host, int(port), timeout=5, context=context)
    else:
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status in (200, 401)
    except OSError:
        return False
    finally:
        connection.close()
