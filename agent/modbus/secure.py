"""TLS towards a device: the certificates of the key `tls`, and in plain words why a connection fails over them."""

from __future__ import annotations

import functools
import re
import ssl
from pathlib import Path
from typing import Any

from agent.config.types import TlsConfig


class Unusable(Exception):
    """A file of the key `tls` cannot be used; str() says which and why."""


class NamedContext(ssl.SSLContext):
    """Holds the other side to `name` instead of the host that was connected to, where there is one."""

    name: str | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As in SSLContext; asyncio calls it for each connection."""
        name = self.name or server_hostname
        return super().wrap_bio(incoming, outgoing, server_side, name, session)


def tls_context(tls: TlsConfig) -> ssl.SSLContext:
    """A client's context: the CAs of `tls` or else the system's, names checked, with a certificate of our own if any.

    Files that were replaced since are read anew. Raises Unusable.
    """
    stamps = []
    for path in (tls.ca, tls.cert, tls.key):
        try:
            stamps.append(None if path is None else path.stat().st_mtime_ns)
        except OSError as error:
            raise Unusable(f"{path}: {error.strerror}") from None
    return _loaded(tls, tuple(stamps))


@functools.lru_cache(maxsize=64)
def _loaded(tls: TlsConfig, stamps: tuple[int | None, ...]) -> ssl.SSLContext:
    context = NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.name = tls.name
    if tls.ca is None:
        context.load_default_certs()
    else:
        _read(tls.ca, "holds no certificates (PEM)", lambda: context.load_verify_locations(tls.ca))
    if tls.cert is not None:
        cert, key = tls.cert, tls.key
        _read(
            cert,
            f"is no certificate (PEM) to the key {key}",
            lambda: context.load_cert_chain(cert, key, _no_pass),
        )
    return context


def _read(path: Path, otherwise: str, load: Any) -> None:
    try:
        load()
    except Unusable:
        raise
    except ssl.SSLError:
        raise Unusable(f"{path} {otherwise}") from None
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None


def _no_pass() -> str:
    raise Unusable("the key of tls is protected by a passphrase; nobody is there to enter it")


def why(error: ssl.SSLError | Unusable, tls: TlsConfig) -> str:
    """Why there is no connection, in plain words, and which key of the configuration says otherwise."""
    if isinstance(error, Unusable):
        return f"TLS: {error}"
    words = str(getattr(error, "verify_message", "") or "").rstrip(".")
    if "mismatch" in words:
        return f"TLS: {words}; `name:` in tls says what name it has"
    if words:
        judge = "the system's CAs" if tls.ca is None else str(tls.ca)
        return f"TLS: {words}, judged by {judge}"
    return f"TLS: {_reason(error.reason or 'handshake failed', tls)}"


def ended(tls: TlsConfig) -> str:
    """What a device that ends the connection before its first reply may mean by it."""
    return f"TLS: the device ended the connection{_ours(tls)}"


def reworded(words: str, tls: TlsConfig, *, heard: bool) -> str:
    """What is told of a lost connection; with TLS 1.3 a device refuses our certificate only after the handshake."""
    alert = re.search(r"\[SSL: (\w*ALERT\w*)\]", words)
    if alert is not None:
        return f"TLS: {_reason(alert[1], tls)}"
    return words if heard else f"{words}{_ours(tls)}"


def _reason(code: str, tls: TlsConfig) -> str:
    reason = re.sub(r"^(ssl|tls)v\d+ ", "", code.replace("_", " ").lower())
    return f"the device ended it with '{reason}'{_ours(tls)}" if "alert" in reason else reason


def _ours(tls: TlsConfig) -> str:
    if tls.cert is None:
        return "; it may want a certificate of ours (cert: and key: in tls)"
    return f"; the certificate that it was shown is {tls.cert}"
