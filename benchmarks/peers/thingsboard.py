"""thingsboard-gateway 3.8.5: address ranges instead of single reads, and its store on disk (sqlite).

It publishes nothing until a ThingsBoard server told it the limits of its session: `reply` stands in for that server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peer import TAG, Command, Device, Job, Published, PythonPeer, Write, number, register

LIMITS = {"maxPayloadSize": 65536, "maxInflightMessages": 100, "rateLimits": {}, "gatewayRateLimits": {}}
REQUEST, RESPONSE = "v1/devices/me/rpc/request/", "v1/devices/me/rpc/response/"
RPC = "v1/gateway/rpc"


class Thingsboard(PythonPeer):
    name = "thingsboard-gateway 3.8.5"
    # the last three it would fetch itself at its first start
    requirements = ("thingsboard-gateway==3.8.5", "pymodbus==3.9.2", "pyserial", "pyserial-asyncio")
    program = "thingsboard-gateway"
    files = 3

    def configure(self, folder: Path, job: Job) -> Command:
        for name in ("config", "logs", "data"):
            (folder / name).mkdir()
        security = {"type": "accessToken", "accessToken": "bench"}
        server = {"host": "127.0.0.1", "port": job.broker, "security": security, "qos": 1}
        server |= {"remoteConfiguration": False, "statistics": {"enable": False}}
        main = {
            "thingsboard": server,
            "storage": {"type": "sqlite", "data_file_path": f"{folder}/data/"},
            "grpc": {"enabled": False},
            "connectors": [{"type": "modbus", "name": "bench", "configuration": "modbus.json"}],
        }
        slaves = {"master": {"slaves": [self._slave(device, job) for device in job.devices]}}
        logs = {"version": 1, "root": {"level": "ERROR", "handlers": []}}
        for name, content in (("tb_gateway.json", main), ("modbus.json", slaves), ("logs.json", logs)):
            (folder / "config" / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
        return Command(self.command().argv, {"TB_GW_CONFIG_DIR": f"{folder}/config/"})

    @staticmethod
    def _slave(device: Device, job: Job) -> dict[str, Any]:
        kind = {"type": "16uint", "objectsCount": 1}
        reads = {"address": f"{device.registers[0]}-{device.registers[-1]}", "functionCode": 3}
        return {
            "host": "127.0.0.1",
            "port": device.port,
            "type": "tcp",
            "method": "socket",
            "unitId": device.unit,
            "deviceName": device.name,
            "timeout": job.timeout,
            "byteOrder": "BIG",
            "wordOrder": "BIG",
            "retries": False,
            "pollPeriod": 1000,
            "connectAttemptTimeMs": 1000,
            "connectAttemptCount": 5,
            "waitAfterFailedAttemptsMs": 5000,
            "timeseries": [{"tag": TAG.format("${address}"), "maxRegistersPerRequest": 125, **kind, **reads}],
            "attributes": [],
            "attributeUpdates": [],
            "rpc": [{"tag": f"set{one}", **kind, "functionCode": 6, "address": one} for one in job.commands],
        }

    def values(self, topic: str, body: bytes) -> Iterator[Published]:
        if topic != "v1/gateway/telemetry":
            return
        for device, entries in json.loads(body).items():
            for entry in entries:
                for tag, value in entry.get("values", entry).items():
                    if tag.startswith("r"):
                        yield Published(device, register(tag), number(value))

    def reply(self, topic: str, body: bytes) -> Write | None:
        if not topic.startswith(REQUEST) or json.loads(body).get("method") != "getSessionLimits":
            return None
        return Write(RESPONSE + topic.removeprefix(REQUEST), json.dumps(LIMITS).encode())

    def write(self, job: Job, case: str) -> Write | None:
        data: dict[str, Any] = {"id": 1 + abs(hash(case)) % 10_000, "method": f"set{job.commands[0]}"}
        data["params"] = case if case in ("abc", "elsewhere") else int(case)
        if case == "elsewhere":
            data["method"] = "set"
            data["params"] = "type=16uint;functionCode=6;objectsCount=1;address=1999;value=1;"
        return Write(RPC, json.dumps({"device": job.device.name, "data": data}).encode())

    def answers(self, topic: str, body: bytes) -> bool:
        return topic.startswith(RPC) and b'"method"' not in body
