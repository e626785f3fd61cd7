"""Values changed in the text of a configuration, and nothing else."""

from __future__ import annotations

import pytest
import yaml

from agent.config.edit import CannotEdit, edited

ENTRIES = {"controller": {"kp": "1.5", "ti": "9s"}, "model": {"k": "2", "delay": "3s"}, "action": "direct"}
PATH = ("loops", "oven")


def changed_lines(before: str, after: str) -> list[str]:
    """Lines of `after` that were not in `before`, and those gone, marked."""
    old, new = before.splitlines(), after.splitlines()
    return [f"-{line}" for line in old if line not in new] + [f"+{line}" for line in new if line not in old]


def test_only_the_values_change() -> None:
    text = """\
# top
loops:
  "oven":   # the big one
    pv: a/b
    controller: {type: pid,  kp: 2.0, ti: '60s', td: 0s}   # by hand
    action: "reverse"

    limits: [0, 100]   # last

  other: {pv: a/c}
"""
    after = edited(text, PATH, ENTRIES)
    assert changed_lines(text, after) == [
        "-    controller: {type: pid,  kp: 2.0, ti: '60s', td: 0s}   # by hand",
        '-    action: "reverse"',
        "+    controller: {type: pid,  kp: 1.5, ti: 9s, td: 0s}   # by hand",
        "+    action: direct",
        "+    model: {k: 2, delay: 3s}",
    ]
    assert after.index("limits") < after.index("model") < after.index("other")


def test_block_style_stays_block_style() -> None:
    text = """\
loops:
    oven:
        controller:
            # gain
            kp: 2   # as found

        pv: a/b
        model:
            k: 1
            delay: 1s
# the end
"""
    after = edited(text, PATH, ENTRIES)
    assert (
        after
        == """\
loops:
    oven:
        controller:
            # gain
            kp: 1.5   # as found
            ti: 9s

        pv: a/b
        model:
            k: 2
            delay: 3s
        action: direct
# the end
"""
    )


@pytest.mark.parametrize(
    "text",
    [
        "loops: {oven: {pv: a/b}, other: {pv: a/c}}",
        "loops: {oven: {pv: a/b, controller: {kp: 1},}}\n",
        "loops:\n  oven: {pv: a/b, # here\n    controller: {kp: 1, # and here\n    } }\n",
        "loops:\n  oven:\n    pv: a/b\n    controller:\n",
        "loops:\n  oven:\n    controller:   # none yet\n    pv: a/b\n",
        "loops:\n  oven:\n    pv: a/b\n    list:\n      - a\n      - b: 1\n\n# end\n",
        "loops:\n  oven:\n    pv: a/b\n    model: {}",
        "loops:\r\n  oven:\r\n    pv: a/b # c\r\n  x: {pv: a/c}\r\n",
    ],
)
def test_every_way_of_writing_comes_out_right(text: str) -> None:
    before, after = yaml.safe_load(text), edited(text, PATH, ENTRIES)
    read = yaml.safe_load(after)
    oven = before["loops"]["oven"]
    wanted = {
        **oven,
        "controller": {**(oven.get("controller") or {}), "kp": 1.5, "ti": "9s"},
        "model": {"k": 2, "delay": "3s"},
        "action": "direct",
    }
    assert read == {"loops": {**before["loops"], "oven": wanted}}
    assert after.count("\r\n") == (after.count("\n") if "\r\n" in text else 0)
    assert after.count("#") == text.count("#")


def test_it_changes_nothing_where_all_is_as_wanted() -> None:
    text = "loops:\n  oven: {controller: {kp: 1.5, ti: 9s}, model: {k: 2, delay: 3s}, action: direct}\n"
    assert edited(text, PATH, ENTRIES) == text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("loops: {}", "loops.oven is not in this file"),
        ("devices: {a: 1}", "loops is not in this file"),
        ("a: &x {pv: a/b}\nloops: {oven: *x}", "shared by an anchor"),
        ("a: &x {kp: 1}\nloops: {oven: {controller: *x}}", "loops.oven.controller is shared"),
        ("loops: {oven: 3}", "loops.oven is no mapping"),
        ("loops: {oven: {}}", "holds nothing yet"),
        ("loops:\n  oven:\n    pv: |\n      text\n", "block of text"),
        ("loops: [", "no YAML"),
    ],
)
def test_unusual_places_are_refused_in_words(text: str, what: str) -> None:
    with pytest.raises(CannotEdit, match=what):
        edited(text, PATH, ENTRIES)
