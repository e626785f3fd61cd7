"""Health scores: how unlike its commissioning a tag and a device behave. 1: as always; 0: nothing like it.

Two parts per tag, since an adaptive model learns a slow fault away: the fast one is the innovation against its own
spread, the slow one the level against a reference frozen when commissioning ends (or, `reference: slow`, one that
follows the seasons, and within some thousand samples a fault that stays). z = log(.05 + the larger of both,
each over its median while learning); score = 1 - 1 / (1 + exp(-(a z + b))). Without labels a and b are set by two
quantiles of the commissioning data (anomaly .01 at the median, .5 at the 99.5 % quantile): that is an alert, not a
probability. A device's anomaly is its worst tag's, less log(tags), which is what the largest of so many quiet tags
reaches by chance. Pure: values and times are handed in.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config.types import Config, HealthConfig
from agent.kernelcache import choose
from agent.predict import columns as c
from agent.predict.predictor import Predictor
from agent.predict.rules import Rules
from agent.predict.saved import StateDamaged, seal, unseal
from agent.predict.watching import kernels, reference
from agent.twin.records import Event, HealthView, Key

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KIND, VERSION = "commissioning", 1
WINDOW, WINDOW_LEAST = 1000, 100
"""Samples of a tag kept while learning; a longer commissioning keeps every second, third, ... of them."""
WINDOWS_TOGETHER = 1_000_000
"""Samples of all tags together (24 bytes each): with more than 1,000 tags, each keeps fewer."""
REACH_LEAST = 1.5
"""Least distance of z from median to 99.5 % quantile: the log of the 4.2 that a Gaussian signal has. A short window of
an inert signal shows less by chance, and would then call every excursion a fault."""
FREEZES = 10
"""References frozen in one call (some 60 us each); the rest wait for their next sample, so that no scan is late."""
HYSTERESIS = 0.1
CAUSES = 5
LOG_99 = math.log(99.0)


@dataclass
class _Device:
    """One device's score and its alarm."""

    name: str
    config: HealthConfig
    slots: Ints
    tags: tuple[str, ...]
    score: float | None = None
    causes: tuple[str, ...] = ()
    since: float | None = None  # when it began to be under the alarm limit, or over it again while raised
    raised: bool = False


