"""The outbox: numbers without holes, batches until they are acknowledged, gaps for what will never come."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agent.cloud.outbox import BLOCK
from tests.cloud.outboxes import NOW, batch, child, make, named, spans, waiting

DAY = 86_400_000


# -- numbers ----------------------------------------------------------------------------------------------------


def test_numbers_go_on_without_a_hole_over_clean_ends(tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}
    stream = None
    for steps in (5, BLOCK + 7, 1, 0, 3):
        box = make(tmp_path, ("a", "b"))
        assert stream in (None, box.stream)
        stream = box.stream
        assert box.last_seq("a") == len(seen["a"])
        for _ in range(steps):
            seen["a"].append(box.next_seq("a"))
        seen["b"].append(box.next_seq("b"))
        assert box.gaps() == []
        box.close()
    assert seen["a"] == list(range(1, len(seen["a"]) + 1)) and seen["b"] == [1, 2, 3, 4, 5]
    assert stream is not None and len(stream) == 8 and int(stream, 16) >= 0


def test_the_rest_of_the_block_is_named_after_an_unclean_end(tmp_path: Path) -> None:
    box = make(tmp_path, ("a", "b"))
    last = [box.next_seq("a") for _ in range(5)][-1]
    again = make(tmp_path, ("a", "b"))
    assert spans(again) == [("a", 1, BLOCK, "restart"), ("b", 1, BLOCK, "restart")]
    assert again.stream == box.stream and again.next_seq("a") == BLOCK + 1 > last


def test_what_still_waits_is_not_named(tmp_path: Path) -> None:
    box = make(tmp_path)
    assert box.spill([batch(box) for _ in range(6)])
    box.ack([("a", 2), ("a", 5)])
    again = make(tmp_path)
    assert waiting(again) == [1, 3, 4, 6]
    assert named(again) == set(range(1, BLOCK + 1)) - {1, 3, 4, 6}


def test_another_machine_gets_another_stream_and_sends_nothing_of_the_first(tmp_path: Path) -> None:
    box = make(tmp_path, machine="one")
    box.spill([batch(box)])
    box.put("desired", {"ver": 3})
    box.close()
    copy = make(tmp_path, machine="two")
    assert copy.stream != box.stream and copy.next_seq("a") == 1
    assert waiting(copy) == [] and copy.gaps() == [] and copy.get("desired") is None
    copy.close()
    assert make(tmp_path, machine="two").stream == copy.stream


# -- batches ----------------------------------------------------------------------------------------------------


def test_batches_come_back_as_they_were_oldest_first(tmp_path: Path) -> None:
    box = make(tmp_path, ("a", "b"))
    first = [batch(box, "a", fill=400), batch(box, "b"), batch(box, "a", synced=False)]
    assert box.spill(first)
    second = [batch(box, "b")]
    assert box.spill(second)
    box.close()
    again = make(tmp_path, ("a", "b"))
    assert [one for _, one in again.oldest(10)] == first + second
    ids = [number for number, _ in again.oldest(10)]
    assert ids == sorted(ids)
    assert [one for _, one in again.oldest(2, ids[0])] == [first[1], first[2]]
    assert [one for _, one in again.oldest(10, without=["b"])] == [first[0], first[2]]
    assert again.waiting == 4 and again.stats()["batches"] == 4


def test_only_an_acknowledgement_takes_a_batch_out(tmp_path: Path) -> None:
    box = make(tmp_path, ("a", "b"))
    box.spill([batch(box), batch(box), batch(box, "b")])
    box.ack([("a", 1), ("a", 99)])
    assert waiting(box) == [2] and waiting(box, "b") == [1] and box.gaps() == []
    box.ack([("a", 2), ("b", 1)])
    assert box.stats() == {"batches": 0, "bytes": 0, "oldest": None, "dropped": 0}


def test_the_same_batch_twice_is_kept_once(tmp_path: Path) -> None:
    box = make(tmp_path)
    one = batch(box)
    assert box.spill([one]) and box.spill([one, batch(box)])
    assert waiting(box) == [1, 2] and box.stats()["batches"] == 2


def test_acknowledged_batches_are_kept_for_a_resend(tmp_path: Path) -> None:
    box = make(tmp_path, keep=60.0)
    box.spill([batch(box, ms=NOW + i) for i in range(4)])
    box.ack([("a", 1), ("a", 2)])
    assert waiting(box) == [3, 4] and box.waiting == 2 and box.stats()["oldest"] == NOW + 2
    assert [one.seq for _, one in box.find("a", 1, 3)] == [1, 2, 3]
    assert [one.seq for _, one in box.find("a", 1, 3, 2)] == [1, 2]
    assert box.span("a", 2, 9) == (2, 4) and box.span("a", 5, 9) is None
    box.close()
    later = make(tmp_path, keep=60.0, now=NOW + 61_000)
    later.ack([("a", 3)])
    assert [one.seq for _, one in later.find("a", 1, 9)] == [3, 4]


def test_what_cannot_be_sent_is_dropped_and_named(tmp_path: Path) -> None:
    box = make(tmp_path)
    box.spill([batch(box) for _ in range(3)])
    box.drop([number for number, _ in box.oldest(2)], "oversize")
    assert waiting(box) == [3] and spans(box) == [("a", 1, 2, "oversize")]
    assert box.stats()["dropped"] == 2 and box.stats()["batches"] == 1


# -- bounds -----------------------------------------------------------------------------------------------------


def test_the_oldest_go_first_when_there_is_too_much(tmp_path: Path) -> None:
    box = make(tmp_path, max_size=200_000)
    for _ in range(40):
        assert box.spill([batch(box, fill=16_000)])
    left = waiting(box)
    assert left == list(range(left[0], 41)) and 10 <= len(left) <= 35
    assert spans(box) == [("a", 1, left[0] - 1, "size")]
    assert box.stats()["dropped"] == left[0] - 1 and box.stats()["batches"] == len(left)


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    box = make(tmp_path, max_age=7 * 86_400.0)
    ages = (8, 7.5, 6, 1)
    assert box.spill([batch(box, ms=NOW - round(age * DAY)) for age in ages])
    assert waiting(box) == [3, 4] and spans(box) == [("a", 1, 2, "age")]


def test_what_was_made_before_the_clock_was_set_has_no_age(tmp_path: Path) -> None:
    box = make(tmp_path)
    box.spill([batch(box, ms=1000, synced=False)])
    assert waiting(box) == [1] and box.gaps() == []


def test_enough_space_is_left_to_others(tmp_path: Path) -> None:
    box = make(tmp_path, min_free=1 << 60)
    assert box.spill([batch(box), batch(box)])
    assert waiting(box) == [] and spans(box) == [("a", 1, 2, "disk")]


# -- gaps and facts ---------------------------------------------------------------------------------------------


def test_gaps_stay_until_they_are_acknowledged(tmp_path: Path) -> None:
    box = make(tmp_path, ("a", "b"))
    for device, seq in (("a", 1), ("b", 1), ("a", 2), ("a", 4)):
        box.lost(device, seq, "memory")
    assert sorted(spans(box)) == [("a", 1, 2, "memory"), ("a", 4, 4, "memory"), ("b", 1, 1, "memory")]
    box.ack_gap(next(gap.id for gap in box.gaps() if gap.device == "b"))
    box.close()
    assert sorted(spans(make(tmp_path))) == [("a", 1, 2, "memory"), ("a", 4, 4, "memory")]


def test_facts_outlive_a_kill(tmp_path: Path) -> None:
    box = make(tmp_path)
    box.put("desired", {"ver": 3, "°": [1.5, None]})
    box.put("desired", {"ver": 4})
    again = make(tmp_path)
    assert again.get("desired") == {"ver": 4} and again.get("nothing") is None


# -- kills ------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from tests.cloud.outboxes import batch, make
box = make(Path(sys.argv[1]), ("a", "b"))
print("open", box.stream, flush=True)
while True:
    made = [batch(box, device, fill=300) for device in ("a", "b", "a")]
    print("given", *(f"{one.device}:{one.seq}" for one in made), flush=True)
    assert box.spill(made)
    print("committed", *(f"{one.device}:{one.seq}" for one in made), flush=True)
    if made[0].seq % 3 == 0:
        box.ack([(one.device, one.seq) for _, one in box.oldest(2)])
"""


