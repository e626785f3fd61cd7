"""Folders, sockets and secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config.paths import socket_candidates, socket_path, state_dir
from agent.config.secrets import SecretProblem, reveal
from agent.config.types import Config, Secret


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def config(state: str | None) -> Config:
    return Config("f", "g", Path(state) if state else None)


def test_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_dir(config(None)) == Path("/var/lib/edgetwin")
    monkeypatch.setenv("STATE_DIRECTORY", "/srv/a:/srv/b")
    assert state_dir(config(None)) == Path("/srv/a")
    assert state_dir(config("./state")) == Path("./state")


def test_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    made = config("/s")
    assert socket_path(made, Path("/s")) == Path("/s/edgetwin.sock")
    assert socket_candidates(made) == [Path("/run/edgetwin/edgetwin.sock"), Path("/s/edgetwin.sock")]
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/x")
    assert socket_path(made, Path("/s")) == Path("/run/x/edgetwin.sock")
    assert [path.parent for path in socket_candidates(made)] == [
        Path("/run/x"),
        Path("/run/edgetwin"),
        Path("/s"),
    ]
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/edgetwin")
    assert len(socket_candidates(made)) == 2


def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mqtt").write_bytes(b" hunter2 \r\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("MY_KEY", "abc")
    assert reveal(Secret("credential", "mqtt")) == " hunter2 "
    assert reveal(Secret("file", str(tmp_path / "mqtt"))) == " hunter2 "
    assert reveal(Secret("env", "MY_KEY")) == "abc"
    assert reveal(Secret("plain", "x")) == "x"


def test_what_cannot_be_read_names_the_place_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "latin").write_bytes(b"hunter\xe9")
    (tmp_path / "large").write_bytes(b"hunter2 " * 10_000)
    for secret, words in (
        (Secret("credential", "mqtt"), "LoadCredential=mqtt"),
        (Secret("env", "NOT_THERE"), "NOT_THERE is not set"),
        (Secret("file", str(tmp_path)), "Is a directory"),
        (Secret("file", str(tmp_path / "none")), "No such file"),
        (Secret("file", "a\0b"), "NUL"),
        (Secret("file", str(tmp_path / "empty")), "is empty"),
        (Secret("file", str(tmp_path / "latin")), "not UTF-8"),
        (Secret("file", str(tmp_path / "large")), "longer than 64 KiB"),
    ):
        with pytest.raises(SecretProblem) as caught:
            reveal(secret)
        assert words in str(caught.value)
        assert "hunter" not in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(SecretProblem, match="the credential none cannot be read"):
        reveal(Secret("credential", "none"))
