"""Where the agent keeps its state and its control socket."""

from __future__ import annotations

import os
from pathlib import Path

from agent.config.types import Config

DEFAULT_STATE = Path("/var/lib/edgetwin")
RUNTIME_FOLDER = Path("/run/edgetwin")
SOCKET = "edgetwin.sock"


def state_dir(config: Config) -> Path:
    """The state folder: the key `state_dir`, or $STATE_DIRECTORY, or /var/lib/edgetwin.

    A relative one is meant from where the command was started. systemd may hand over several folders, separated by
    colons; the first one counts.
    """
    if config.state_dir is not None:
        return config.state_dir
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(given) if given else DEFAULT_STATE


def socket_path(config: Config, state: Path) -> Path:
    """Where the daemon opens its control socket: in $RUNTIME_DIRECTORY, else in the state folder."""
    runtime = _runtime_directory()
    return (runtime if runtime is not None else state) / SOCKET


def socket_candidates(config: Config) -> list[Path]:
    """Where another command looks for the daemon's socket, in this order, each place once."""
    runtime = _runtime_directory()
    folders = [runtime] if runtime is not None else []
    folders += [RUNTIME_FOLDER, state_dir(config)]
    return [folder / SOCKET for folder in dict.fromkeys(folders)]


def _runtime_directory() -> Path | None:
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(given) if given else None
