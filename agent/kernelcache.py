"""Loads numba and keeps its compiled kernels on disk; beside the */kernels.py files the only place that knows numba.

A kernel module writes `@kernel("void(float64[::1], int64)")` above a plain function of arrays. Where numba works,
that is `numba.njit` with this one signature, compiled at import and cached. Where it does not (no wheel, a hardened
kernel that forbids executable memory, EDGETWIN_KERNELS=numpy) the function stays plain Python, `backend()` says
"numpy", and `choose` picks the vectorised reference beside the kernel instead. Nothing here ever stops the agent:
each thing that went wrong becomes one plain line in `problems()`.

The cache lives in $CACHE_DIRECTORY, or $NUMBA_CACHE_DIR, or ~/.cache/edgetwin, in a folder of its own that is safe to
delete. Constants that kernels import must stand in a `columns.py` of their room (see `_settings_digest`). numba writes
the cache without fsync and crashes on a truncated file, so a MANIFEST of SHA-256 sums is checked before
numba is imported and what does not match is thrown away.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import importlib
import importlib.metadata
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast

FOLDER = "edgetwin-kernels"
MANIFEST = "MANIFEST"
LOCK = "LOCK"
LONGEST_WAIT = 120.0
"""Seconds that `warm` waits for another process that compiles: longer than that takes on a small board."""
WARM = "WARM"
"""Holds what `_sources` said when every kernel had been compiled into the cache."""
FORCE = "EDGETWIN_KERNELS"
"""Environment variable: `numpy` runs the references, as if numba could not be loaded."""

F = TypeVar("F", bound=Callable[..., Any])
log = logging.getLogger("edgetwin.kernels")

for _name in ("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # each thread pool would reserve buffers per core for nothing


@dataclass
class _Loader:
    """What is known once numba was tried: numba itself (None: not usable), the folder in use, the tally."""

    tried: bool = False
    numba: Any = None
    folder: Path | None = None
    wiped: bool = False
    sealed: bool = True
    complete: bool = True
    timings: list[tuple[str, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    compiled: set[int] = field(default_factory=set)


_loader = _Loader()


def cache_folder() -> Path | None:
    """Where compiled kernels are kept; None when no place is named and there is no home folder."""
    named = os.environ.get("CACHE_DIRECTORY", "").split(":")[0] or os.environ.get("NUMBA_CACHE_DIR", "")
    if named:
        base = Path(named)
    else:
        try:
            base = Path.home() / ".cache" / "edgetwin"
        except RuntimeError:
            return None
    if FOLDER in (base.name, base.parent.name):  # set by a parent process of ours
        base = base.parent if base.name == FOLDER else base.parent.parent
    return base / FOLDER / _settings_digest()


def backend() -> Literal["numba", "numpy"]:
    """Which one computes: compiled kernels or the NumPy references."""
    _load()
    return "numba" if _loader.numba is not None else "numpy"


def problems() -> tuple[str, ...]:
    """What went wrong with numba or its cache so far, in plain words; empty on a healthy machine."""
    return tuple(_loader.problems)


def kernel(signature: str) -> Callable[[F], F]:
    """Decorator: compiles a function of arrays for one signature, with cache and without the GIL.

    Without numba, or when compiling fails for a reason of the machine, the function comes back as it is (correct but
    slow: see `choose`). A mistake in the kernel itself (numba's TypingError) is raised: a bug, no fault of the machine.
    """

    def wrap(function: F) -> F:
        _load()
        started = time.perf_counter()
        done = _compile(signature, function)
        if done is not function:
            _loader.compiled.add(id(done))
            _loader.sealed = False
        name = f"{function.__module__}.{function.__qualname__}"
        _loader.timings.append((name, time.perf_counter() - started))
        return done

    return wrap


def choose(compiled: F, reference: F) -> F:
    """The compiled kernel where it was compiled, else the NumPy reference with the same arguments and results."""
    return compiled if id(compiled) in _loader.compiled else reference


def warm() -> list[tuple[str, float]]:
    """Imports (so: compiles or loads) every kernel of the package and makes the cache durable.

    One process at a time: of two that compile into one cache, each takes the other's files for damage.

    Returns the kernels' names and seconds each took. Raises nothing for a machine's faults: see `problems`.
    """
    package = Path(__file__).parent
    with _alone():
        for path in _kernel_files():
            importlib.import_module(".".join(path.relative_to(package.parent).with_suffix("").parts))
        seal()
        if kept():
            with contextlib.suppress(OSError):  # then the next `cold` says so once more
                (cast(Path, _loader.folder) / WARM).write_text(_sources())
    return list(_loader.timings)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Holds the cache for this process; after LONGEST_WAIT, and where nothing can be written, goes on without."""
    folder = cache_folder()
    with contextlib.ExitStack() as held:
        if folder is not None and not _unwritable(folder):
            with contextlib.suppress(OSError):
                # beside the folder, which may be thrown away
                lock = held.enter_context((folder.parent / f"{folder.name}.{LOCK}").open("ab"))
                _wait_for(lock)
        yield


def _wait_for(lock: IO[bytes]) -> None:
    end = time.monotonic() + LONGEST_WAIT
    while time.monotonic() < end:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)


