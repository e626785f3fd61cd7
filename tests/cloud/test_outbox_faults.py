"""The outbox when the disk is full, the file torn, or the database older than it should be."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cloud import numbers
from agent.cloud.outbox import BLOCK
from tests.cloud.outboxes import batch, child, make, named, numbered, spans, waiting

# -- torn files -------------------------------------------------------------------------------------------------

COUNT = 60


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder after a clean end, with batches of one to some pages."""
    folder = tmp_path_factory.mktemp("ended")
    box = make(folder)
    for seq in range(1, COUNT + 1):
        box.spill([batch(box, fill=(seq * 977) % 9000)])
    box.put("desired", {"ver": 3})
    box.close()
    return folder


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(3):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def wipe(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data)) // 4096 * 4096
    data[start : start + 4096] = bytes(4096)


@pytest.mark.parametrize("harm", [cut, flip, wipe])
@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_torn_it_opens_and_what_is_whole_is_sent_and_the_rest_named(
    ended: Path, tmp_path: Path, harm: Callable[[bytearray, random.Random], None], seed: int
) -> None:
    shutil.copytree(ended, tmp_path, dirs_exist_ok=True)
    data = bytearray((tmp_path / "outbox.db").read_bytes())
    harm(data, random.Random(seed))
    (tmp_path / "outbox.db").write_bytes(data)
    stream = numbers.load(ended)[0].stream  # type: ignore[index]
    box = make(tmp_path)
    assert box.stream == stream
    sent = [one for _, one in box.oldest(1000)]
    for one in sent:
        assert one == numbered(stream, "a", one.seq, fill=(one.seq * 977) % 9000)
    here = {one.seq for one in sent}
    assert set(range(1, COUNT + 1)) == here | named(box)
    assert not here & named(box)
    assert [one.seq for one in sent] == sorted(here)
    assert box.next_seq("a") == COUNT + 1
    assert box.spill([batch(box)])


