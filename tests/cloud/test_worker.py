"""The cloud thread against a real broker: what a central system gets, through outages of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers import Mosquitto, TcpProxy, mosquitto, needs_mosquitto  # noqa: F401
from tests.cloud.harness import Agent, Ear, make_config, wait_until

pytestmark = [pytest.mark.process, needs_mosquitto]


def test_a_late_joiner_knows_everything(mosquitto: Mosquitto, tmp_path: Path) -> None:  # noqa: F811
    with Agent(make_config(mosquitto.url), tmp_path) as agent:
        agent.wait_online()
        agent.read()
        agent.show(181.5)
        wait_until(lambda: agent.cloud.status()["outbox"]["batches"] == 0, "the batch to be acknowledged")
        with Ear(mosquitto.url) as ear:
            ear.wait_for("forecast/press1")
            ear.wait_for("state")
            twin = ear.wait_for("twin/press1")
            meta = ear.wait_for("meta/press1")
        assert twin["meta"] == meta["meta"]
        assert twin["stream"] == agent.cloud.stream
        assert twin["reported"]["temperature"]["v"] == 181.5
        assert twin["reported"]["temperature"]["q"] == "good"
        assert meta["tags"]["target"]["write"] == {"range": [0, 300]}
        assert meta["horizon"] == [1, 5]
        assert all(one.retained for one in ear.heard if one.kind in ("state", "meta", "twin", "forecast"))


def test_every_batch_of_an_outage_comes_once(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    with broker, TcpProxy(broker.port) as proxy:
        config = make_config(proxy.url, devices=("press1", "press2"))
        with Agent(config, tmp_path) as agent:
            with Ear(broker.url) as ear:
                agent.wait_online()
                agent.run_for(0.5)
                for device in config.devices:
                    ear.wait(lambda d=device: agent.counts[d] in ear.counts(d), "what was read before")
            heard = ear.heard
            proxy.refuse()
            broker.kill()
            agent.run_for(7.0)
            assert agent.cloud.status()["outbox"]["batches"] > 0
            broker.start()
            with Ear(broker.url) as ear:
                ear.sync()
                proxy.accept()
                agent.run_for(2.0)
                for device in config.devices:
                    ear.wait(lambda d=device: agent.counts[d] in ear.counts(d), "what was read last")
                ear.wait(lambda: agent.cloud.status()["outbox"]["batches"] == 0, "the backlog to end")
                ear.listen()
            heard += ear.heard
    batches = [one for one in heard if one.kind in ("data", "backfill")]
    by_key = {(one.device, one.body["seq"]): one.body["groups"] for one in batches if one.body}
    assert {one.kind for one in batches} == {"data", "backfill"}
    for device in config.devices:
        counts = [
            value
            for (name, _), groups in sorted(by_key.items())
            if name == device
            for group in groups
            for value in group["c"]["count"]
        ]
        assert counts == list(range(1, agent.counts[device] + 1))
        seqs = sorted(seq for name, seq in by_key if name == device)
        assert seqs == list(range(1, len(seqs) + 1))
