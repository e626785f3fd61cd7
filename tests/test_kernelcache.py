"""The kernel cache in processes of their own: cold, warm, damaged in each known way, read-only, and without numba."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = """
from agent.kernelcache import kernel

@kernel("float64(float64[::1])")
def total(a):
    s = 0.0
    for i in range(len(a)):
        s += a[i]
    return s

@kernel("float64(float64[::1], float64)")
def scaled(a, k):
    return k * total(a)
"""
PROGRAM = """
import json, sys, time
import numpy as np
from agent import kernelcache
import cached_kernels as k
kernelcache.seal()
print(json.dumps({
    "total": k.total(np.arange(4.0)), "scaled": k.scaled(np.arange(4.0), 2.0), "backend": kernelcache.backend(),
    "problems": kernelcache.problems(), "kept": kernelcache.kept(),
    "chosen": kernelcache.choose(k.total, None) is k.total, "folder": str(kernelcache.cache_folder()),
    "hits": sum(sum(f.stats.cache_hits.values()) for f in (k.total, k.scaled) if hasattr(f, "stats")),
}))
"""
VOUCH = """
from agent import kernelcache as k
folder = k.cache_folder()
(folder / k.MANIFEST).write_text(k._sums(folder))
print("{}")
"""
"""Makes the MANIFEST agree with whatever lies in the cache."""
pytestmark = pytest.mark.process


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can enter, with the little kernel module in it."""
    folder = Path(tempfile.mkdtemp(prefix="edgetwin-test-"))
    folder.chmod(0o755)
    (folder / "cached_kernels.py").write_text(KERNELS)
    yield folder
    shutil.rmtree(folder)


