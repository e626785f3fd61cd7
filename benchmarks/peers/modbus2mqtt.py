"""modbus2mqtt 0.73 with pymodbus 3.9.2 (newer ones have no `slave=`), and modbus4mqtt 0.7.1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from peer import TAG, Command, Job, Published, PythonPeer, Write, blocks, number, register


class Modbus2mqtt(PythonPeer):
    """One host a process; units and blocks in a CSV file; a topic for each tag."""

    name = "modbus2mqtt 0.73"
    requirements = ("modbus2mqtt==0.73", "pymodbus==3.9.2")
    program = "modbus2mqtt"
    hosts = False
    most = 120

    def configure(self, folder: Path, job: Job) -> Command:
        lines = ["type,topic,col2,col3,col4,col5,col6"]
        for device in job.devices:
            for block in blocks(device.registers, self.most):
                lines.append(f"poll,{device.name},{device.unit},{block[0]},{len(block)},holding_register,1")
                lines += [f"ref,{TAG.format(one)},{one},rw,uint16,," for one in block]
        (folder / "tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return self.command(
            *("--tcp", "127.0.0.1", "--tcp-port", str(job.device.port), "--config", "tags.csv"),
            *("--set-modbus-timeout", f"{job.timeout:g}", "--always-publish", "--verbosity", "1"),
            *("--mqtt-host", "127.0.0.1", "--mqtt-port", str(job.broker)),
        )

    def values(self, topic: str, body: bytes) -> Iterator[Published]:
        parts = topic.split("/")  # modbus/<device>/state/<tag>
        if len(parts) == 4 and parts[2] == "state" and parts[3].startswith("r"):
            yield Published(parts[1], register(parts[3]), number(body.decode()))

    def write(self, job: Job, case: str) -> Write | None:
        if case == "elsewhere":
            return Write(f"modbus/{job.device.name}/set/{TAG.format(1999)}", b"1")
        return Write(f"modbus/{job.device.name}/set/{TAG.format(job.commands[0])}", case.encode())


class Modbus4mqtt(PythonPeer):
    """One host and one unit a process; blocks of 100 registers at most; a topic for each tag."""

    name = "modbus4mqtt 0.7.1"
    requirements = ("modbus4mqtt==0.7.1",)
    program = "modbus4mqtt"
    hosts = units = False
    most = 100

    def configure(self, folder: Path, job: Job) -> Command:
        device = job.device
        lines = ["ip: 127.0.0.1", f"port: {device.port}", f"device_address: {device.unit}", "update_rate: 1"]
        lines += ["scan_batching: 100", "registers:"]
        for one in device.registers:
            topic = f"{device.name}/{TAG.format(one)}"
            settable = f", set_topic: {topic}/set" if one in job.commands else ""
            lines.append(f"  - {{pub_topic: {topic}, pub_only_on_change: false, address: {one}{settable}}}")
        (folder / "tags.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return self.command("--port", str(job.broker), "--config", "tags.yaml")

    def values(self, topic: str, body: bytes) -> Iterator[Published]:
        parts = topic.split("/")  # modbus4mqtt/<device>/<tag>
        if len(parts) == 3 and parts[2].startswith("r"):
            yield Published(parts[1], register(parts[2]), number(body.decode()))

    def write(self, job: Job, case: str) -> Write | None:
        if case == "elsewhere":
            return Write(f"modbus4mqtt/{job.device.name}/{TAG.format(1999)}/set", b"1")
        return Write(f"modbus4mqtt/{job.device.name}/{TAG.format(job.commands[0])}/set", case.encode())