def test_ten_kills_lose_nothing_that_was_committed_and_use_no_number_twice(tmp_path: Path) -> None:
    rng = random.Random(7)
    given: dict[str, list[int]] = {"a": [], "b": []}
    committed: dict[str, set[int]] = {"a": set(), "b": set()}
    streams = set()
    for _ in range(10):
        process = child(WRITER, tmp_path)
        assert process.stdout is not None
        for count, line in enumerate(process.stdout):
            what, *rest = line.split()
            if count == 0:
                streams.add(rest[0])
                stop = rng.randrange(1, 400)
            for key in rest if what != "open" else ():
                device, seq = key.split(":")
                (committed[device].add if what == "committed" else given[device].append)(int(seq))
            if count == stop:
                process.kill()
        process.wait()
        process.stdout.close()
    box = make(tmp_path, ("a", "b"))
    assert len(streams | {box.stream}) == 1
    for device in ("a", "b"):
        assert len(given[device]) > 100 and len(given[device]) == len(set(given[device]))
        here, lost = set(waiting(box, device)), named(box, device)
        # acknowledged ones were taken out oldest first, so nothing committed may lack above the oldest that waits
        assert {seq for seq in committed[device] if seq > min(here)} <= here
        assert set(range(min(here), box.last_seq(device) + 1)) <= here | lost
        assert not here & lost
        assert box.next_seq(device) > max(given[device])


# -- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100, 4096])
def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, size: int) -> None:
    (tmp_path / "outbox.db").write_bytes(b"garbage " * size)
    box = make(tmp_path)
    assert (box.repaired is not None) == (size > 0)
    assert len(list(tmp_path.glob("outbox.db.damaged-*"))) == (size > 0)
    assert box.spill([batch(box)]) and waiting(box) == [1]


def test_a_batch_that_cannot_be_unpacked_blocks_nothing(tmp_path: Path) -> None:
    box = make(tmp_path)
    box.spill([batch(box, fill=20_000) for _ in range(3)])
    box.close()
    torn = tmp_path / "outbox.db"
    data = bytearray(torn.read_bytes())
    # the middle of an overflow page of the first batch holds nothing but its bytes
    position = data.index(b"\x78\x9c")
    page = position // 4096 * 4096 + 3 * 4096
    data[page + 2000] ^= 0xFF
    torn.write_bytes(data)
    again = make(tmp_path)
    left = waiting(again)
    assert len(left) == 2 and named(again) == {1, 2, 3} - set(left)
    assert again.stats()["batches"] == 2