def run(
    place: Path,
    program: str = PROGRAM,
    *,
    paths: tuple[Path, ...] = (),
    **environment: str | None,
) -> dict[str, Any]:
    """Runs the program with this cache; environment values None are taken away."""
    wanted: dict[str, str | None] = {**os.environ, "CACHE_DIRECTORY": str(place / "cache"), **environment}
    wanted["PYTHONPATH"] = os.pathsep.join(map(str, (*paths, ROOT, place)))
    wanted["PYTHONDONTWRITEBYTECODE"] = "1"
    wanted["NUMBA_CACHE_DIR"] = environment.get("NUMBA_CACHE_DIR")
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={name: value for name, value in wanted.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=100,
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert answer.get("total", 6.0) == 6.0 and answer.get("scaled", 12.0) == 12.0
    return answer


def cached(place: Path, end: str) -> list[Path]:
    return sorted((place / "cache").glob(f"**/*.{end}"))


def test_the_second_start_loads_what_the_first_compiled(place: Path) -> None:
    first = run(place)
    assert first["backend"] == "numba" and first["kept"] and first["problems"] == [] and first["hits"] == 0
    assert first["chosen"]
    manifest = next((place / "cache").glob("**/MANIFEST"))
    assert (
        len(manifest.read_text().splitlines()) == len(cached(place, "nbc")) + len(cached(place, "nbi")) == 4
    )
    before = manifest.stat().st_mtime_ns
    second = run(place)
    assert second["hits"] == 2 and second["problems"] == [] and second["kept"]
    assert manifest.stat().st_mtime_ns == before, "a warm start writes nothing"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for i in range(len(data) // 3, len(data) // 3 + 40):
        data[i] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("end", ["nbc", "nbi"])
@pytest.mark.parametrize("damage", [cut, empty, flip])
def test_a_damaged_file_is_seen_before_it_is_loaded(
    place: Path, damage: Callable[[Path], None], end: str
) -> None:
    run(place)
    damage(cached(place, end)[0])
    mended = run(place)
    assert mended["backend"] == "numba" and mended["kept"]
    assert (
        len(mended["problems"]) == 1
        and "damaged" in mended["problems"][0]
        and "made anew" in mended["problems"][0]
    )
    assert run(place)["problems"] == []


@pytest.mark.parametrize("end", ["nbc", "nbi"])
@pytest.mark.parametrize("damage", [cut, empty])
def test_damage_that_the_manifest_vouches_for_is_mended_at_loading(
    place: Path, damage: Callable[[Path], None], end: str
) -> None:
    run(place)
    damage(cached(place, end)[0])
    run(place, VOUCH)
    mended = run(place)
    assert mended["backend"] == "numba" and mended["kept"]
    assert len(mended["problems"]) == 1 and "damaged" in mended["problems"][0]
    run(place)  # what had been loaded before the damage showed went with the rest, and is compiled now
    assert run(place)["hits"] == 2


def test_files_of_a_process_that_died_before_sealing_are_not_trusted(place: Path) -> None:
    run(place)
    manifest = next((place / "cache").glob("**/MANIFEST"))
    manifest.unlink()
    flip(cached(place, "nbc")[0])
    again = run(place)
    assert again["hits"] == 0 and again["problems"] == [] and again["kept"]


def test_a_manifest_of_garbage_costs_a_compilation_only(place: Path) -> None:
    run(place)
    next((place / "cache").glob("**/MANIFEST")).write_bytes(b"\xff\x00garbage")
    assert run(place)["kept"]
    assert run(place)["hits"] == 2


def test_other_files_in_the_folder_are_left_alone(place: Path) -> None:
    (place / "cache").mkdir()
    other = place / "cache" / "somebody.nbc"
    other.write_bytes(b"not ours")
    run(place)
    empty(cached(place / "cache", "nbc")[0] if cached(place / "cache", "nbc") else cached(place, "nbi")[0])
    run(place)
    assert other.read_bytes() == b"not ours"


WITHOUT_PRIVILEGE = """
import ctypes, os
if os.geteuid() == 0:  # root may write everywhere; without its capabilities it is held by the mode bits like others
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0
"""


def test_a_read_only_cache_is_done_without(place: Path) -> None:
    run(place)
    for path in (place / "cache").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (place / "cache").chmod(0o555)
    answer = run(place, WITHOUT_PRIVILEGE + PROGRAM)
    (place / "cache").chmod(0o755)
    for path in (place / "cache").rglob("*"):
        path.chmod(0o755)
    assert answer["backend"] == "numba" and not answer["kept"]
    assert len(answer["problems"]) == 1 and "cannot be written" in answer["problems"][0]


AS_NOBODY = """
import ctypes, os
if os.geteuid() == 0:
    libc, read = ctypes.CDLL(None), 1 << 2
    assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    # CAP_DAC_READ_SEARCH alone is kept: the checkout may lie in root's home. Writing is held by owner and mode bits.
    assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(read, read, 0, 0, 0, 0)) == 0
    assert os.geteuid() == 65534
"""
"""The service's own user, where the tests run as root; elsewhere whoever runs them."""


def belong(path: Path, *, to_the_service: bool) -> None:
    """Gives a folder and all in it to the service's user, or to somebody else who lets others read at most."""
    for each in (path, *path.rglob("*")):
        if os.geteuid() == 0:
            owner = 65534 if to_the_service else 0
            os.chown(each, owner, owner)
            each.chmod(0o755 if each.is_dir() else 0o644)
        else:
            each.chmod((0o755 if to_the_service else 0o555) if each.is_dir() else 0o444)


@pytest.fixture
def cache(place: Path) -> Iterator[Path]:
    """The cache's folder, which can be taken away again at the end whatever became of it."""
    folder = place / "cache"
    folder.mkdir()
    yield folder
    belong(folder, to_the_service=True)


@pytest.mark.parametrize("state", ["missing", "whole", "damaged", "empty file"])
def test_a_cache_of_somebody_else_is_neither_needed_nor_touched(place: Path, cache: Path, state: str) -> None:
    """What `warm` as root leaves, and a unit without CacheDirectory: the service's user can write nothing there."""
    if state != "missing":
        run(place)
    for path in cached(place, "nbc") + cached(place, "nbi"):
        if state != "whole":
            (cut if state == "damaged" else empty)(path)
    belong(cache, to_the_service=False)
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    answer = run(place, AS_NOBODY + PROGRAM)
    assert answer["backend"] == "numba" and answer["chosen"] and not answer["kept"] and answer["hits"] == 0
    assert len(answer["problems"]) == 1 and "cannot be written (Permission denied)" in answer["problems"][0]
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", [None, cut, empty, flip])
def test_a_cache_of_its_own_is_made_and_mended(
    place: Path, cache: Path, damage: Callable[[Path], None] | None
) -> None:
    belong(cache, to_the_service=True)
    first = run(place, AS_NOBODY + PROGRAM)
    assert first["backend"] == "numba" and first["kept"] and first["problems"] == [] and first["hits"] == 0
    if damage is not None:
        cached(place, "nbc")[0].chmod(0o644)
        damage(cached(place, "nbc")[0])
        mended = run(place, AS_NOBODY + PROGRAM)
        assert mended["kept"] and len(mended["problems"]) == 1 and "made anew" in mended["problems"][0]
    again = run(place, AS_NOBODY + PROGRAM)
    assert again["hits"] == 2 and again["problems"] == [] and again["kept"]


def test_no_home_and_no_cache_directory(place: Path) -> None:
    answer = run(place, CACHE_DIRECTORY=None, HOME="/proc/nonexistent")
    assert answer["backend"] == "numba" and "/proc/nonexistent" in answer["problems"][0]


def test_a_file_where_the_folder_should_be(place: Path) -> None:
    (place / "cache").write_text("in the way")
    answer = run(place)
    assert answer["backend"] == "numba" and "cannot be written" in answer["problems"][0]


def test_the_places_in_their_order(place: Path) -> None:
    program = "import json; from agent import kernelcache as k; print(json.dumps({'folder': str(k.cache_folder())}))"
    first = run(place, program, NUMBA_CACHE_DIR="/n", HOME="/h")["folder"]
    second = run(place, program, CACHE_DIRECTORY=None, NUMBA_CACHE_DIR="/n", HOME="/h")["folder"]
    third = run(place, program, CACHE_DIRECTORY=None, HOME="/h")["folder"]
    assert first.startswith(f"{place}/cache/edgetwin-kernels/")
    assert second.startswith("/n/edgetwin-kernels/") and third.startswith(
        "/h/.cache/edgetwin/edgetwin-kernels/"
    )
    assert run(place, program, CACHE_DIRECTORY=None, NUMBA_CACHE_DIR=second)["folder"] == second, (
        "a child's is its parent's"
    )


@pytest.mark.parametrize(
    ("stub", "words"),
    [
        ("raise ImportError('no wheel for this machine')", "no wheel for this machine"),
        (
            "raise PermissionError(13, 'cannot allocate executable memory')",
            "cannot allocate executable memory",
        ),
    ],
)
def test_without_numba_the_references_run(place: Path, stub: str, words: str) -> None:
    (place / "fake").mkdir()
    (place / "fake" / "numba.py").write_text(stub)
    answer = run(place, paths=(place / "fake",))
    assert answer["backend"] == "numpy" and not answer["chosen"] and words in answer["problems"][0]


def test_the_references_can_be_asked_for(place: Path) -> None:
    answer = run(place, EDGETWIN_KERNELS="numpy")
    assert answer["backend"] == "numpy" and "EDGETWIN_KERNELS" in answer["problems"][0]


def test_a_warm_start_runs_no_compiler(place: Path) -> None:
    """Even a kernel that takes memory of numba's runtime comes whole from the cache."""
    (place / "cached_kernels.py").write_text(
        """
import numpy as np
from agent.kernelcache import kernel

@kernel("float64(float64[::1])")
def doubled(a):
    b = np.empty(len(a))
    b[:] = 2.0 * a
    return b.sum()
"""
    )
    program = """
import json
import numpy as np
import cached_kernels as k
from numba.core.runtime import rtsys
print(json.dumps({"doubled": k.doubled(np.arange(4.0)), "compiled": rtsys._library is not None}))
"""
    assert run(place, program) == {"doubled": 12.0, "compiled": True}
    assert run(place, program) == {"doubled": 12.0, "compiled": False}


def test_a_compiler_that_fails_leaves_plain_python(place: Path) -> None:
    program = "import numba; numba.njit = lambda *a, **k: (lambda f: 1 / 0)\n" + PROGRAM
    answer = run(place, program)
    assert answer["backend"] == "numpy" and not answer["chosen"]
    assert any("cannot be compiled" in words for words in answer["problems"])


def test_a_mistake_in_a_kernel_is_no_fault_of_the_machine(place: Path) -> None:
    program = """
import json
from agent.kernelcache import kernel
from numba.core.errors import TypingError
try:
    kernel("float64(float64)")(lambda x: x.nothing)
except TypingError:
    print(json.dumps({"raised": True}))
"""
    assert run(place, program)["raised"]


def test_changed_constants_get_a_cache_of_their_own(place: Path) -> None:
    (place / "agent" / "room").mkdir(parents=True)
    shutil.copy(ROOT / "agent" / "kernelcache.py", place / "agent")
    (place / "agent" / "__init__.py").write_text("")
    program = "import json; from agent import kernelcache as k; print(json.dumps({'folder': str(k.cache_folder())}))"
    folders = []
    for constant in ("A = 1", "A = 2"):
        (place / "agent" / "room" / "columns.py").write_text(constant)
        folders.append(run(place, program, paths=(place,))["folder"])
    assert folders[0] != folders[1]


def warm(place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", "warm"],
        env={**os.environ, "CACHE_DIRECTORY": str(place / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
    )


def test_warm_fills_the_cache_once_where_two_begin_together(place: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        done, other = pool.map(warm, [place, place])
    assert done.returncode == 0 and done.stderr == ""
    assert other.returncode == 0 and other.stderr == ""
    took = [
        sum(float(line.split()[0]) for line in one.stdout.splitlines() if " s " in line)
        for one in (done, other)
    ]
    assert min(took) < max(took) / 3, "the second one loads what the first has compiled"
    lines = done.stdout.splitlines()
    assert any(line.endswith("agent.predict.kernels.step") and " s " in line for line in lines)
    assert lines[-1].startswith(f"kept in {place}/cache/edgetwin-kernels/")
    for path in cached(place, "nbc"):
        assert path.stat().st_size > 0
    program = """
import json
from agent import kernelcache
import agent.predict.kernels as k
print(json.dumps({"hits": sum(k.step.stats.cache_hits.values()), "problems": kernelcache.problems()}))
"""
    assert run(place, program) == {"hits": 1, "problems": []}


def test_warm_says_when_nothing_can_be_kept(place: Path) -> None:
    (place / "cache").write_text("in the way")
    done = warm(place, EDGETWIN_KERNELS="numpy")
    assert done.returncode == 1
    assert done.stderr.startswith("edgetwin: EDGETWIN_KERNELS=numpy") and len(done.stderr.splitlines()) == 1


COLD = """
import json, sys
from agent import kernelcache
before = kernelcache.cold()
print(json.dumps({"cold": before, "numba": "numba" in sys.modules}))
"""


def test_it_is_cold_until_everything_is_compiled_from_the_files_as_they_are(place: Path) -> None:
    assert run(place, COLD) == {"cold": True, "numba": False}
    run(place)  # a kernel of somebody else is no reason to wait for the agent's
    assert run(place, COLD)["cold"] is True
    assert warm(place).returncode == 0
    assert run(place, COLD) == {"cold": False, "numba": False}
    [marker] = (place / "cache").glob("**/WARM")
    for change in (lambda: marker.write_text(marker.read_text() + "0"), marker.unlink):
        change()
        assert run(place, COLD)["cold"] is True


@pytest.mark.parametrize("why", ["numpy", "nowhere"])
def test_it_is_not_cold_where_compiling_would_be_for_nothing(place: Path, why: str) -> None:
    if why == "nowhere":
        (place / "cache").write_text("in the way")
    assert run(place, COLD, EDGETWIN_KERNELS="numpy" if why == "numpy" else None)["cold"] is False


def test_references_stand_in_where_asked(place: Path) -> None:
    program = PROGRAM.replace(
        "import cached", "kernelcache.stand_in('they are made meanwhile')\nimport cached"
    )
    answer = run(place, program)
    assert (answer["backend"], answer["chosen"]) == ("numpy", False)
    assert answer["problems"] == ["they are made meanwhile"]
    late = PROGRAM.replace("kernelcache.seal()", "kernelcache.stand_in('too late')\nkernelcache.seal()")
    answer = run(place, late)
    assert (answer["backend"], answer["chosen"], answer["problems"]) == ("numba", True, [])
