"""Keys of a device's TLS: what each of them lets through, and what comes without it."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from pathlib import Path
from typing import Any

import pytest

from agent.cli.read import _from_devices
from tests.keys.table import configured, effect
from tests.modbus.faultserver import FaultServer
from tests.modbus.test_tls import Authority, serving

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")

KEY = "devices.*.tls"


def said(context: ssl.SSLContext, **keys: Any) -> str:
    """What `read` says of device d with these keys: "" when it was read."""

    async def go() -> str:
        server = await FaultServer(tls=context).start()
        changes = {f"devices.d.tls.{key}": str(value) for key, value in keys.items()}
        changes |= {"devices.d.url": f"tls://127.0.0.1:{server.port}", "devices.d.timeout": "5s"}
        config = configured(changes)
        tag = next(iter(config.devices["d"].tags))
        body = await _from_devices(config, [("d", tag)])
        await server.stop()
        return body["devices"]["d"]["error"] or ""

    return asyncio.run(go())


@effect(f"{KEY}.ca", f"{KEY}.name", f"{KEY}.cert", f"{KEY}.key")
def test_tls(tmp_path: Path) -> None:
    plant = Authority(tmp_path, "plant-ca")
    context = serving(plant.signed("press1.plant"))
    assert said(context, ca=plant.ca, name="press1.plant") == ""
    assert "judged by the system's CAs" in said(context, name="press1.plant")
    assert "mismatch" in said(context, ca=plant.ca)
    context = serving(plant.signed("press2.plant"), wants=plant.ca)
    ours, key = plant.signed("agent")
    assert said(context, ca=plant.ca, name="press2.plant", cert=ours, key=key) == ""
    assert said(context, ca=plant.ca, name="press2.plant") != ""