def test_a_damaged_page_costs_its_batches_alone(ended: Path, tmp_path: Path) -> None:
    shutil.copytree(ended, tmp_path, dirs_exist_ok=True)
    data = bytearray((tmp_path / "outbox.db").read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = b"\xa5" * 4096
    (tmp_path / "outbox.db").write_bytes(data)
    box = make(tmp_path)
    assert len(waiting(box)) >= COUNT - 15 and box.get("desired") == {"ver": 3}
    assert {gap.reason for gap in box.gaps()} <= {"damaged"}


def test_of_a_file_that_was_cut_what_is_left_is_sent(ended: Path, tmp_path: Path) -> None:
    shutil.copytree(ended, tmp_path, dirs_exist_ok=True)
    data = (tmp_path / "outbox.db").read_bytes()
    (tmp_path / "outbox.db").write_bytes(data[: len(data) // 2])
    box = make(tmp_path)
    assert COUNT // 4 <= len(waiting(box)) <= 3 * COUNT // 4 and box.get("desired") == {"ver": 3}


def test_only_the_newest_damaged_file_is_kept(tmp_path: Path) -> None:
    for _ in range(3):
        make(tmp_path).close()
        (tmp_path / "outbox.db").write_bytes(b"garbage" * 1000)
        box = make(tmp_path)
        assert box.repaired is not None
        box.close()
    assert len(list(tmp_path.glob("outbox.db.damaged-*"))) == 1


# -- a database that went back ----------------------------------------------------------------------------------


def test_a_database_that_went_back_brings_no_number_twice(tmp_path: Path) -> None:
    box = make(tmp_path / "run")
    box.spill([batch(box) for _ in range(3)])
    box.close()
    shutil.copytree(tmp_path / "run", tmp_path / "old")
    box = make(tmp_path / "run")
    for _ in range(3 * BLOCK):
        last = box.next_seq("a")
    box.spill([numbered(box.stream, "a", last)])
    box.close()
    shutil.copy(tmp_path / "old/outbox.db", tmp_path / "run/outbox.db")
    again = make(tmp_path / "run")
    assert waiting(again) == [1, 2, 3]
    assert named(again) == set(range(4, last + 1))
    assert again.next_seq("a") == last + 1


def test_a_database_that_is_gone_brings_no_number_twice(tmp_path: Path) -> None:
    box = make(tmp_path)
    box.spill([batch(box) for _ in range(3)])
    box.close()
    (tmp_path / "outbox.db").unlink()
    again = make(tmp_path)
    assert again.stream == box.stream and again.next_seq("a") == 4 and named(again) == {1, 2, 3}


def test_lost_numbers_come_from_the_database(tmp_path: Path) -> None:
    box = make(tmp_path)
    box.spill([batch(box) for _ in range(3)])
    box.close()
    (tmp_path / numbers.FILE).unlink()
    again = make(tmp_path)
    assert again.stream == box.stream and waiting(again) == [1, 2, 3]
    assert again.next_seq("a") == BLOCK + 1


@pytest.mark.parametrize("slot", [0, 1])
def test_half_a_numbers_file_brings_no_number_twice(tmp_path: Path, slot: int) -> None:
    box = make(tmp_path)
    for _ in range(2 * BLOCK + 5):
        last = box.next_seq("a")
    box.close()
    file = tmp_path / numbers.FILE
    data = bytearray(file.read_bytes())
    data[slot * len(data) // 2 + 30] ^= 1
    file.write_bytes(data)
    again = make(tmp_path)
    assert again.stream == box.stream and again.next_seq("a") > last
    assert set(range(1, again.last_seq("a"))) <= named(again)


def test_numbers_that_are_torn_while_written_say_what_they_said(tmp_path: Path) -> None:
    old = numbers.Numbers("12345678", "m", {"a": BLOCK})
    numbers.save(tmp_path, old)
    before = (tmp_path / numbers.FILE).read_bytes()
    new = numbers.Numbers("12345678", "m", {"a": 2 * BLOCK}, clean={"a": 1500})
    numbers.save(tmp_path, new)
    after = (tmp_path / numbers.FILE).read_bytes()
    assert numbers.load(tmp_path) == (new, True) and len(after) == len(before)
    changed = [i for i in range(len(after)) if after[i] != before[i]]
    for end in range(changed[0], changed[-1] + 1, 7):
        (tmp_path / numbers.FILE).write_bytes(after[:end] + before[end:])
        found = numbers.load(tmp_path)
        assert found is not None and found[0] == old
    for devices in (1, 400, 3):
        many = numbers.Numbers("12345678", "m", {f"device{i}": BLOCK for i in range(devices)})
        numbers.save(tmp_path, many)
        assert numbers.load(tmp_path) == (many, True)


def test_a_torn_log_loses_its_last_commits_at_most(tmp_path: Path) -> None:
    box = make(tmp_path / "run")
    for _ in range(30):
        box.spill([batch(box, fill=2000)])
    log = (tmp_path / "run/outbox.db-wal").stat().st_size
    for cut in (100, 3000, 20_000):
        copy = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "run", copy)
        with (copy / "outbox.db-wal").open("r+b") as file:
            file.truncate(log - cut)
        again = make(copy)
        here = waiting(again)
        assert here == list(range(1, len(here) + 1)) and 24 <= len(here) < 30
        assert set(range(1, again.last_seq("a") + 1)) == set(here) | named(again)


def test_crashes_in_a_row_pile_up_no_gaps(tmp_path: Path) -> None:
    first = make(tmp_path)
    stream = first.stream
    first.next_seq("a")
    for _ in range(5):
        box = make(tmp_path)
    assert spans(box) == [("a", 1, BLOCK, "restart")] and box.stream == stream


# -- a disk that takes nothing ----------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
from pathlib import Path
from tests.cloud.outboxes import batch, make, named, spans, waiting
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])

def room(bytes_):
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, resource.RLIM_INFINITY))
"""

WHILE_RUNNING = (
    FULL
    + """
