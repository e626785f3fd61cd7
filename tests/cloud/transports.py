"""Brokers behind TLS and websockets, with the certificates for them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from iotcore import Broker

from agent.demo.broker import LISTENER, ROUTER
from tests.brokers import Mosquitto, TcpProxy, wait_for_port
from tests.ports import free_port


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server's and a client's certificate, and ones that are wrong in one thing each."""
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    def make(
        name: str, *, subject: str, ca: str | None = None, san: str = "IP:127.0.0.1", days: str = "2"
    ) -> None:
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")
        if ca is None:
            openssl(
                "req",
                "-x509",
                "-new",
                "-key",
                f"{name}.key",
                "-subj",
                subject,
                "-days",
                "2",
                "-out",
                f"{name}.pem",
            )
            return
        openssl("req", "-new", "-key", f"{name}.key", "-subj", subject, "-out", f"{name}.csr")
        (folder / "ext").write_text(f"subjectAltName={san}\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
                "-days", days, "-extfile", "ext", "-out", f"{name}.pem")  # fmt: skip

    make("ca", subject="/CN=plant")
    make("other", subject="/CN=somebody else")
    make("server", subject="/CN=broker", ca="ca")
    make("stranger", subject="/CN=broker", ca="ca", san="DNS:elsewhere.example")
    make("expired", subject="/CN=broker", ca="ca", days="-1")
    make("client", subject="/CN=line4", ca="ca")
    return folder


def tls_broker(folder: Path, pki: Path, *, server: str = "server", client: bool = False) -> Mosquitto:
    listener = "\n".join(
        [
            "listener {port} 127.0.0.1",
            f"cafile {pki / 'ca.pem'}",
            f"certfile {pki / server}.pem",
            f"keyfile {pki / server}.key",
            f"require_certificate {'true' if client else 'false'}",
        ]
    )
    return Mosquitto(folder, listener=listener)


@contextlib.contextmanager
def rumqttd(folder: Path, listener: str) -> Iterator[int]:
    """A broker with one listener: v4 (MQTT 3.1.1) or ws (the same over websockets); packets of 20 kB at most."""
    port = free_port()
    config = folder / "broker.toml"
    config.write_text(ROUTER + LISTENER.format(version=listener, port=port, payload=20_000))
    broker = Broker(port=port, config_path=str(config))
    broker.start()
    try:
        wait_for_port(port)
        yield port
    finally:
        broker.stop()


class TlsFront(TcpProxy):
    """Ends TLS before a broker that speaks none, as a web server does that passes websockets on."""

    def __init__(self, target: int, certificate: Path, key: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        super().__init__(target)

    def greet(self, near: socket.socket) -> socket.socket:
        return self._context.wrap_socket(near, server_side=True)