def cold() -> bool:
    """True where the next `warm` would compile every kernel first, and keep them; does not import numba."""
    folder = cache_folder()
    if folder is None or os.environ.get(FORCE) or _unwritable(folder):
        return False
    try:
        return (folder / WARM).read_text() != _sources()
    except (OSError, UnicodeDecodeError):
        return True


def stand_in(why: str) -> None:
    """From now on this process runs the references, without loading numba; `why` is told among the problems.

    Before the first kernel is imported; after that it changes nothing.
    """
    if not _loader.tried:
        _loader.tried = True
        _say(why)


def kept() -> bool:
    """True when compiled kernels run and lie whole in the cache."""
    return _loader.numba is not None and _loader.folder is not None and _loader.complete


def seal() -> None:
    """Writes the MANIFEST and makes the cached files durable; does nothing when they already are."""
    folder = _loader.folder
    if folder is None or _loader.numba is None or _loader.sealed:
        return
    try:
        text = _sums(folder)
        manifest = folder / MANIFEST
        if not manifest.exists() or manifest.read_bytes() != text.encode():
            for path in _files(folder):
                _fsync(path)
            temporary = folder / (MANIFEST + ".new")
            temporary.write_text(text)
            _fsync(temporary)
            temporary.replace(manifest)
            for each in {path.parent for path in _files(folder)} | {folder}:
                _fsync(each)
    except OSError as error:
        _say(
            f"the kernel cache {folder} could not be completed ({error.strerror}); it is made anew next time"
        )
    _loader.sealed = True


def _load() -> None:
    """Finds the cache, checks it, imports numba. Once per process."""
    if _loader.tried:
        return
    _loader.tried = True
    if os.environ.get(FORCE, "").lower() == "numpy":
        _say(f"{FORCE}=numpy: the plain NumPy references run, slower than compiled kernels")
        return
    folder = cache_folder()
    if folder is None:
        _say("there is no home folder and no CACHE_DIRECTORY: kernels are compiled anew at each start")
    else:
        why = _unwritable(folder)
        if why:
            _say(
                f"the kernel cache {folder} cannot be written ({why}): kernels are compiled anew at each start"
            )
        else:
            _drop_damaged(folder)
            os.environ["NUMBA_CACHE_DIR"] = str(folder)
            _loader.folder = folder
    try:
        numba = importlib.import_module("numba")
    except Exception as error:
        _say(f"numba cannot be loaded ({_words(error)}): the plain NumPy references run, slower")
        return
    if numba.config.DISABLE_JIT:
        _say("NUMBA_DISABLE_JIT is set: the plain NumPy references run, slower")
        return
    if _loader.folder is not None:
        numba.config.CACHE_DIR = str(_loader.folder)  # numba may have been imported before by somebody else
    _defer_runtime()
    _loader.numba = numba
    atexit.register(seal)