box = make(folder)
assert box.spill([batch(box, fill=2000) for _ in range(5)])
room(8192)
kept = [batch(box, fill=9000) for _ in range(2)]
assert not box.spill(kept) and box.trouble
box.ack([("a", 1)])
box.lost("a", 7, "memory")
box.put("x", 1)
box.drop([], "x")
assert ("a", 7, 7, "memory") in spans(box), spans(box)
assert [box.next_seq("a") for _ in range(1500)][-1] == 1507
if sys.argv[2] == "kill":
    import os
    print(box.stream, flush=True)
    os._exit(9)
room(resource.RLIM_INFINITY)
assert box.spill(kept[:1]) and box.trouble is None
box.ack([("a", 2)])
assert waiting(box) == [3, 4, 5, 6], waiting(box)
assert spans(box) == [("a", 7, 7, "memory")]
box.close()
print(box.stream)
"""
)


@pytest.mark.parametrize("end", ["room", "kill"])
def test_a_full_disk_raises_nothing_and_loses_nothing_unnamed(tmp_path: Path, end: str) -> None:
    process = child(WHILE_RUNNING, tmp_path, end)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == (0 if end == "room" else 9), said
    box = make(tmp_path)
    assert box.stream == said.strip()
    if end == "room":
        assert waiting(box) == [3, 4, 5, 6] and spans(box) == [("a", 7, 7, "memory")]
        assert box.next_seq("a") == 1508
    else:
        here = waiting(box)
        assert here == [1, 2, 3, 4, 5]  # the acknowledgement of 1 went with the process: it is sent again
        assert set(range(6, 1508)) <= named(box) and box.next_seq("a") > 1507


AT_THE_START = (
    FULL
    + """
room(0)
box = make(folder)
assert box.trouble and len(box.stream) == 8
assert not box.spill([batch(box)]) and box.next_seq("a") == 2
box.lost("a", 1, "memory")
box.put("x", 1)
assert box.get("x") == 1 and spans(box) == [("a", 1, 1, "memory")] and waiting(box) == []
box.close()
print(box.stream)
"""
)


def test_a_folder_that_cannot_be_used_stops_no_start_and_its_outbox_is_left_alone(tmp_path: Path) -> None:
    before = make(tmp_path)
    before.spill([batch(before) for _ in range(3)])
    before.close()
    process = child(AT_THE_START, tmp_path)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and said.strip() != before.stream
    after = make(tmp_path)
    assert after.stream == before.stream and waiting(after) == [1, 2, 3] and after.repaired is None


FULL_AT_THE_START = (
    FULL
    + """
room(8192)  # the numbers, written in place, find room; the database does not
box = make(folder)
assert box.trouble, "it can be written"
first = box.next_seq("a")
mine = [batch(box) for _ in range(1500)]  # more than a block
assert not box.spill(mine[-3:])
if sys.argv[2] == "room":
    room(resource.RLIM_INFINITY)
    box.try_again()
    assert box.trouble is None and box.repaired is None
    assert waiting(box) == [1, 2, 3], waiting(box)
    assert set(range(4, first)) <= named(box) and first not in named(box)
    assert box.spill(mine[-3:])
    box.close()
