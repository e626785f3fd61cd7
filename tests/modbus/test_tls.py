"""Devices behind tls:// with certificates of a plant's own: whom the agent takes, and what it says when it does not."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from agent.config.types import TlsConfig, Url
from agent.modbus.faults import LinkFault
from agent.modbus.link import Link
from agent.runtime.clock import SystemClock
from tests.modbus.faultserver import FaultServer, registers

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


class Authority:
    """A CA of its own, in a folder of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.ca, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        openssl("req", "-x509", *NEW_KEY, "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.ca)

    def signed(self, name: str, *alternative: str) -> tuple[Path, Path]:
        """(certificate, key) for `name`."""
        cert, key, request = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={','.join(alternative or (f'DNS:{name}',))}\n")
        openssl("req", "-new", *NEW_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._key, "-CAcreateserial"),
            *("-days", "2", "-extfile", extensions, "-out", cert),
        )
        return cert, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("plant"), "plant-ca")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger-ca")


@pytest.fixture(scope="module")
def device(authority: Authority) -> tuple[Path, Path]:
    return authority.signed("press1.plant", "DNS:press1.plant")


def serving(files: tuple[Path, Path], *, wants: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    if wants is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(wants)
    return context


def read(context: ssl.SSLContext, tls: TlsConfig) -> bytes | str:
    """What a read over TLS gives: its data, or why there is no connection (also what is told of a lost one)."""

    async def go() -> bytes | str:
        server = await FaultServer(tls=context).start()
        lost: list[str] = []
        url = Url(f"tls://127.0.0.1:{server.port}", "tls", "127.0.0.1", server.port)
        link = Link(
            url, clock=SystemClock(), on_lost=lost.append, on_late=lambda unit, seconds: None, tls=tls
        )
        try:
            await link.connect(10.0)
            answer = await link.transact(1, 3, b"\0\x07\0\x02", timeout=10.0, within=10.0)
            assert answer.payload is not None
            return answer.payload
        except LinkFault as fault:
            return lost[0] if lost else fault.words
        finally:
            link.close()
            await server.stop()

    return asyncio.run(go())


def test_a_ca_of_ones_own_and_the_name_in_the_certificate(
    authority: Authority, device: tuple[Path, Path]
) -> None:
    tls = TlsConfig(ca=authority.ca, name="press1.plant")
    assert read(serving(device), tls) == registers(7, 2)


def test_an_address_in_the_certificate_needs_no_name(authority: Authority) -> None:
    files = authority.signed("by-address", "IP:127.0.0.1")
    assert read(serving(files), TlsConfig(ca=authority.ca)) == registers(7, 2)


def test_a_wrong_ca_is_told_with_its_file(stranger: Authority, device: tuple[Path, Path]) -> None:
    words = read(serving(device), TlsConfig(ca=stranger.ca, name="press1.plant"))
    assert isinstance(words, str)
    assert "unable to get local issuer certificate" in words and str(stranger.ca) in words


def test_the_system_does_not_know_the_plants_ca(device: tuple[Path, Path]) -> None:
    words = read(serving(device), TlsConfig(name="press1.plant"))
    assert isinstance(words, str) and words.endswith("judged by the system's CAs")


@pytest.mark.parametrize("name", [None, "press2.plant"])
def test_a_wrong_name_is_told(authority: Authority, device: tuple[Path, Path], name: str | None) -> None:
    words = read(serving(device), TlsConfig(ca=authority.ca, name=name))
    assert isinstance(words, str)
    assert "mismatch" in words and (name or "127.0.0.1") in words and "`name:` in tls" in words


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_device_that_wants_a_certificate(
    authority: Authority, stranger: Authority, device: tuple[Path, Path], version: ssl.TLSVersion
) -> None:
    context = serving(device, wants=authority.ca)
    context.minimum_version = context.maximum_version = version
    without = TlsConfig(ca=authority.ca, name="press1.plant")
    words = read(context, without)
    assert isinstance(words, str) and "cert: and key: in tls" in words
    cert, key = stranger.signed("intruder")
    words = read(context, TlsConfig(authority.ca, cert, key, "press1.plant"))
    assert isinstance(words, str) and words.endswith(f"is {cert}")
    cert, key = authority.signed("agent")
    assert read(context, TlsConfig(authority.ca, cert, key, "press1.plant")) == registers(7, 2)


def test_files_that_cannot_be_used_are_told(
    authority: Authority, device: tuple[Path, Path], tmp_path: Path
) -> None:
    context = serving(device)
    gone, rubbish, locked = (tmp_path / name for name in ("gone.pem", "rubbish.pem", "locked.key"))
    rubbish.write_text("no certificate\n")
    cert, key = device
    openssl("ec", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked)
    for tls, says in (
        (TlsConfig(ca=gone), f"TLS: {gone}: No such file or directory"),
        (TlsConfig(ca=rubbish), f"TLS: {rubbish} holds no certificates (PEM)"),
        (TlsConfig(authority.ca, cert, rubbish), f"TLS: {cert} is no certificate (PEM) to the key {rubbish}"),
        (TlsConfig(authority.ca, cert, locked), "TLS: the key of tls is protected by a passphrase"),
    ):
        words = read(context, tls)
        assert isinstance(words, str) and says in words, words


def test_a_renewed_file_counts_without_a_restart(
    authority: Authority, stranger: Authority, device: tuple[Path, Path], tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    tls = TlsConfig(ca=ca, name="press1.plant")
    shutil.copy(stranger.ca, ca)
    assert isinstance(read(serving(device), tls), str)
    ca.write_bytes(authority.ca.read_bytes())
    assert read(serving(device), tls) == registers(7, 2)
