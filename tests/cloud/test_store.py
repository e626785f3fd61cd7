"""Which batches a kill can cost: those that are in memory alone."""

from __future__ import annotations

from pathlib import Path

from agent.cloud.store import KEPT_AFTER, Store, Waiting
from tests.cloud.outboxes import batch, make, waiting

SPAN = 20.0
LATE = KEPT_AFTER * SPAN


def store(folder: Path) -> Store:
    outbox = make(folder, batch=SPAN)
    return Store(outbox, outbox._config)


def sent(store: Store) -> Waiting:
    one = store.next_memory()
    assert one is not None
    one.sent = True
    return one


def test_what_the_broker_does_not_acknowledge_goes_to_disk_while_it_is_under_way(tmp_path: Path) -> None:
    memory = store(tmp_path)
    for now in (0.0, 1.0):
        memory.add([batch(memory.outbox)], online=True, since=now)
    sent(memory)
    memory.tick(LATE - 0.1, offline_for=0.0)
    assert waiting(memory.outbox) == []
    memory.tick(LATE, offline_for=0.0)
    assert waiting(memory.outbox) == [1, 2]
    assert memory.next_disk(LATE) is None, "they are sent from memory"
    assert sent(memory).live, "and as live data"
    memory.acked(("a", 1))
    memory.acked(("a", 2))
    memory.flush_acks(LATE)
    assert waiting(memory.outbox) == [] and not memory.memory


def test_nothing_is_written_while_the_broker_acknowledges(tmp_path: Path) -> None:
    memory = store(tmp_path)
    for now in range(100):
        memory.add([batch(memory.outbox)], online=True, since=float(now))
        sent(memory)
        memory.acked(("a", now + 1))
        memory.tick(float(now), offline_for=0.0)
        assert memory.outbox.waiting == 0


def test_what_leaves_memory_while_the_link_is_up_is_still_sent(tmp_path: Path) -> None:
    """Batches behind it were sent from disk already: it lies before where reading the disk goes on."""
    memory = store(tmp_path)
    memory.add([batch(memory.outbox)], online=True, since=0.0)
    memory.tick(LATE, offline_for=0.0)
    assert memory.outbox.spill([batch(memory.outbox)])
    one = memory.next_disk(LATE)
    assert one is not None and one.seq == 2
    memory.spill()
    one = memory.next_disk(LATE)
    assert one is not None and one.seq == 1
    assert memory.next_disk(LATE) is None


def test_a_batch_of_an_outage_that_is_closed_as_the_link_comes_back_is_kept_at_once(tmp_path: Path) -> None:
    """It covers a whole `outbox.batch`: a kill before its acknowledgement would cost it and what came after it."""
    memory = store(tmp_path)
    memory.add([batch(memory.outbox)], online=True, since=100.0 - (SPAN - 1.0))
    memory.tick(100.0, offline_for=0.0)
    assert waiting(memory.outbox) == [1]
    assert sent(memory).live


def test_what_waited_in_memory_leaves_after_what_lies_on_disk(tmp_path: Path) -> None:
    """As after a start during an outage: the process before left batches, and the link comes before the first spill."""
    memory = store(tmp_path)
    assert memory.outbox.spill([batch(memory.outbox), batch(memory.outbox)])
    memory.add([batch(memory.outbox)], online=False, since=0.0)
    memory.line_up()
    memory.add([batch(memory.outbox)], online=True, since=1.0)
    assert sent(memory).batch.seq == 4, "live data does not wait for it"
    assert memory.next_memory() is None
    on_disk = [memory.next_disk(1.0) for _ in range(4)]
    assert [one.seq for one in on_disk if one is not None] == [1, 2, 3]


def test_nothing_is_written_as_the_link_comes_back_where_nothing_lies_on_disk(tmp_path: Path) -> None:
    memory = store(tmp_path)
    memory.add([batch(memory.outbox)], online=False, since=0.0)
    memory.line_up()
    assert memory.outbox.waiting == 0
    memory.tick(LATE, offline_for=0.0)  # kept, and sent from memory all the same
    memory.line_up()
    assert sent(memory).batch.seq == 1


def test_what_was_held_leaves_oldest_first_when_the_broker_takes_it_again(tmp_path: Path) -> None:
    memory = store(tmp_path)
    memory.add([batch(memory.outbox)], online=True, since=0.0)
    sent(memory)
    memory.hold(("a", 1), until=60.0)
    memory.tick(30.0, offline_for=0.0)
    assert waiting(memory.outbox) == [1]
    memory.add([batch(memory.outbox)], online=True, since=59.0)
    memory.tick(60.0, offline_for=0.0)
    assert memory.next_memory() is None
    on_disk = [memory.next_disk(60.0) for _ in range(3)]
    assert [one.seq for one in on_disk if one is not None] == [1, 2]
