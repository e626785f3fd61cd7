"""The demo's central side, a process of its own: keeps the books of what arrives, and changes the setpoint.

    python -m agent.demo.central --port N

Takes JSON lines on standard input ({"do": "setpoint", "value": V} or {"do": "end"}), prints JSON lines: what it knows
now ("live"), when it sent a setpoint ("step_sent"), and at the end its books.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import sys
import threading
import time
from typing import Any

from agent.cloud.watch import NoBroker, Received, Subscriber, View

GATEWAY = "demo"
LIVE_EVERY = 0.5
SETTLE = 1.0
"""Seconds without a message after which nothing more is expected at the end."""


class Central:
    """A View, and beside it the counter values that the vessel served as they came in the data."""

    def __init__(self) -> None:
        self.view = View()
        self.served: list[int] = []
        self.forecast: dict[str, Any] = {}
        self._version = 0

    def take(self, message: Received) -> None:
        doubled = self.view.take(message) == "doubled"
        if message.body is None:
            return
        if message.kind in ("data", "backfill") and message.device == "vessel" and not doubled:
            for group in message.body["groups"]:
                self.served += [value for value in group["c"].get("served", ()) if value is not None]
        elif message.kind == "forecast" and message.device == "vessel":
            self.forecast = message.body["tags"].get("temperature", {})

    def desired(self, setpoint: float) -> dict[str, Any]:
        """The next `desired` body, with this setpoint."""
        self._version += 1
        return {
            "ver": self._version,
            "set": {"loop/temperature/setpoint": setpoint},
            "by": "demo",
            "ts": round(time.time() * 1000),
        }

    def live(self) -> dict[str, Any]:
        """What the live line shows, all of it as it came over MQTT."""
        twin = self.view.twins.get((GATEWAY, "vessel"), {})
        reported = twin.get("reported", {})
        loop = twin.get("loops", {}).get("temperature", {})
        live: dict[str, Any] = {
            "temperature": reported.get("temperature", {}).get("v"),
            "heater": reported.get("heater", {}).get("v"),
            "setpoint": loop.get("sp"),
            "mode": loop.get("mode", "-"),
            "health": twin.get("health", {}).get("score"),
            "messages": self.view.books.messages,
            "readings": self.view.books.readings(),
            "lost": self.view.books.lost(),
        }
        if self.forecast.get("y") and self.forecast["y"][-1] is not None:
            live["forecast"] = self.forecast["y"][-1]
            live["halfwidth"] = (self.forecast["hi"][-1] - self.forecast["lo"][-1]) / 2
        return live

    def report(self) -> dict[str, Any]:
        """The books at the end."""
        books = self.view.books
        return {
            "served": self.served,
            "messages": books.messages,
            "readings": books.readings(),
            "lost": books.lost(),
            "doubled": books.doubled(),
            "out_of_order": books.out_of_order(),
        }


def _read_orders(orders: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        with contextlib.suppress(ValueError):
            orders.put(json.loads(line))
    orders.put(None)  # the demo is gone


def run(port: int) -> None:
    """Runs until it is told to end, or the demo is gone."""
    subscriber = Subscriber(f"mqtt://127.0.0.1:{port}", gateway=GATEWAY)
    central, shown, ending, last = Central(), 0.0, False, time.monotonic()
    orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read_orders, args=(orders,), daemon=True).start()
    while True:
        for message in subscriber.messages(timeout=0.05):
            central.take(message)
            last = time.monotonic()
        with contextlib.suppress(queue.Empty):
            order = orders.get_nowait()
            if order is None:
                break
            if order["do"] == "setpoint":
                subscriber.publish(
                    f"edgetwin/v1/{GATEWAY}/desired", central.desired(order["value"]), retain=True
                )
                print(json.dumps({"step_sent": time.monotonic(), "value": order["value"]}), flush=True)
            else:
                ending = True
        now = time.monotonic()
        if ending and now - last > SETTLE:
            print(json.dumps(central.report()), flush=True)
            break
        if now - shown >= LIVE_EVERY:
            shown = now
            print(json.dumps({"live": central.live()}), flush=True)
    subscriber.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    try:
        run(parser.parse_args().port)
    except NoBroker as error:
        sys.exit(f"central: {error}")
    except BrokenPipeError:
        os._exit(0)
