"""State on disk that survives a power cut: written whole or not at all, and set aside when damaged, never fatal."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from agent.sealing import StateDamaged

T = TypeVar("T")
DAMAGED = ".damaged"


def write_atomic(path: Path, data: bytes, *, mode: int = 0o640) -> None:
    """Replaces the file: temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises OSError, and then the old file is still there untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_or_set_aside(
    path: Path, decode: Callable[[bytes], T], *, say: Callable[[str], None] = lambda words: None
) -> T | None:
    """decode(the file's bytes); None when there is no file, or when it cannot be used.

    When `decode` raises StateDamaged the file is renamed to NAME.damaged (over an older one) and `say` gets the words.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        say(f"{path}: cannot be read ({error.strerror}); starting anew")
        return None
    try:
        return decode(data)
    except StateDamaged as why:
        aside = path.with_name(path.name + DAMAGED)
        try:
            path.replace(aside)
            say(f"{path}: {why}; moved to {aside.name}, starting anew")
        except OSError as error:
            say(f"{path}: {why}, and cannot be moved aside ({error.strerror}); starting anew")
        return None