def _defer_runtime() -> None:
    """Has numba compile its memory runtime when the first kernel is compiled, instead of at each start.

    Kernels from the cache carry what they need of it; without, a start is 0.3 s shorter and 20 MB smaller (LLVM's
    compiler is never run). Where numba is built otherwise than 0.68, nothing is changed.
    """
    try:
        instance: Any = importlib.import_module("numba.core.runtime").rtsys
        maker: Any = importlib.import_module("numba.core.runtime.nrtdynmod")
        compile_now, runtime = maker.compile_nrt_functions, type(instance)
        if not isinstance(runtime.library, property) or instance._init:
            return
    except (ImportError, AttributeError):
        return

    contexts: list[Any] = []

    def library(self: Any) -> Any:
        self._init_guard()
        if self._library is None:
            self._library = compile_now(contexts[-1])
        return self._library

    maker.compile_nrt_functions = contexts.append
    runtime.library = property(library)


def _compile(signature: str, function: F) -> F:
    numba = _loader.numba
    if numba is None:
        return function
    mistakes = (numba.core.errors.TypingError, numba.core.errors.UnsupportedError)
    options = {"nogil": True, "error_model": "numpy"}
    while True:
        cache = _loader.folder is not None
        try:
            return cast(F, numba.njit(signature, cache=cache, **options)(function))
        except mistakes:
            raise
        except Exception as error:  # a damaged cache fails in many ways: pickle, EOF, unicode, OS errors
            if not cache:
                _loader.numba = None
                _say(f"kernels cannot be compiled ({_words(error)}): the plain NumPy references run, slower")
                return function
            if _loader.wiped:
                _say(
                    f"the kernel cache {_loader.folder} cannot be used ({_words(error)}): compiled without it"
                )
                _loader.folder = None
            else:
                _loader.wiped = True
                _say(f"the kernel cache {_loader.folder} was damaged ({_words(error)}): made anew")
                _wipe(cast(Path, _loader.folder))


def _drop_damaged(folder: Path) -> None:
    """Throws the cache away when a file is not what the MANIFEST says, and single files that it does not know.

    Unknown files come from a process that ended before it sealed its work; nothing vouches for them.
    """
    known: dict[str, str] = {}
    try:
        for line in (folder / MANIFEST).read_text().splitlines():
            digest, _, name = line.partition("  ")
            known[name] = digest
    except (OSError, UnicodeDecodeError):
        known = {}
    for path in _files(folder):
        name = str(path.relative_to(folder))
        if name not in known:
            path.unlink(missing_ok=True)
        elif _digest(path) != known[name]:
            _say(f"the kernel cache {folder} was damaged ({name} is not what was written): made anew")
            _loader.wiped = True
            _wipe(folder)
            return


def _settings_digest() -> str:
    """Names the cache after the constants that kernels take from columns.py files.

    numba bakes them in but looks at the kernels' own file alone, so a changed constant would go unnoticed.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*/columns.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _kernel_files() -> list[Path]:
    return sorted(Path(__file__).parent.rglob("kernels.py"))


def _sources() -> str:
    """What numba's cached files are valid for: the interpreter, numba's version, place and age of each kernel file."""
    try:
        numba = importlib.metadata.version("numba")
    except importlib.metadata.PackageNotFoundError:
        numba = ""
    stats = ((path, path.stat()) for path in _kernel_files())
    lines = [
        f"{sys.version} numba {numba}",
        *(f"{path} {one.st_mtime_ns} {one.st_size}" for path, one in stats),
    ]
    return "\n".join(lines)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("**/*.nb[ic]") if path.is_file())


def _sums(folder: Path) -> str:
    """One line per cached file, as sha256sum writes it."""
    return "".join(f"{_digest(path)}  {path.relative_to(folder)}\n" for path in _files(folder))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:  # another process made the cache anew meanwhile
        return ""


def _wipe(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _unwritable(folder: Path) -> str | None:
    """Why files cannot be made in the folder; None where they can. numba needs to write even when all is cached."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _say(words: str) -> None:
    _loader.problems.append(words)
    log.info(words)
