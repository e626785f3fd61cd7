"""Reads secrets from where the configuration says that they are; no message ever shows one."""

from __future__ import annotations

import os
from pathlib import Path

from agent.config.types import Secret

MOST_BYTES = 64 << 10


class SecretProblem(Exception):
    """A secret that cannot be read: one line that names its place, never its text."""


def reveal(secret: Secret) -> str:
    """The text of a secret, without the line end that editors leave behind it.

    A credential is read from $CREDENTIALS_DIRECTORY, where systemd puts it (LoadCredential=, SetCredential=).
    Raises SecretProblem when it is not there, cannot be read, is empty, or is not UTF-8.
    """
    if secret.kind == "plain":
        return secret.name
    if secret.kind == "env":
        text = os.environ.get(secret.name, "")
        if not text:
            raise SecretProblem(f"the environment variable {secret.name} is not set, or is empty")
        return text
    if secret.kind == "credential":
        return _from_file(_credential(secret.name), f"the credential {secret.name}")
    return _from_file(Path(secret.name), f"the file {secret.name}")


def _credential(name: str) -> Path:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise SecretProblem(
            f"the credential {name} cannot be read: $CREDENTIALS_DIRECTORY is not set "
            f"(systemd sets it where the unit has LoadCredential={name}:PATH)"
        )
    return Path(folder) / name


def _from_file(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise SecretProblem(f"{what} cannot be read: {error.strerror}") from None
    except ValueError:
        raise SecretProblem(f"{what} cannot be read: its path holds a NUL character") from None
    if len(raw) > MOST_BYTES:
        raise SecretProblem(f"{what} is longer than {MOST_BYTES >> 10} KiB")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise SecretProblem(f"{what} is not UTF-8 text") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise SecretProblem(f"{what} is empty")
    return text
