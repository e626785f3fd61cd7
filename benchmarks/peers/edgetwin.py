"""Edgetwin from this checkout: forecasts, intervals, health on every tag; `Plain` is the same with `predict: off`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from peer import (
    TAG,
    Command,
    Device,
    Installed,
    Job,
    Published,
    PythonPeer,
    Write,
    number,
    register,
    run,
    size,
)

from agent.cloud.payload import decode
from tests.brokers import free_port

ROOT = Path(__file__).resolve().parents[2]
ID = "bench"


class Edgetwin(PythonPeer):
    name = "Edgetwin"
    program = "edgetwin"
    extra = ""

    def ready(self) -> bool:
        return super().ready() and (self.venv / "editable").exists()

    def install(self) -> Installed:
        """As a user installs it, measured; then editable, so that it is this checkout as it is now that runs, and warm.

        How it starts when nothing is compiled is measured by `one_command`.
        """
        shutil.rmtree(self.venv, ignore_errors=True)
        begin = time.monotonic()
        run([sys.executable, "-m", "venv", str(self.venv)])
        empty = size(self.venv)
        run([self.python, "-m", "pip", "install", "--quiet", str(ROOT)])
        installed = Installed(time.monotonic() - begin, 2, size(self.venv) - empty)
        run([self.python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", str(ROOT)])
        (self.venv / "editable").touch()
        shutil.rmtree(self._cache, ignore_errors=True)
        subprocess.run(
            self.command("warm").argv, env=os.environ | self._places, check=True, stdout=subprocess.DEVNULL
        )
        return installed

    def configure(self, folder: Path, job: Job) -> Command:
        durable = "{durable: true, min_free: 0MiB}" if job.durable else "{min_free: 0MiB}"
        lines = [
            f"gateway: {ID}",
            f"state_dir: {folder}/state",
            f"mqtt: {{url: 'mqtt://127.0.0.1:{job.broker}', outbox: {durable}}}",
            f"page: {{listen: '127.0.0.1:{free_port()}'}}",
            *(["commands: {enabled: true}"] if job.commands else []),
            *([self.extra] if self.extra else []),
            "devices:",
        ]
        for device in job.devices:
            lines += self._device(device, job)
        path = folder / "config.yaml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Command(self.command("run", str(path)).argv, self._places)

    def one_command(self, folder: Path, job: Job) -> tuple[Command, Path]:
        """`make try` in a new clone of this repository (without what is not committed); no kernel is compiled yet."""
        clone = folder / "clone"
        run(["git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(clone)])
        device = job.device
        last = device.registers[-1]
        words = f"tcp://127.0.0.1:{device.port} --unit {device.unit} --device {device.name}"
        words += f" --tag 'r: holding {device.registers[0]}-{last}' --mqtt mqtt://127.0.0.1:{job.broker}"
        words += f" --gateway {ID} --page off"  # other agents of this machine may have the name and the port
        argv = ("make", "-C", str(clone), "try", f"PYTHON={sys.executable}", f"ARGS={words}")
        places = {"CACHE_DIRECTORY": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "home")}
        return Command(argv, places), clone / ".venv" / ".made-to-run"

    @property
    def _places(self) -> dict[str, str]:
        self._cache.mkdir(exist_ok=True)
        return {"CACHE_DIRECTORY": str(self._cache)}

    @property
    def _cache(self) -> Path:
        """Of its compiled kernels."""
        return self.venv.parent / "cache"

    @staticmethod
    def _device(device: Device, job: Job) -> list[str]:
        lines = [f"  {device.name}:", f"    url: tcp://127.0.0.1:{device.port}", f"    unit: {device.unit}"]
        lines += [f"    timeout: {job.timeout * 1000:g}ms", "    tags:"]
        for address in device.registers:
            writable = ", write: {range: [0, 1000]}" if address in job.commands else ""
            lines.append(f"      {TAG.format(address)}: {{holding: {address}{writable}}}")
        return lines

    def values(self, topic: str, body: bytes) -> Iterator[Published]:
        parts = topic.split("/")
        if len(parts) < 5 or parts[3] not in ("data", "backfill"):
            return
        for group in decode(body)["groups"]:
            for tag, column in group["c"].items():
                for one in column:
                    yield Published(parts[4], register(tag), number(one))

    def write(self, job: Job, case: str) -> Write | None:
        now = int(time.time() * 1000)
        address = 1999 if case == "elsewhere" else job.commands[0]
        value: object = case if case == "abc" else 1 if case == "elsewhere" else int(case)
        body = {"id": f"w{case.replace('-', 'm')}", "ts": now, "exp": now + 20_000, "by": "bench"}
        body |= {"tag": f"{job.device.name}/{TAG.format(address)}", "value": value}
        return Write(f"edgetwin/v1/{ID}/cmd/write", json.dumps(body).encode())

    def answers(self, topic: str, body: bytes) -> bool:
        return "/resp/" in topic


class Plain(Edgetwin):
    name = "Edgetwin, predict: off"
    shares = "edgetwin"
    extra = "predict: off"
