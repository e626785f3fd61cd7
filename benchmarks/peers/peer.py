"""What every tool is asked to do (`Job`), and what an adapter for one of them has to know (`Peer`)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TAG = "r{}"
"""The name of the tag of a register, the same for every tool."""
LONGEST = 125


class Unavailable(Exception):
    """A tool that cannot be had or run here, in words."""


@dataclass(frozen=True, slots=True)
class Device:
    """One unit behind a port of loopback; `registers` are uint16 holding registers, each a tag."""

    name: str
    port: int
    unit: int
    registers: range


@dataclass(frozen=True, slots=True)
class Job:
    """Poll all of it once a second, publish it at once to the broker on loopback, QoS 1 where the tool has it.

    `commands`: registers that may be written, with limits 0 to 1000 where the tool knows limits.
    `durable`: nothing may be lost that has been read, where the tool has such a switch.
    """

    devices: tuple[Device, ...]
    broker: int
    commands: tuple[int, ...] = ()
    durable: bool = False
    timeout: float = 1.0

    @property
    def device(self) -> Device:
        return self.devices[0]


@dataclass(frozen=True, slots=True)
class Command:
    argv: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Installed:
    """Seconds it took, the commands a person types for it, and bytes on disk without Python or node itself."""

    seconds: float
    commands: int
    size: int


@dataclass(frozen=True, slots=True)
class Published:
    """One value out of one message. `value` as the tool wrote it; None where it says that there is none."""

    device: str
    register: int
    value: float | str | None


@dataclass(frozen=True, slots=True)
class Write:
    """A case of the write scenario: a topic and a body."""

    topic: str
    body: bytes


class Peer(ABC):
    """One tool. `folder` is its own; nothing is installed outside it."""

    name: str
    shares: str | None = None
    """Another tool's key, where it is installed with that one."""
    files: int = 1
    """Configuration files to write before the first value."""
    hosts = True
    """Does one process take several hosts?"""
    units = True
    """Does one process take several units of one host?"""
    most: int = LONGEST
    """Registers that it takes in one request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def install(self) -> Installed:
        """Puts it into its folder anew. Raises Unavailable."""

    @abstractmethod
    def ready(self) -> bool:
        """Is it installed?"""

    @abstractmethod
    def configure(self, folder: Path, job: Job) -> Command:
        """Writes its files into the folder; what to run then, with the folder as working directory."""

    def one_command(self, folder: Path, job: Job) -> tuple[Command, Path] | None:
        """One command from nothing to the values of the job, and the file that is there once it has installed.

        None where installing and running are commands of their own: `install`, and `configure` for the last one.
        """
        return None

    @abstractmethod
    def values(self, topic: str, body: bytes) -> Iterator[Published]:
        """What a message says of tags; nothing for a message of another kind."""

    def write(self, job: Job, case: str) -> Write | None:
        """The message for "777", "70000", "-1", "abc" of the first command register, or "elsewhere": register 1999.

        None where the tool takes no commands, or has no way to name such an address.
        """
        return None

    def answers(self, topic: str, body: bytes) -> bool:
        """Is this message an answer to a command?"""
        return False

    def reply(self, topic: str, body: bytes) -> Write | None:
        """What a server of the tool's own kind would answer to this message of it."""
        return None


class PythonPeer(Peer):
    """A tool from the Python package index, in a virtual environment of its own."""

    requirements: tuple[str, ...]
    program: str

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    @property
    def python(self) -> str:
        return str(self.venv / "bin" / "python")

    def ready(self) -> bool:
        return (self.venv / "bin" / self.program).exists()

    def install(self) -> Installed:
        shutil.rmtree(self.venv, ignore_errors=True)
        begin = time.monotonic()
        run([sys.executable, "-m", "venv", str(self.venv)])
        empty = size(self.venv)
        run([self.python, "-m", "pip", "install", "--quiet", *self.requirements])
        return Installed(time.monotonic() - begin, 2, size(self.venv) - empty)

    def command(self, *arguments: str) -> Command:
        return Command((str(self.venv / "bin" / self.program), *arguments))


def run(argv: Sequence[str], cwd: Path | None = None) -> None:
    """Raises Unavailable with the last line that it printed."""
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{argv[0]}: {error}") from None
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise Unavailable(f"`{' '.join(argv[:4])} …` failed: {' '.join(words)}")


def size(folder: Path) -> int:
    """Bytes of all files below a folder, links not followed."""
    return sum(one.lstat().st_size for one in folder.rglob("*") if not one.is_dir())


def blocks(registers: range, most: int) -> list[range]:
    """The range in pieces of at most `most` registers."""
    return [registers[k : k + most] for k in range(0, len(registers), most)]


def register(tag: str) -> int:
    """The register of a tag's name. Raises ValueError."""
    return int(tag.removeprefix("r"))


def number(text: object) -> float | str | None:
    """A value as it stands in JSON or in text: a number where it is one."""
    if text is None or isinstance(text, bool):
        return None if text is None else float(text)
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(text)
