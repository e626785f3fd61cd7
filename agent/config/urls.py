"""URLs of devices and brokers: parsed, checked, and brought to one form."""

from __future__ import annotations

import ipaddress
import posixpath
import re

from agent.config import scalars
from agent.config.scalars import Wrong, shown
from agent.config.types import Url
from agent.config.walker import nearest

DEFAULT_PORT = {"tcp": 502, "tls": 802, "rtu+tcp": 502, "udp": 502}
BROKER_SCHEMES = ("mqtt", "mqtts", "ws", "wss", "unix")
SERIAL_KEYS = ("baud", "parity", "stopbits", "local_echo")

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")


def device_url(text: str) -> Url:
    """The URL of a device; `text` of the result is its canonical form. Raises Wrong."""
    scheme, separator, rest = text.partition("://")
    known = (*DEFAULT_PORT, "rtu")
    if not separator:
        raise Wrong(f"{shown(text)} is no URL", "write tcp://HOST:PORT or rtu:///dev/…")
    if scheme not in known:
        guess = nearest(scheme, known)
        words = ", ".join(f"{name}://" for name in known)
        raise Wrong(
            f"{shown(scheme + '://')} is not known",
            f"did you mean {guess}://?" if guess else f"known: {words}",
        )
    if scheme == "rtu":
        return _serial(rest)
    host, port = host_port(rest, DEFAULT_PORT[scheme], f"{scheme}://HOST:PORT")
    shown_host = f"[{host}]" if ":" in host else host
    return Url(f"{scheme}://{shown_host}:{port}", scheme, host=host, port=port)  # type: ignore[arg-type]


def host_port(text: str, default: int | None, form: str) -> tuple[str, int]:
    """HOST:PORT, with [..] around an IPv6 address; `default` where no port is given (None: it must be)."""
    if "@" in text:
        raise Wrong("a user name or password has no place in this URL", f"write {form}")
    if any(c in text for c in "/?#"):
        bare = re.split(r"[/?#]", text, maxsplit=1)
        if bare[1] or text[len(bare[0])] != "/":
            raise Wrong(f"{shown(text[len(bare[0]) :])} has no place behind the host", f"write {form}")
        text = bare[0]
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port_text = rest[:1], rest[1:]
        if not bracket or (colon and colon != ":"):
            raise Wrong(f"{shown(text)} is no host and port", f"write {form}")
        try:
            host = str(ipaddress.IPv6Address(host))
        except ValueError:
            raise Wrong(f"{shown(host)} is no IPv6 address", f"write {form}") from None
    else:
        host, colon, port_text = text.partition(":")
        if not colon and default is None:
            raise Wrong(f"{shown(text)} is no host and port", f"write {form}")
        if ":" in port_text:
            raise Wrong(f"{shown(text)} is no host and port", "put an IPv6 address in brackets: [::1]:502")
        host = host.lower()
        _check_host(host, form)
    if not colon:
        if default is None:
            raise Wrong(f"{shown(text)} has no port", f"write {form}")
        return host, default
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not 1 <= int(port_text) <= 65535:
        raise Wrong(f"{shown(port_text)} is no port", "write a number from 1 to 65535")
    return host, int(port_text)


def _check_host(host: str, form: str) -> None:
    if not host:
        raise Wrong("the host is missing", f"write {form}")
    if not _HOST.fullmatch(host):
        raise Wrong(f"{shown(host)} is no host name or address", f"write {form}")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise Wrong(f"{shown(host)} is no IPv4 address", f"write {form}") from None


def _serial(rest: str) -> Url:
    form = "rtu:///dev/ttyUSB0?baud=19200&parity=E&stopbits=1"
    path, _, query = rest.partition("?")
    if not path.startswith("/"):
        raise Wrong("rtu:// takes the path of a serial port", f"write {form}, with three slashes")
    path = posixpath.normpath("/" + path.lstrip("/"))
    given: dict[str, str] = {}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if key not in SERIAL_KEYS:
            guess = nearest(key, SERIAL_KEYS)
            raise Wrong(
                f"{shown(key)} is not known in a serial URL",
                f"did you mean {guess}?" if guess else f"known: {', '.join(SERIAL_KEYS)}",
            )
        if not equals or key in given:
            raise Wrong(f"{key} stands there twice" if equals else f"{key} has no value", f"write {form}")
        given[key] = value
    try:
        baud = scalars.integer(given.get("baud", "19200"))
    except Wrong as wrong:
        raise Wrong(f"baud={wrong}", wrong.hint or "write bits per second, as baud=19200") from None
    if not 50 <= baud <= 4_000_000:
        raise Wrong(f"baud={baud} is out of range", "write 9600, 19200, 38400, 57600 or 115200")
    parity = given.get("parity", "E").upper()
    if parity not in ("N", "E", "O"):
        raise Wrong(f"parity={shown(parity)} is not known", "write N, E or O")
    stopbits = given.get("stopbits", "1")
    if stopbits not in ("1", "2"):
        raise Wrong(f"stopbits={shown(stopbits)} is not known", "write 1 or 2")
    echo = scalars.boolean(given.get("local_echo", "false"))
    text = f"rtu://{path}?baud={baud}&parity={parity}&stopbits={stopbits}&local_echo={str(echo).lower()}"
    return Url(
        text,
        "rtu",
        path=path,
        baud=baud,
        parity=parity,  # type: ignore[arg-type]  # one of the three, looked at above
        stopbits=int(stopbits),
        local_echo=echo,
    )


def check_broker(text: str) -> None:
    """Raises Wrong where `text` is no URL of a broker."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in BROKER_SCHEMES:
        guess = nearest(scheme, BROKER_SCHEMES) if separator else None
        raise Wrong(
            f"{shown(text)} is no URL of a broker",
            f"did you mean {guess}://?" if guess else "write mqtt://HOST:1883 or mqtts://HOST:8883",
        )
    if scheme == "unix":
        if not rest.startswith("/"):
            raise Wrong("unix:// takes the path of a socket", "write unix:///run/mosquitto/mosquitto.sock")
        return
    if "@" in rest:
        raise Wrong("a user name or password has no place in this URL", "use username: and password:")
    if scheme in ("ws", "wss"):
        rest = rest.split("/", 1)[0]
    host_port(rest, 1, f"{scheme}://HOST:PORT")
