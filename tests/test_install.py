"""systemd/install.sh into a tree of its own, from folders of small wheels that stand for the product's."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from systemd.wheelhouse import BESIDE, entries, pinned, runtime

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "systemd" / "install.sh"
STAND_IN = '''
import os, pathlib, sys

def entry():
    """`check` refuses a configuration that names a version above this one's; `warm` leaves a file in the cache."""
    if sys.argv[1] == "warm":
        pathlib.Path(os.environ["CACHE_DIRECTORY"], "kernels-{version}").write_text("")
    elif sys.argv[1] == "check":
        wants = pathlib.Path(sys.argv[2]).read_text()
        if "not {version}" in wants:
            sys.exit("config.yaml:1:1: not for {version}")
    else:
        print("{version}")
'''

pytestmark = pytest.mark.process


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
    """A wheel of these files; its sha256."""
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if name == "edgetwin":
        files[f"{info}/entry_points.txt"] = "[console_scripts]\nedgetwin = standin:entry\n"
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheelhouse(folder: Path, version: str, *, more: str = "") -> Path:
    """What `make wheelhouse` makes, with a small product, one dependency and a unit that names the version."""
    folder.mkdir()
    digest = wheel(folder, "needed", "1.0", {"needed.py": ""})
    (folder / "requirements.txt").write_text(f"needed==1.0 --hash=sha256:{digest}\n")
    wheel(folder, "edgetwin", version, {"standin.py": STAND_IN.replace("{version}", version) + more})
    for name in BESIDE:
        shutil.copy2(ROOT / "systemd" / name, folder / name)
    with (folder / "edgetwin.service").open("a") as unit:
        unit.write(f"# of {version}\n")
    for name in ("config.example.yaml", "README.md"):
        shutil.copy2(ROOT / name, folder / name)
    return folder


@dataclass(frozen=True)
class Tree:
    root: Path

    def run(self, *arguments: str | Path, expect: int = 0) -> str:
        done = subprocess.run(
            [SCRIPT, "--root", self.root, *arguments], capture_output=True, text=True, timeout=100
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    def current(self) -> str:
        """What the command that is current says of itself."""
        command = self.root / "opt/edgetwin/current/bin/edgetwin"
        return subprocess.run([command, "say"], check=True, capture_output=True, text=True).stdout.strip()

    def unit(self) -> str:
        """The version that the unit belongs to."""
        return (self.root / "usr/lib/systemd/system/edgetwin.service").read_text().split()[-1]

    def versions(self) -> set[str]:
        folders = (self.root / "opt/edgetwin").iterdir()
        return {folder.name for folder in folders if not folder.is_symlink()}

    @property
    def config(self) -> Path:
        return self.root / "etc/edgetwin/config.yaml"


def test_a_version_comes_goes_back_and_leaves(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "root")
    one, two, three = (wheelhouse(tmp_path / name, f"{name}.0") for name in ("1", "2", "3"))

    said = tree.run("--wheels", one)
    assert tree.current() == "1.0" and "next: write" in said
    assert tree.unit() == "1.0"
    assert (tree.root / "usr/lib/sysusers.d/edgetwin.conf").is_file()
    assert (tree.root / "usr/lib/udev/rules.d/70-edgetwin.rules").is_file()
    assert (tree.root / "var/cache/edgetwin/kernels-1.0").is_file()
    assert not tree.config.exists()
    assert "there is no version to go back to" in tree.run("--rollback", expect=1)

    made = (tree.root / "opt/edgetwin/1.0/.complete").stat().st_mtime_ns
    assert "1.0 is here already" in tree.run("--wheels", one)
    assert (tree.root / "opt/edgetwin/1.0/.complete").stat().st_mtime_ns == made and tree.current() == "1.0"

    tree.config.write_text("fine\n")
    tree.run("--wheels", two)
    assert tree.current() == "2.0" and tree.versions() == {"1.0", "2.0"}
    tree.run("--rollback")
    assert tree.current() == tree.unit() == "1.0"
    tree.run("--rollback")
    assert tree.current() == tree.unit() == "2.0"

    tree.config.write_text("not 3.0\n")
    said = tree.run("--wheels", three, expect=1)
    assert "config.yaml:1:1: not for 3.0" in said and "2.0 stays current" in said
    assert tree.current() == tree.unit() == "2.0"
    tree.config.write_text("not 1.0\n")
    assert "2.0 stays current" in tree.run("--rollback", expect=1)
    assert tree.current() == "2.0"

    tree.run("--wheels", three)  # it is built already, and taken now; 1.0 goes
    assert tree.current() == "3.0" and tree.versions() == {"2.0", "3.0"}

    (tree.root / "var/lib/edgetwin/outbox.db").write_text("")
    assert tree.run("--uninstall").count("stay") == 1
    assert tree.config.exists() and (tree.root / "var/lib/edgetwin/outbox.db").exists()
    assert not (tree.root / "opt/edgetwin").exists()
    assert not (tree.root / "usr/lib/systemd/system/edgetwin.service").exists()
    tree.run("--uninstall", "--purge")
    assert not tree.config.exists() and not (tree.root / "var/lib/edgetwin").exists()


def test_other_contents_under_the_same_version_leave_the_first_to_go_back_to(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "root")
    tree.run("--wheels", wheelhouse(tmp_path / "a", "1.0"))
    tree.run("--wheels", wheelhouse(tmp_path / "b", "1.0", more="# changed\n"))
    assert len(tree.versions()) == 2
    link = tree.root / "opt/edgetwin/current"
    assert link.readlink().name.startswith("1.0-")
    tree.run("--rollback")
    assert link.readlink().name == "1.0"


def test_a_folder_that_was_carried_here_installs_by_itself_and_is_on_disk_before_it_counts(
    tmp_path: Path,
) -> None:
    folder = wheelhouse(tmp_path / "a", "1.0")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sync").write_text(
        f'#!/bin/sh\n[ ! -e "$2/.complete" ] && echo "$@" > {tmp_path}/synced\n'
    )
    (tmp_path / "bin/sync").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = [folder / "install.sh", "--root", tmp_path / "root"]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    tree = Tree(tmp_path / "root")
    assert tree.current() == "1.0"
    assert (tmp_path / "synced").read_text().strip() == f"-f {tree.root}/opt/edgetwin/1.0"


def test_a_wheel_that_was_changed_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    tree, folder = Tree(tmp_path / "root"), wheelhouse(tmp_path / "a", "1.0")
    wheel(folder, "needed", "1.0", {"needed.py": "# changed"})
    said = tree.run("--wheels", folder, expect=1)
    assert "do not fit this machine's Python, or were changed" in said
    assert tree.versions() == set()


PROGRAMS = {
    "this system is 32-bit (armv7l)": {"getconf": "echo 32", "uname": "echo armv7l"},
    "this machine is riscv64": {"uname": "echo riscv64"},
    "this system's C library is not glibc": {"getconf": '[ "$1" = LONG_BIT ] && echo 64'},
    "Python 3.9.2 is too old": {"python3": '[ "$1" = --version ] && echo Python 3.9.2 || exit 1'},
    "is a 32-bit program": {"python3": 'case "$2" in *calcsize*) exit 1;; esac'},
    "python3-venv is missing: apt-get install python3-venv": {
        "python3": 'case "$2" in *ensurepip*) exit 1;; esac'
    },
}


@pytest.mark.parametrize("words", PROGRAMS)
def test_a_machine_that_cannot_run_it_is_told_so(words: str, tmp_path: Path) -> None:
    for name, line in PROGRAMS[words].items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [SCRIPT, "--root", tmp_path / "root", "--wheels", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "root/opt").exists()


def test_without_root_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("DESTDIR", None)
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "this needs root: sudo" in done.stderr


def test_usage() -> None:
    assert subprocess.run([SCRIPT, "--help"], capture_output=True).returncode == 0
    assert subprocess.run([SCRIPT, "--nonsense"], capture_output=True).returncode == 2
    assert subprocess.run([SCRIPT, "--root", "/nowhere", "--purge"], capture_output=True).returncode == 1


def test_what_a_gateway_gets_is_pinned_and_nothing_else() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    got = entries(pinned(lock, runtime()))
    assert {"numba", "numpy", "pymodbus", "pyserial", "paho-mqtt", "pyyaml", "llvmlite"} <= got.keys()
    assert not {"pytest", "ruff", "mypy", "hypothesis", "iotcore"} & got.keys()
    assert all("--hash=sha256:" in text for text, _ in got.values())
    more = entries(pinned(lock, runtime("demo", "build")))
    assert more.keys() - got.keys() == {"iotcore", "setuptools"}  # what `make demo` and `make try` install
    with pytest.raises(KeyError):
        pinned(lock, {"nonesuch"})


def test_shellcheck_has_nothing_to_say() -> None:
    program = shutil.which("shellcheck")
    if program is not None:
        done = subprocess.run([program, SCRIPT], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
