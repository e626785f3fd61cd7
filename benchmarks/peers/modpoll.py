"""modpoll 1.6.0, and modpoll2mqtt 2.4.1, its maintained fork: one host a process, units and blocks in a CSV file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from peer import TAG, Command, Job, Published, PythonPeer, Write, blocks, number, register


class Modpoll(PythonPeer):
    """By MQTT 5: with its default, 3.1.1, it ends with a TypeError of the paho-mqtt that it pulls in."""

    name = "modpoll 1.6.0"
    requirements = ("modpoll==1.6.0",)
    program = "modpoll"
    hosts = False
    most = 120

    def configure(self, folder: Path, job: Job) -> Command:
        lines = []
        for device in job.devices:
            lines.append(f"device,{device.name},{device.unit}")
            for block in blocks(device.registers, self.most):
                lines.append(f"poll,holding_register,{block[0]},{len(block)},BE_BE")
                lines += [f"ref,{TAG.format(one)},{one},uint16,rw" for one in block]
        (folder / "tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return self.command(
            *("--tcp", "127.0.0.1", "--tcp-port", str(job.device.port), "--timeout", f"{job.timeout:g}"),
            *("--rate", "1", "--interval", "0", "--config", "tags.csv", "--loglevel", "WARNING"),
            *("--mqtt-host", "127.0.0.1", "--mqtt-port", str(job.broker), "--mqtt-qos", "1"),
            *("--mqtt-version", "5.0", "--mqtt-clientid", "bench-modpoll", *self.more),
        )

    more: tuple[str, ...] = ("--daemon",)

    def values(self, topic: str, body: bytes) -> Iterator[Published]:
        parts = topic.split("/")
        if parts[0] != "modpoll" or parts[-1] != "data":
            return
        for tag, value in json.loads(body).items():
            if tag.startswith("r"):
                yield Published(parts[1], register(tag), number(value))

    def write(self, job: Job, case: str) -> Write | None:
        address, value = _asked(job, case)
        body = {"object_type": "holding_register", "address": address, "value": value}
        return Write(f"modpoll/{job.device.name}/set", json.dumps(body).encode())


class Modpoll2mqtt(Modpoll):
    name = "modpoll2mqtt 2.4.1"
    requirements = ("modpoll2mqtt==2.4.1",)
    more = ("--no-output",)

    def answers(self, topic: str, body: bytes) -> bool:
        return topic.endswith("/commands/response")

    def write(self, job: Job, case: str) -> Write | None:
        address, value = _asked(job, case)
        body = {
            "version": 1,
            "request_id": f"w{case}",
            "operation": "set",
            "values": {TAG.format(address): value},
        }
        return Write(f"modpoll/{job.device.name}/commands", json.dumps(body).encode())


def _asked(job: Job, case: str) -> tuple[int, int | str]:
    if case == "elsewhere":
        return 1999, 1
    return job.commands[0], case if case == "abc" else int(case)
