"""collectd 5.12 with its modbus and mqtt plugins, from Debian's packages, unpacked into a folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from peer import TAG, Command, Installed, Job, Peer, Published, Unavailable, number, register, run, size

PACKAGES = ("collectd-core", "libmodbus5", "libmosquitto1", "libltdl7", "libyajl2")


class Collectd(Peer):
    """Each tag is a request of its own: the plugin knows no blocks. It takes no commands."""

    name = "collectd 5.12"
    most = 1

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def program(self) -> Path:
        return self.root / "usr" / "sbin" / "collectd"

    def ready(self) -> bool:
        return self.program.exists()

    def install(self) -> Installed:
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise Unavailable("no Debian system: apt-get and dpkg are not there")
        shutil.rmtree(self.root, ignore_errors=True)
        for old in self.folder.glob("*.deb"):
            old.unlink()
        begin = time.monotonic()
        run(["apt-get", "--quiet", "download", *PACKAGES], cwd=self.folder)
        for package in self.folder.glob("*.deb"):
            run(["dpkg", "-x", str(package), str(self.root)])
        return Installed(time.monotonic() - begin, 1, size(self.root))

    def configure(self, folder: Path, job: Job) -> Command:
        libraries = sorted((self.root / "usr" / "lib").glob("*-linux-gnu"))
        lines = [
            'Hostname "bench"',
            "FQDNLookup false",
            "Interval 1",
            f'BaseDir "{folder}"',
            f'PIDFile "{folder}/pid"',
            f'PluginDir "{self.root}/usr/lib/collectd"',
            f'TypesDB "{self.root}/usr/share/collectd/types.db"',
            "LoadPlugin logfile",
            '<Plugin logfile>\n LogLevel "err"\n File STDERR\n</Plugin>',
            "LoadPlugin modbus",
            "LoadPlugin mqtt",
            '<Plugin mqtt>\n <Publish "bench">\n  Host "127.0.0.1"',
            f'  Port {job.broker}\n  QoS 1\n  Prefix "collectd"\n  StoreRates false\n </Publish>\n</Plugin>',
            "<Plugin modbus>",
        ]
        addresses = {one for device in job.devices for one in device.registers}
        for one in sorted(addresses):
            lines.append(f' <Data "{TAG.format(one)}">\n  RegisterBase {one}\n  RegisterType Uint16')
            lines.append(f'  RegisterCmd ReadHolding\n  Type gauge\n  Instance "{TAG.format(one)}"\n </Data>')
        for port in dict.fromkeys(device.port for device in job.devices):
            lines.append(f' <Host "h{port}">\n  Address "127.0.0.1"\n  Port "{port}"\n  Interval 1')
            for device in job.devices:
                if device.port == port:
                    lines.append(f'  <Slave {device.unit}>\n   Instance "{device.name}"')
                    lines += [f'   Collect "{TAG.format(one)}"' for one in device.registers]
                    lines.append("  </Slave>")
            lines.append(" </Host>")
        lines.append("</Plugin>")
        (folder / "collectd.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Command(
            (str(self.program), "-f", "-C", str(folder / "collectd.conf")),
            {"LD_LIBRARY_PATH": ":".join(map(str, libraries))},
        )

    def values(self, topic: str, body: bytes) -> Iterator[Published]:
        parts = topic.split("/")  # collectd/<host>/modbus-<instance>/gauge-<tag>
        if len(parts) != 4 or not parts[3].startswith("gauge-"):
            return
        for text in body.decode().rstrip("\0").split(":")[1:]:
            value = None if text == "nan" else number(text)
            yield Published(
                parts[2].removeprefix("modbus-"), register(parts[3].removeprefix("gauge-")), value
            )
