"""Keys of mqtt: what they change in the first bytes to the broker."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from agent.config.secrets import reveal
from tests.cloud.harness import Agent
from tests.keys.press import plant
from tests.keys.table import configured, effect


class Broker:
    """Takes one connection, through TLS where there is a context, and keeps what its CONNECT packet says."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(20.0)
        self._context = context
        self.port: int = self._server.getsockname()[1]
        self.peer: Any = None
        self.fault: str | None = None
        self.keepalive = 0
        self.fields: list[str] = []  # client id, topic of the will, user name, password: those there are
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        try:
            with connection:
                connection.settimeout(20.0)
                if self._context is not None:
                    with self._context.wrap_socket(connection, server_side=True) as wrapped:
                        self.peer = wrapped.getpeercert()
                        self._take(wrapped)
                else:
                    self._take(connection)
        except OSError as error:
            self.fault = str(error)
        finally:
            self._server.close()

    def _take(self, connection: socket.socket) -> None:
        data = connection.recv(65536)
        assert data[0] == 0x10
        at, _ = _number(data, 1)
        name, at = _text(data, at)
        assert name == b"MQTT" and data[at] == 5
        flags = data[at + 1]
        (self.keepalive,) = struct.unpack_from(">H", data, at + 2)
        size = _number(data, at + 4)
        at = size[0] + size[1]
        client, at = _text(data, at)
        found = [client]
        if flags & 4:
            at, size_of_properties = _number(data, at)
            topic, at = _text(data, at + size_of_properties)
            _, at = _text(data, at)
            found.append(topic)
        for _ in range((flags >> 7) + (flags >> 6 & 1)):
            text, at = _text(data, at)
            found.append(text)
        self.fields = [text.decode() for text in found]

    def wait(self) -> Broker:
        self._thread.join(30.0)
        assert not self._thread.is_alive()
        return self


def _number(data: bytes, at: int) -> tuple[int, int]:
    """(place after it, value) of a variable byte integer."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return at, value


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from(">H", data, at)
    return data[at + 2 : at + 2 + size], at + 2 + size


def dialled(folder: Path, context: ssl.SSLContext | None = None, **keys: Any) -> Broker:
    """What a broker sees of the first connection of an agent with these keys of mqtt."""
    broker = Broker(context)
    scheme = "mqtt" if context is None else "mqtts"
    folder.mkdir(exist_ok=True)
    more = {key: keys.pop(key) for key in ("gateway",) if key in keys}
    config = plant({"url": f"{scheme}://127.0.0.1:{broker.port}", **keys}, **more)
    with Agent(config, folder):
        return broker.wait()


@effect("mqtt.url", "mqtt.root", "mqtt.client_id", "gateway")
def test_first_packet(tmp_path: Path) -> None:
    assert dialled(tmp_path / "a").fields == ["line4", "edgetwin/v1/line4/state"]
    assert dialled(tmp_path / "b", gateway="line5").fields == ["line5", "edgetwin/v1/line5/state"]
    assert dialled(tmp_path / "c", root="plant").fields == ["line4", "plant/v1/line4/state"]
    assert dialled(tmp_path / "d", client_id="me").fields == ["me", "edgetwin/v1/line4/state"]


@effect("mqtt.username", "mqtt.password")
def test_user(tmp_path: Path) -> None:
    got = dialled(tmp_path / "a", username="u", password="p").fields
    assert got == ["line4", "edgetwin/v1/line4/state", "u", "p"]
    assert dialled(tmp_path / "b", username="u").fields[2:] == ["u"]


@effect("mqtt.keepalive")
def test_keepalive(tmp_path: Path) -> None:
    assert dialled(tmp_path / "a").keepalive == 15
    assert dialled(tmp_path / "b", keepalive="40s").keepalive == 40


SECRETS = [
    f"{owner}.{kind}"
    for owner in ("mqtt.password", "commands.hmac", "page.token")
    for kind in ("credential", "env", "file")
]


@effect(*SECRETS)
def test_places_of_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "name").write_text("from a credential\n")
    (tmp_path / "file").write_text("from a file\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("EDGETWIN_TEST_SECRET", "from the environment")
    places = {"credential": "name", "env": "EDGETWIN_TEST_SECRET", "file": str(tmp_path / "file")}
    texts = {"credential": "from a credential", "env": "from the environment", "file": "from a file"}
    for kind, place in places.items():
        secret = {kind: place}
        config = configured({"mqtt.password": secret, "commands.hmac": secret, "page": {"token": secret}})
        assert config.page is not None
        for found in (config.mqtt.password, config.commands.hmac, config.page.token):
            assert found is not None and reveal(found) == texts[kind]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two self-signed certificates for 127.0.0.1: server and client, each its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}",
                "-addext", "subjectAltName=IP:127.0.0.1",
            ],
            cwd=folder,
            check=True,
            capture_output=True,
        )  # fmt: skip
    return folder


@effect("mqtt.ca", "mqtt.cert", "mqtt.key")
def test_certificates(certificates: Path, tmp_path: Path) -> None:
    def server() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        context.load_verify_locations(certificates / "client.pem")
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    ca = {"ca": str(certificates / "server.pem")}
    own = {"cert": str(certificates / "client.pem"), "key": str(certificates / "client.key")}
    assert dialled(tmp_path / "a", server()).fields == [], "nobody known signed the broker's certificate"
    trusted = dialled(tmp_path / "b", server(), **ca)
    assert trusted.fields and not trusted.peer
    shown = dialled(tmp_path / "c", server(), **ca, **own)
    assert shown.fields and shown.peer["subject"] == ((("commonName", "client"),),)
