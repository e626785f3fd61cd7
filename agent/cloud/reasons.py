"""Why a broker cannot be reached, in words for a person; and the two things needed to find out: address and TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from agent.config.secrets import SecretProblem
from agent.config.types import MqttConfig

DIAL_TIMEOUT = 5.0
DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
UNSUPPORTED_VERSION = 0x84
CERTIFICATE_HINTS = {
    "not yet valid": "is this machine's clock set?",
    "self-signed": "is mqtt.ca the certificate that signed it?",
    "local issuer": "is mqtt.ca the certificate that signed it?",
    "mismatch": "mqtt.url must name the broker as its certificate does",
}
TLS_HINTS = {
    "certificate required": "the broker wants a client certificate, mqtt.cert and mqtt.key",
    "key values mismatch": "mqtt.key is not the key of mqtt.cert",
}
"""What would be right, by a part of what OpenSSL says."""


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path, 1883
    return parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORTS[parts.scheme]


def tls_context(config: MqttConfig) -> ssl.SSLContext:
    """Raises OSError (with the file's name) or ssl.SSLError."""
    for path in (config.ca, config.cert, config.key):
        if path is not None:
            path.open("rb").close()  # ssl tells of a missing file without its name
    context = ssl.create_default_context(cafile=None if config.ca is None else str(config.ca))
    if config.cert is not None:
        context.load_cert_chain(str(config.cert), None if config.key is None else str(config.key))
    return context


def tell_tls_alert(host: str, port: int, context: ssl.SSLContext) -> None:
    """Opens a TLS connection and waits for a refusal: in TLS 1.3 one of the client's certificate comes this late.

    Raises ssl.SSLError with the reason, OSError when there is no connection.
    """
    with (
        socket.create_connection((host, port), DIAL_TIMEOUT) as raw,
        context.wrap_socket(raw, server_hostname=host) as sock,
    ):
        sock.settimeout(1.0)
        with contextlib.suppress(TimeoutError, ConnectionError):
            sock.recv(1)


def early_hint(config: MqttConfig) -> str:
    scheme = urlsplit(config.url).scheme
    if scheme in ("mqtts", "wss"):
        return "" if config.cert is not None else " (does it want a client certificate?)"
    return " (is it a TLS port, for mqtts://?)" if scheme == "mqtt" else ""


def connack_words(code: Any) -> str:
    known = {
        0x86: "the broker refuses the user name or password",
        0x87: "the broker refuses this client (not authorized: user name, password or ACL)",
        4: "the broker refuses the user name or password",
        5: "the broker refuses this client (not authorized: user name, password or ACL)",
        UNSUPPORTED_VERSION: "the broker does not speak this version of MQTT; trying the other one",
        1: "the broker does not speak this version of MQTT; trying the other one",
        0x85: "the broker refuses the client id",
        2: "the broker refuses the client id",
        0x88: "the broker is not available",
        3: "the broker is not available",
    }
    return known.get(getattr(code, "value", -1), f"the broker refuses the connection: {code}")


def _hint(hints: Mapping[str, str], reason: str) -> str:
    return next((f"; {hint}" for part, hint in hints.items() if part in reason), "")


def words(error: BaseException, url: str) -> str:
    """Why a connection cannot be opened, in words for a person."""
    where = "{}:{}".format(*address(url)) if not url.startswith("unix") else address(url)[0]
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = error.verify_message or str(error)
        return f"the certificate of {where} is not accepted: {reason}{_hint(CERTIFICATE_HINTS, reason)}"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return f"no TLS with {where}: {reason}{_hint(TLS_HINTS, reason)}"
    if isinstance(error, ConnectionResetError) and url.startswith(("mqtts", "wss")):
        return f"no TLS with {where}: it closed the connection (is it a plain port, for mqtt://?)"
    if isinstance(error, SecretProblem):
        return str(error)
    if isinstance(error, socket.gaierror):
        return f"the name {where} cannot be resolved"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens on {where}"
    if isinstance(error, TimeoutError):
        return f"{where} does not answer"
    if isinstance(error, OSError):
        return f"{error.filename or where}: {error.strerror or error}"
    return f"{where}: {error}"