class Health:
    """Scores of the devices that `config.health` names; where it names none, of all that have predicted tags.

    keys, predictor: the predicted tags and their models, in the same order. What was learnt lies in the predictor's
    state, so it is saved and restored with the models; `save` and `restore` are for what is not learnt yet.
    """

    def __init__(self, config: Config, keys: Sequence[Key], predictor: Predictor) -> None:
        self._predictor = predictor
        self._keys = tuple(keys)
        self._devices: list[_Device] = []
        self._places = min(WINDOW, max(WINDOW_LEAST, WINDOWS_TOGETHER // max(1, len(self._keys))))
        self._settings = np.zeros((len(self._keys), c.SETTINGS))
        self._settings[:, c.DEVICE] = -1.0
        # What a loop counts for the PLC tells of the loop's modes and nothing of the device.
        beats = {loop.heartbeat.tag for loop in config.loops.values() if loop.heartbeat is not None}
        for name in dict.fromkeys(device for device, _ in self._keys):
            mine = {tag: slot for slot, (device, tag) in enumerate(self._keys) if device == name}
            setting = config.health.get(name)
            if setting is None:
                if config.health:
                    continue  # a `health:` section names the devices that are scored
                setting = HealthConfig(tags=tuple(tag for tag in mine if (name, tag) not in beats))
            slots = np.array([mine[tag] for tag in setting.tags if tag in mine], dtype=np.int64)
            if slots.size:
                warmup = max(setting.warmup, 2 * c.MOVES_WANTED)
                self._settings[slots, c.DEVICE] = len(self._devices)
                self._settings[slots, c.WARMUP] = warmup
                self._settings[slots, c.EVERY] = max(1, -(-warmup // self._places))
                self._settings[slots, c.SEASONS] = setting.reference == "slow"
                self._devices.append(
                    _Device(name, setting, slots, tuple(self._keys[slot][1] for slot in slots))
                )
        self._of_name = {one.name: one for one in self._devices}
        self._calibrated = [one for one in self._devices if one.config.calibrate is not None]
        self._watch = np.zeros((len(self._keys), c.WATCH))
        self._watch[:, c.UNSEEN] = 1.0
        self._watch[:, [c.LOGIT, c.Z, *range(c.SINCE, c.RAISED)]] = np.nan
        self._logit, self._z = self._watch[:, c.LOGIT], self._watch[:, c.Z]  # views
        self._marks = np.zeros((len(self._keys), c.MARKS), dtype=np.uint8)
        self._window = self._empty()
        self._rules = Rules(config, self._keys)
        self._settings[:, c.RANGE_LOW : c.CURRENT + 1] = self._rules.settings
        self._worst = np.empty(2)
        self._take = choose(kernels.take, reference.take)
        self._judge = choose(kernels.judge, reference.judge)
        self._find_worst = choose(kernels.worst, reference.worst)

    def update(self, slots: Ints, value: Floats, t: float | Floats, *, weigh: bool = True) -> list[Event]:
        """Takes the samples that the predictor was given just before (NaN: missing), at time t (s); returns events.

        t: one time, or one of each sample.

        A missing sample says nothing of health: its tag has no score until the next one. weigh: False where more tags
        of the same scan follow, and `weigh` after them.
        """
        rows = np.ascontiguousarray(slots, dtype=np.int64)
        values = np.ascontiguousarray(value, dtype=np.float64)
        times = np.empty(len(rows))
        times[:] = t
        state = self._predictor.state
        watching = (state.health, self._settings, self._watch)
        found = self._take(rows, values, times, state.scalars, *watching, self._window, self._marks, FREEZES)
        if found & c.COMPLETE:
            ready = self._marks[rows, c.READY] != 0
            self._freeze(rows[ready])
            found |= self._judge(rows[ready], values[ready], times[ready], *watching, self._marks)
        events = self._told(rows, values, times) if found & c.TURNED else []
        if not found & c.OPEN and self._window.size:
            self._close()
        for index in np.unique(self._settings[rows, c.DEVICE]).astype(int) if weigh else ():
            if index >= 0:
                events += self._weigh(self._devices[index], float(times[-1]))
        return events

    def weigh(self, device: str, t: float) -> list[Event]:
        """A device's score from its tags' as they stand at time t (s), and its alarm."""
        found = self._of_name.get(device)
        return [] if found is None else self._weigh(found, t)

    def views(self) -> Mapping[str, HealthView]:
        """Every device's score, its tags' scores and the tags that pull it down most."""
        scores = self.scores()
        return {
            device.name: HealthView(
                score=device.score,
                tags={
                    tag: None if score != score else score
                    for tag, score in zip(device.tags, scores[device.slots].tolist(), strict=True)
                },
                causes=device.causes,
            )
            for device in self._devices
        }

    def scores(self) -> Floats:
        """Each tag's own score, shape (n,); NaN where there is none."""
        return _score(self._logits())

    def _logits(self) -> Floats:
        """Of each tag's anomaly, shape (n,): by its device's `calibrate` where it has one, else by its own past."""
        if not self._calibrated:
            return self._logit
        logits = self._logit.copy()
        for device in self._calibrated:
            assert device.config.calibrate is not None
            a, b = device.config.calibrate
            line = np.clip(a * self._z[device.slots] + b, -c.LOGIT_CLIP, c.LOGIT_CLIP)
            logits[device.slots] = np.where(np.isfinite(logits[device.slots]), line, np.nan)
        return logits

    def z(self) -> dict[str, float]:
        """Each device's largest z, which `calibrate` turns into its anomaly; NaN where no tag has one at present."""
        known = np.isfinite(self._logit)
        return {
            device.name: float(np.max(self._z[device.slots][known[device.slots]], initial=-np.inf))
            if known[device.slots].any()
            else math.nan
            for device in self._devices
        }

    def relearn(self, device: str, t: float) -> list[Event] | None:
        """Forgets a device's reference and begins its commissioning anew at time t (s); None: there is no such device.

        An alarm that it had raised is cleared: it was measured by a reference that is no more.
        """
        one = self._of_name.get(device)
        if one is None:
            return None
        self._predictor.state.health[one.slots] = np.nan
        self._watch[one.slots, c.UNSEEN] = 1.0
        self._watch[one.slots, c.STORED] = 0.0
        self._logit[one.slots] = np.nan
        if not self._window.size:
            self._window = self._empty()
        cleared = [self._turn(one, t, f"{device} is commissioned anew")] if one.raised else []
        one.score, one.causes, one.since = None, (), None
        return cleared

    def warmup(self, device: str) -> int:
        """Samples of each tag that a device's commissioning takes at least."""
        one = self._of_name.get(device)
        return 0 if one is None else int(self._settings[one.slots, c.WARMUP].max())

    def save(self) -> bytes:
        """Commissionings that are not finished, in an envelope; finished ones are saved with the models."""
        tags: list[list[Any]] = []
        rows: list[bytes] = []
        columns, longest = self._predictor.state.health, self._window.shape[1]
        open_ = (self._watch[:, c.UNSEEN] == 0.0) & (columns[:, c.LEARNT] == 0.0)
        for slot in np.flatnonzero(open_) if longest else ():
            kept, warmup = int(self._watch[slot, c.STORED]), int(self._settings[slot, c.WARMUP])
            part = self._window[slot, : min(kept, longest)]
            tags.append([*self._keys[slot], warmup, columns[slot, c.SAMPLES], kept, len(part)])
            rows.append(np.ascontiguousarray(part).tobytes())
        head = json.dumps({"longest": self._longest(), "tags": tags}).encode()
        return seal(KIND, VERSION, struct.pack("<I", len(head)) + head + b"".join(rows))

    def restore(self, data: bytes) -> int:
        """Goes on with the commissionings of `save`, of tags whose models were restored; returns how many.

        A tag whose model is not as old as its commissioning, or whose warm-up changed, begins anew. Raises
        StateDamaged.
        """
        payload = unseal(KIND, VERSION, data)
        found = 0
        try:
            (length,) = struct.unpack_from("<I", payload)
            head = json.loads(payload[4 : 4 + length])
            at = 4 + length
            for device, tag, warmup, samples, kept, count in head["tags"]:
                part = np.frombuffer(payload, dtype="<f8", count=3 * count, offset=at).reshape(count, 3)
                at += 24 * count
                if head["longest"] == self._longest():
                    found += self._resume((device, tag), warmup, samples, kept, part)
        except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
            raise StateDamaged(
                f"it does not hold commissionings as this version writes them ({error})"
            ) from None
        return found

    def _resume(self, key: Key, warmup: int, samples: float, kept: int, part: Floats) -> bool:
        slot = self._keys.index(key) if key in self._keys else -1
        if slot < 0 or not self._window.size or self._settings[slot, c.WARMUP] != warmup:
            return False
        if self._predictor.state.health[slot, [c.SAMPLES, c.LEARNT]].tolist() != [samples, 0.0]:
            return False
        self._window[slot, : len(part)] = part
        self._watch[slot, c.STORED] = kept
        self._watch[slot, c.UNSEEN] = 0.0
        return True

    def _longest(self) -> int:
        return int(min(self._settings[:, c.WARMUP].max(initial=1), self._places))

    def _empty(self) -> Floats:
        """What is kept of each tag until its reference is frozen: level, value and fast part of its samples."""
        return np.empty((len(self._keys), self._longest(), 3))

    def go_on(self, before: Health, devices: Collection[str]) -> None:
        """Alarms stay raised, and scores stand, of the devices that are watched as in one before this one.

        Commissionings go on where their models do.
        """
        self.restore(before.save())
        known = {one.name: one for one in before._devices if one.name in devices}
        for device in self._devices:
            old = known.get(device.name)
            if old is not None:
                device.score, device.causes = old.score, old.causes
                device.since, device.raised = old.since, old.raised
        slots = {key: slot for slot, key in enumerate(before._keys)}
        pairs = [
            (slot, slots[key]) for slot, key in enumerate(self._keys) if key in slots and key[0] in devices
        ]
        here, there = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        for column in (c.LOGIT, c.Z, *range(c.SINCE, c.WATCH)):
            self._watch[here, column] = before._watch[there, column]

    def _freeze(self, slots: Ints) -> None:
        """Ends the commissioning of tags that `take` marked."""
        self._marks[slots, c.READY] = 0
        for slot in slots:
            count = min(int(self._watch[slot, c.STORED]), self._window.shape[1])
            freeze(self._predictor.state.health[slot], self._window[slot, :count])

    def _close(self) -> None:
        """Frees the windows where no watched tag is in commissioning any more."""
        watched = self._settings[:, c.DEVICE] >= 0.0
        if np.all(self._predictor.state.health[watched, c.LEARNT] == 1.0):
            self._window = np.empty((0, 0, 3))

    def _told(self, rows: Ints, values: Floats, times: Floats) -> list[Event]:
        """The events of the rules that were marked."""
        marks = self._marks[rows, : c.RULES]
        self._marks[rows, : c.RULES] = 0
        health = self._predictor.state.health
        return [
            self._rules.event(
                rule, rows[i], float(values[i]), health[rows[i]], float(times[i]), begins=mark == c.BEGINS
            )
            for mark in (c.BEGINS, c.ENDS)
            for rule, i in zip(*np.equal(marks.T, mark).nonzero(), strict=True)
        ]

    def _weigh(self, device: _Device, t: float) -> list[Event]:
        """The device's score from its tags', and its alarm."""
        known = self._find_worst(device.slots, self._watch, self._worst)
        if not known:
            device.score, device.since = None, None
            return []
        logit, z = self._worst.tolist()
        if device.config.calibrate is not None:
            a, b = device.config.calibrate
            worst = a * z + b
        else:
            worst = logit - math.log(known)
        worst = min(max(worst, -c.LOGIT_CLIP), c.LOGIT_CLIP)
        device.score = 1.0 - 1.0 / (1.0 + math.exp(-worst))
        device.causes = self._causes(device) if device.score < device.config.alarm else ()
        return self._alarm(device, t)

    def _causes(self, device: _Device) -> tuple[str, ...]:
        """The tags that pull a device's score down most, the worst first."""
        logits = self._logits()[device.slots]
        known = np.isfinite(logits)
        order = np.argsort(-np.where(known, logits, -np.inf), kind="stable")[:CAUSES]
        low = [i for i in order if known[i] and logits[i] > 0.0] or [order[0]]
        return tuple(self._keys[device.slots[i]][1] for i in low)

    def _alarm(self, device: _Device, t: float) -> list[Event]:
        """Raised after `hold` seconds under the limit, cleared after as long above limit and hysteresis."""
        limit, score = device.config.alarm, device.score
        assert score is not None
        turned = score < limit if not device.raised else score > min(limit + HYSTERESIS, 0.5 * (1.0 + limit))
        if not turned:
            device.since = None
            return []
        if device.since is None:
            device.since = t
        if t - device.since < device.config.hold:
            return []
        names = ", ".join(device.causes)
        text = (
            f"{device.name} behaves as it did when commissioned"
            if device.raised
            else f"maintenance required: {device.name} does not behave as it did when commissioned ({names})"
        )
        return [self._turn(device, t, text)]

    def _turn(self, device: _Device, t: float, text: str) -> Event:
        """The event of an alarm that is raised, or cleared where it was."""
        device.raised, device.since = not device.raised, None
        return Event(
            device=device.name,
            name="health_low",
            severity="warning",
            state="raised" if device.raised else "cleared",
            text=text,
            t=t,
            value=device.score,
            limit=device.config.alarm,
            causes=device.causes,
            alarm=True,
        )


def freeze(row: Floats, window: Floats) -> None:
    """Ends a tag's commissioning: reference, medians and the two-quantile logistic from its window (samples, 3)."""
    skip = len(window) // 8  # the models themselves were only starting
    level, value, fast = window[skip:].T
    row[c.REF_LEVEL] = np.median(level)
    row[c.REF_SPREAD] = max(float(np.mean(np.abs(value - row[c.REF_LEVEL]))), c.TINY)
    row[c.REF_FAST] = max(float(np.median(fast)), 1e-3)
    slow = np.abs(level - row[c.REF_LEVEL]) / (1.25 * row[c.REF_SPREAD])
    row[c.REF_SLOW] = max(float(np.median(slow)), 1e-3)
    z = reference.anomaly(fast, level, row)
    middle, high = np.quantile(z, [0.5, 0.995])
    row[c.GAIN] = LOG_99 / max(high - middle, REACH_LEAST)
    row[c.BIAS] = -row[c.GAIN] * max(high, middle + REACH_LEAST)
    row[c.LEARNT] = 1.0


def _score(logit: Floats) -> Floats:
    """1 - 1 / (1 + exp(-logit)); NaN stays NaN."""
    return np.asarray(
        1.0 - 1.0 / (1.0 + np.exp(-np.clip(logit, -c.LOGIT_CLIP, c.LOGIT_CLIP))), dtype=np.float64
    )
