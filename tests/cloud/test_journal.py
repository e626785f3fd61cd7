"""The journal that tests have the agent keep of its closed batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cloud.batch import Batch
from agent.cloud.journal import VARIABLE, Journal, entries
from agent.cloud.store import Store
from tests.brokers import Mosquitto
from tests.cloud.harness import Agent, make_config, wait_until


def closed(seq: int) -> Batch:
    return Batch("press1", seq, 0, 10, b"{}", "0badcafe")


def test_runs_follow_each_other_and_a_cut_line_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for seq in (1, 2):
        journal = Journal(path)
        journal.note("0123abcd", [closed(seq), closed(seq + 10)])
        journal.close()
    with path.open("a") as file:
        file.write('["press1", "0123')
    assert [seq for _, _, seq, _ in entries(path)] == [1, 11, 2, 12]
    assert next(entries(path)) == ("press1", "0123abcd", 1, 10)


def test_a_batch_is_noted_before_it_goes_anywhere(
    mosquitto: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    monkeypatch.setenv(VARIABLE, str(path))
    noted: list[bool] = []
    add = Store.add

    def watched(self: Store, batches: list[Batch], *, online: bool, since: float) -> None:
        known = {(device, seq) for device, _, seq, _ in entries(path)}
        noted.append(all((one.device, one.seq) in known for one in batches))
        add(self, batches, online=online, since=since)

    monkeypatch.setattr(Store, "add", watched)
    with Agent(make_config(mosquitto.url), tmp_path / "state") as agent:
        agent.read()
        wait_until(lambda: bool(noted), "a closed batch")
    assert all(noted)


def test_nothing_is_written_without_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert Journal.from_environment() is None
