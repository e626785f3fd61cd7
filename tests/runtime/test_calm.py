"""A flapping device fills no log, and hides nothing either."""

from __future__ import annotations

from agent.runtime.calm import MOST, WINDOW, Calm

FLAPS = ("press1", "device_silent", None)
DAY = 86_400.0


def lived(calm: Calm, *, every: float, until: float, start: float = 0.0) -> list[str]:
    """What is told of a line that comes `every` so many seconds, looked at once a second."""
    told, now, wanted = [], start, start
    while now < until:
        if now >= wanted:
            text = f"line at {now:g}"
            told += [text] if calm.admits(FLAPS, text, now) else []
            wanted += every
        told += calm.due(now)
        now += 1.0
    return told


def test_what_comes_seldom_is_all_told() -> None:
    assert len(lived(Calm(), every=300.0, until=DAY)) == DAY / 300.0


def test_what_does_not_stop_is_told_at_first_and_then_counted() -> None:
    told = lived(Calm(), every=1.0, until=DAY)
    assert told[:MOST] == [f"line at {second}" for second in range(MOST)]
    assert MOST + DAY / WINDOW - 2 <= len(told) <= MOST + DAY / WINDOW
    assert told[MOST] == "591 more lines of this kind were left out in 10 minutes, the last: line at 600"
    assert all("left out" in line for line in told[MOST:])


def test_what_has_stopped_says_how_it_ended_and_begins_anew() -> None:
    calm = Calm()
    lived(calm, every=1.0, until=100.0)
    [line] = calm.due(WINDOW)
    assert line.endswith("the last: line at 99")
    assert calm.due(2 * WINDOW) == [] and calm.due(3 * WINDOW) == []
    assert calm.admits(FLAPS, "again", 4 * WINDOW)


def test_another_kind_is_told_beside_it() -> None:
    calm = Calm()
    lived(calm, every=1.0, until=100.0)
    assert not calm.admits(FLAPS, "more", 100.0)
    assert calm.admits(("press1", "other", None), "x", 100.0)
    assert calm.admits(("press1", "device_silent", "temperature"), "x", 100.0)
    assert calm.admits(("pump", "device_silent", None), "x", 100.0)
