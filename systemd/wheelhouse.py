"""Puts everything that a gateway installs into one folder, to be carried there: make wheelhouse.

    python systemd/wheelhouse.py FOLDER [--machine aarch64] [--python 3.13]

The folder gets install.sh, the unit's files, the product's wheel, and a wheel of each dependency as requirements.lock
pins it, for the given machine and Python (this one's unless told). It needs pip and a package index; installing from
the folder needs neither.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
BESIDE = ("install.sh", "edgetwin.service", "edgetwin.sysusers.conf", "70-edgetwin.rules")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "agent")
GLIBC = (
    "manylinux2014",
    "manylinux_2_17",
    "manylinux_2_24",
    "manylinux_2_26",
    "manylinux_2_27",
    "manylinux_2_28",
)
"""Wheels for these run on any glibc that the product runs on."""


def entries(lock: str) -> dict[str, tuple[str, set[str]]]:
    """name -> (its lines in a lock file of pip-compile, the names that want it)."""
    found: dict[str, tuple[str, set[str]]] = {}
    for entry in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE):
        name = re.match(r"[a-z0-9._-]+", entry)
        if name is not None:
            wanted_by = re.findall(r"^    # {1,3}(?:via )?([a-z0-9][a-z0-9._-]*)", entry, flags=re.MULTILINE)
            found[name[0]] = (entry, set(wanted_by))
    return found


def pinned(lock: str, wanted: set[str]) -> str:
    """The part of a lock file that holds the packages `wanted` and what they need. Raises KeyError for one it lacks."""
    known = entries(lock)
    while more := {name for name, (_, users) in known.items() if users & wanted} - wanted:
        wanted |= more
    return "".join(known[name][0] for name in sorted(wanted))


def runtime(*extras: str) -> set[str]:
    """The product's own dependencies, and those of these extras, as pyproject.toml names them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = list(project["dependencies"])
    for extra in extras:
        needed += project["optional-dependencies"][extra]
    return {re.split(r"[^A-Za-z0-9._-]", one)[0].lower() for one in needed}


def pip(*arguments: str | Path, **environment: str) -> None:
    """Runs pip. Raises subprocess.CalledProcessError."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, env=os.environ | environment)


def build_product(folder: Path, lock: str) -> None:
    """The product's wheel, from a copy of the sources: the same bytes from the same sources."""
    with tempfile.TemporaryDirectory() as name:
        work, tools = Path(name) / "source", Path(name) / "tools"
        work.mkdir()
        for source in SOURCES:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, work / source, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(ROOT / source, work / source)
        needed = Path(name) / "build.txt"
        needed.write_text(pinned(lock, {"setuptools"}), encoding="utf-8")
        pip("install", "--target", tools, "--require-hashes", "--only-binary=:all:", "-r", needed)
        pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, work, PYTHONPATH=str(tools))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--machine", choices=("x86_64", "aarch64"), default=platform.machine())
    parser.add_argument("--python", default="{}.{}".format(*sys.version_info), metavar="3.13")
    options = parser.parse_args()
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    requirements = folder / "requirements.txt"
    requirements.write_text(pinned(lock, runtime()), encoding="utf-8")
    digits = options.python.replace(".", "")
    tags = [f"--platform={one}_{options.machine}" for one in GLIBC]
    tags += ["--implementation=cp", f"--python-version={options.python}"]
    tags += [f"--abi={abi}" for abi in (f"cp{digits}", "abi3", "none")]
    pip(
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        *tags,
        "-d",
        folder,
        "-r",
        requirements,
    )
    build_product(folder, lock)
    for name in BESIDE:
        shutil.copy2(ROOT / "systemd" / name, folder / name)
    for name in ("config.example.yaml", "README.md"):
        shutil.copy2(ROOT / name, folder / name)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"wheelhouse: {' '.join(error.cmd[2:4])} failed")
