"""State on disk that survives a power cut: written whole or not at all, and set aside when damaged, never fatal."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, overload

T = TypeVar("T")
DAMAGED = ".damaged"
log = logging.getLogger("edgetwin")


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


@overload
def read_or_set_aside(path: Path) -> bytes | None: ...


@overload
def read_or_set_aside(path: Path, decode: Callable[[bytes], T]) -> T | None: ...


def read_or_set_aside(path: Path, decode: Callable[[bytes], T] | None = None) -> T | bytes | None:
    """The file's bytes, or decode(bytes); None when there is no file, or when it cannot be used.

    A file that is empty (what a power cut leaves), or for which `decode` raises ValueError, is renamed to NAME.damaged
    (over an older one) and a warning is logged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read (%s); starting without it", path, error.strerror)
        return None
    try:
        if not data:
            raise ValueError("it is empty")
        return data if decode is None else decode(data)
    except ValueError as why:
        set_aside(path, str(why))
        return None


def set_aside(path: Path, why: str) -> None:
    """Renames a damaged file to NAME.damaged and logs why."""
    aside = path.with_name(path.name + DAMAGED)
    try:
        path.replace(aside)
    except OSError as error:
        log.warning("%s is damaged (%s) and cannot be moved aside (%s)", path, why, error.strerror)
    else:
        log.warning("%s is damaged (%s); moved to %s, starting without it", path, why, aside.name)