print(box.stream, first, mine[-1].seq, flush=True)
import os
os._exit(0)
"""
)


@pytest.mark.parametrize("end", ["room", "kill"])
def test_a_start_with_a_full_disk_goes_on_with_the_numbers(tmp_path: Path, end: str) -> None:
    before = make(tmp_path)
    before.spill([batch(before, fill=9000) for _ in range(3)])
    before.close()
    process = child(FULL_AT_THE_START, tmp_path, end)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    stream, _, last = said.split()
    assert stream == before.stream
    after = make(tmp_path)
    assert after.stream == stream and after.next_seq("a") > int(last)
    if end == "room":
        assert waiting(after) == [1, 2, 3, *range(int(last) - 2, int(last) + 1)]
    else:
        assert waiting(after) == [1, 2, 3] and set(range(4, int(last) + 1)) <= named(after)


def test_an_end_with_gaps_that_no_disk_took_is_no_clean_one(tmp_path: Path) -> None:
    code = FULL + (
        "box = make(folder)\nassert box.spill([batch(box, fill=2000)])\nroom(8192)\n"
        "box.next_seq('a')\nbox.lost('a', 2, 'memory')\nbox.close()\n"
    )
    assert child(code, tmp_path).wait(60) == 0
    again = make(tmp_path)
    assert waiting(again) == [1] and set(range(2, BLOCK + 1)) == named(again)


# -- what others hold on to -------------------------------------------------------------------------------------


def test_acknowledging_a_gap_leaves_the_longer_one_that_took_its_place(tmp_path: Path) -> None:
    box = make(tmp_path)
    box.lost("a", 1, "memory")
    [told] = box.gaps()
    box.lost("a", 2, "memory")
    box.ack_gap(told.id)
    assert spans(box) == [("a", 1, 2, "memory")]


def test_ids_are_not_used_again(tmp_path: Path) -> None:
    box = make(tmp_path)
    box.spill([batch(box)])
    [(first, _)] = box.oldest(1)
    box.ack([("a", 1)])
    box.spill([batch(box)])
    assert [one.seq for _, one in box.oldest(1, first)] == [2]


# -- bytes ------------------------------------------------------------------------------------------------------


def test_the_file_shrinks_when_all_is_sent(tmp_path: Path) -> None:
    box = make(tmp_path)
    for _ in range(200):
        box.spill([batch(box, fill=80_000)])
    box.ack([("a", seq) for seq in range(1, 201)])
    box.close()
    assert (tmp_path / "outbox.db").stat().st_size < 1 << 20


WEAR = """
import os, random, re, sys
from pathlib import Path
from agent.cloud import payload
from agent.cloud.batch import Batch
from agent.cloud.payload import Stamp
from agent.twin.records import Row
from tests.cloud.outboxes import NOW, make

def written():
    return int(re.search(r"^wchar: (\\d+)", Path("/proc/self/io").read_text(), re.M)[1])

# a fifth each: two decimals, a slow drift, bits, counters, noisy numbers; 1,000 tags at 1 s, batches of 20 s
rng = random.Random(1)
tags = tuple(f"tag{i}" for i in range(1000))
walk, counter = [20.0] * 1000, [0] * 1000
def value(i):
    kind = i % 5
    walk[i] += rng.gauss(0, 0.05)
    counter[i] += rng.random() < 0.3
    if kind == 0: return round(walk[i], 2)
    if kind == 1: return round(20 + (walk[i] - 20) / 50, 1)
    if kind == 2: return rng.random() < 0.999
    if kind == 3: return counter[i]
    return round(walk[i] + rng.gauss(0, 0.1), 2)
box = make(Path(sys.argv[1]))
stamp = Stamp("0badcafe", lambda t: NOW + round(1000 * t))
before, readings = written(), 0
for k in range(15):
    rows = [Row("a", tags, 20.0 * k + s, [value(i) for i in range(1000)], None) for s in range(20)]
    seq = box.next_seq("a")
    body = payload.encode(payload.data_body(stamp, rows, t=0.0, stream=box.stream, seq=seq, meta="abcdef01"))
    assert box.spill([Batch("a", seq, NOW, 20_000, body, "0badcafe")])
    readings += 20_000
print(box.stats()["bytes"] / readings, (written() - before) / readings)
box.close()
print(sum(file.stat().st_size for file in Path(sys.argv[1]).iterdir()) / readings)
"""


def test_what_an_outage_costs_the_disk(tmp_path: Path) -> None:
    process = child(WEAR, tmp_path)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    blobs, written, at_rest = map(float, said.split())
    print(f"bytes a reading: {blobs:.2f} packed, {at_rest:.2f} at rest, {written:.2f} written")
    assert at_rest <= 3 and written <= 6 and blobs <= at_rest
