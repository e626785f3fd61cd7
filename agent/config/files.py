"""Text files of the configuration: read within bounds, with what is wrong told in plain words."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from agent.config.types import Problem

MOST_BYTES = 32 << 20
MAY_READ = "the service reads it by its group: chown root:edgetwin and chmod 640; any other user needs sudo"


def content(file: str) -> tuple[str, bool] | Problem:
    """The text of a file, and whether every user of the machine may read it; a Problem at 1:1 where it is no text."""

    def problem(what: str, hint: str) -> Problem:
        return Problem(file, 1, 1, "", what, hint)

    try:
        with Path(file).open("rb") as stream:
            size = stream.seek(0, 2) if stream.seekable() else 0
            if size > MOST_BYTES:
                return problem(
                    f"the file has {size >> 20} MiB, more than {MOST_BYTES >> 20} MiB", "is it the right one?"
                )
            if size:
                stream.seek(0)
            raw = stream.read(MOST_BYTES + 1)
            exposed = bool(os.fstat(stream.fileno()).st_mode & stat.S_IROTH)
    except OSError as error:
        return problem(*_why(file, error))
    except ValueError:
        return problem("the path holds a NUL character", "name a file")
    if len(raw) > MOST_BYTES:
        return problem(f"there are more than {MOST_BYTES >> 20} MiB", "is it the right file?")
    try:
        return raw.decode("utf-8").removeprefix("\ufeff"), exposed
    except UnicodeDecodeError as error:
        guess = "save it as UTF-8"
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            guess = "it looks like UTF-16; save it as UTF-8"
        return problem(f"the file is not UTF-8: byte {error.start + 1:,} is 0x{raw[error.start]:02X}", guess)


def _why(file: str, error: OSError) -> tuple[str, str]:
    if error.errno == errno.ENOENT:
        folder = Path(file).parent
        hint = "name one that is there" if folder.is_dir() else f"there is no folder {folder} either"
        return "there is no such file", hint
    if error.errno == errno.EISDIR:
        inside = Path(file) / "config.yaml"
        return "this is a directory", f"did you mean {inside}?" if inside.is_file() else "name a file"
    if error.errno == errno.EACCES:
        return "this user may not read the file", MAY_READ
    return f"it cannot be read: {(error.strerror or 'unknown error').lower()}", "name a file that can be read"
