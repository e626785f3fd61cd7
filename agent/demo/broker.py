"""The demo's MQTT broker: rumqttd from the iotcore wheel, in a process of its own, on loopback only.

It serves MQTT 5 on one port and 3.1.1 on another; messages cross between them. Its own defaults would listen on all
interfaces and drop clients at 20 KiB, so it gets a configuration of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MAX_PAYLOAD = 4 << 20
LISTENER = """
[{version}.1]
name = "{version}"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
    [{version}.1.connections]
    connection_timeout_ms = 60000
    max_payload_size = {payload}
    max_inflight_count = 100
    dynamic_filters = true
"""
ROUTER = """
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
"""


def configuration(port: int, port_311: int) -> str:
    """rumqttd's TOML: MQTT 5 on `port`, MQTT 3.1.1 on `port_311`."""
    return ROUTER + "".join(
        LISTENER.format(version=version, port=number, payload=MAX_PAYLOAD)
        for version, number in (("v5", port), ("v4", port_311))
    )


def start_broker(folder: Path, port: int, port_311: int) -> Any:
    """Starts the broker; it ends with `stop()` or with this process.

    Raises OSError when a port is taken, RuntimeError when it does not come up.
    """
    from iotcore import Broker

    path = folder / "broker.toml"
    path.write_text(configuration(port, port_311), encoding="utf-8")
    broker = Broker(port=port, config_path=str(path))
    broker.start()
    return broker
