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
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config.types import Config, HealthConfig
from agent.predict import columns as c
from agent.predict.predictor import Predictor
from agent.predict.rules import Rules
from agent.predict.saved import StateDamaged, seal, unseal
from agent.twin.records import Event, HealthView, Key

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KIND, VERSION = "commissioning", 1
RATE = 0.1  # of the smoothed parts
SPREAD_RATE = 0.002
SEASON_RATE = 5e-4
"""Of a slow reference: a change is half forgotten after some 1400 samples."""
CLIP = 8.0
FLOOR = 0.05
MOVES_WANTED = 10
"""Changes that a tag must have shown before its commissioning ends; one that never moves teaches nothing."""
WINDOW = 1000
"""Samples kept while learning; a longer commissioning keeps every second, third, ... of them."""
REACH_LEAST = 1.5
"""Least distance of z from median to 99.5 % quantile: the log of the 4.2 that a Gaussian signal has. A short window of
an inert signal shows less by chance, and would then call every excursion a fault."""
FREEZES = 10
"""References frozen in one call (some 60 us each); the rest wait for their next sample, so that no scan is late."""
HYSTERESIS = 0.1
CAUSES = 5
LOG_99 = math.log(99.0)
LOGIT_CLIP = 50.0


@dataclass
class _Device:
    """One device's score and its alarm."""

    name: str
    config: HealthConfig
    slots: Ints
    score: float | None = None
    causes: tuple[str, ...] = ()
    since: float | None = None  # when it began to be under the alarm limit, or over it again while raised
    raised: bool = False


@dataclass
class _Learning:
    """What is kept of each tag until its reference is frozen: level, value and fast part of up to WINDOW samples."""

    every: Ints  # keep each so many-th sample
    kept: Ints
    window: Floats = field(repr=False)  # (tags, WINDOW at most, 3)


class Health:
    """Scores of the devices that `config.health` names; where it names none, of all that have predicted tags.

    keys, predictor: the predicted tags and their models, in the same order. What was learnt lies in the predictor's
    state, so it is saved and restored with the models; `save` and `restore` are for what is not learnt yet.
    """

    def __init__(self, config: Config, keys: Sequence[Key], predictor: Predictor) -> None:
        self._predictor = predictor
        self._keys = tuple(keys)
        self._devices: list[_Device] = []
        self._device_of = np.full(len(self._keys), -1, dtype=np.int64)
        self._warmup = np.full(len(self._keys), 0, dtype=np.int64)
        for name in dict.fromkeys(device for device, _ in self._keys):
            mine = {tag: slot for slot, (device, tag) in enumerate(self._keys) if device == name}
            setting = config.health.get(name)
            if setting is None:
                if config.health:
                    continue  # a `health:` section names the devices that are scored
                setting = HealthConfig(tags=tuple(mine))
            slots = np.array([mine[tag] for tag in setting.tags if tag in mine], dtype=np.int64)
            if slots.size:
                self._device_of[slots] = len(self._devices)
                self._warmup[slots] = max(setting.warmup, 2 * MOVES_WANTED)
                self._devices.append(_Device(name, setting, slots))
        self._slow = np.zeros(len(self._keys), dtype=bool)
        for one in self._devices:
            self._slow[one.slots] = one.config.reference == "slow"
        self._unseen = np.ones(len(self._keys), dtype=bool)
        self._logit = np.full(len(self._keys), np.nan)
        self._z = np.full(len(self._keys), np.nan)
        self._learning: _Learning | None = self._empty()
        self._rules = Rules(config, self._keys)

    def update(self, slots: Ints, value: Floats, t: float, *, weigh: bool = True) -> list[Event]:
        """Takes the samples that the predictor was given just before (NaN: missing), at time t (s); returns events.

        A missing sample says nothing of health: its tag has no score until the next one. weigh: False where more tags
        of the same scan follow, and `weigh` after them.
        """
        watched = self._device_of[slots] >= 0
        real = watched & np.isfinite(value) & (np.abs(value) <= c.HUGE)
        self._logit[slots[watched & ~real]] = np.nan
        touched = np.unique(self._device_of[slots[watched]])
        slots, value = slots[real], value[real]
        if slots.size:
            columns = self._predictor.state.health
            self._begin(columns, slots, value)
            self._move(columns, slots, value)
            if self._learning is not None:
                self._learn(columns, slots, value, self._learning)
            self._judge(columns, slots)
        events = self._rules.update(self._predictor.state.health, slots, value, t)
        for index in touched if weigh else ():
            events += self._weigh(self._devices[index], t)
        return events

    def weigh(self, device: str, t: float) -> list[Event]:
        """A device's score from its tags' as they stand at time t (s), and its alarm."""
        found = (one for one in self._devices if one.name == device)
        return [event for one in found for event in self._weigh(one, t)]

    def views(self) -> Mapping[str, HealthView]:
        """Every device's score, its tags' scores and the tags that pull it down most."""
        scores = _score(self._logit)
        return {
            device.name: HealthView(
                score=device.score,
                tags={
                    self._keys[slot][1]: None if math.isnan(scores[slot]) else float(scores[slot])
                    for slot in device.slots
                },
                causes=device.causes,
            )
            for device in self._devices
        }

    def scores(self) -> Floats:
        """Each tag's own score, shape (n,); NaN where there is none."""
        return _score(self._logit)

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
        one = next((one for one in self._devices if one.name == device), None)
        if one is None:
            return None
        self._predictor.state.health[one.slots] = np.nan
        self._unseen[one.slots] = True
        self._logit[one.slots] = np.nan
        if self._learning is None:
            self._learning = self._empty()
        self._learning.kept[one.slots] = 0
        cleared = [self._turn(one, t, f"{device} is commissioned anew")] if one.raised else []
        one.score, one.causes, one.since = None, (), None
        return cleared

    def warmup(self, device: str) -> int:
        """Samples of each tag that a device's commissioning takes at least."""
        return max(
            (int(self._warmup[one.slots].max()) for one in self._devices if one.name == device), default=0
        )

    def save(self) -> bytes:
        """Commissionings that are not finished, in an envelope; finished ones are saved with the models."""
        tags: list[list[Any]] = []
        rows: list[bytes] = []
        learning, columns = self._learning, self._predictor.state.health
        for slot in np.flatnonzero(~self._unseen & (columns[:, c.LEARNT] == 0.0)) if learning else ():
            assert learning is not None
            kept = int(learning.kept[slot])
            part = learning.window[slot, : min(kept, learning.window.shape[1])]
            tags.append(
                [*self._keys[slot], int(self._warmup[slot]), columns[slot, c.SAMPLES], kept, len(part)]
            )
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
        learning = self._learning
        if slot < 0 or learning is None or self._warmup[slot] != warmup:
            return False
        if self._predictor.state.health[slot, [c.SAMPLES, c.LEARNT]].tolist() != [samples, 0.0]:
            return False
        learning.window[slot, : len(part)] = part
        learning.kept[slot] = kept
        self._unseen[slot] = False
        return True

    def _longest(self) -> int:
        return int(min(self._warmup.max(initial=1), WINDOW))

    def _empty(self) -> _Learning:
        return _Learning(
            every=np.maximum(1, -(-self._warmup // WINDOW)),
            kept=np.zeros(len(self._keys), dtype=np.int64),
            window=np.empty((len(self._keys), self._longest(), 3)),
        )

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
        self._logit[here], self._z[here] = before._logit[there], before._z[there]
        self._rules.go_on(before._rules, here, there)

    def _begin(self, columns: Floats, slots: Ints, value: Floats) -> None:
        """The first sample of each tag in this process: goes on where it was learnt, else starts its commissioning."""
        new = self._unseen[slots]
        if new.any():
            self._unseen[slots] = False
            new &= columns[slots, c.LEARNT] != 1.0
            columns[slots[new]] = 0.0
            columns[slots[new], c.LEVEL] = columns[slots[new], c.LAST] = value[new]

    def _move(self, columns: Floats, slots: Ints, value: Floats) -> None:
        """Both parts of each tag, one sample on."""
        h = columns[slots]
        h[:, c.SAMPLES] += 1.0
        size = np.abs(self._predictor.innovation(slots))
        known = np.isfinite(size)
        spread = h[:, c.SPREAD]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            z = np.where(
                spread > 0.0, np.minimum(size / (1.25 * spread), CLIP), np.where(size > 0.0, CLIP, 0.0)
            )
            early = h[:, c.SAMPLES] <= 30.0
            clipped = np.where(early, size, np.minimum(size, 4.0 * np.maximum(spread, c.TINY)))
        # A spread frozen with the reference would call every later change of noise a fault for ever; it goes on slowly.
        moved = spread + np.maximum(1.0 / h[:, c.SAMPLES], SPREAD_RATE) * (clipped - spread)
        h[:, c.SPREAD] = np.where(known, moved, spread)
        h[:, c.FAST_PART] += np.where(known, RATE * (z - h[:, c.FAST_PART]), 0.0)
        h[:, c.LEVEL] += RATE * (value - h[:, c.LEVEL])
        still = value == h[:, c.LAST]
        h[:, c.STILL] = np.where(still, h[:, c.STILL] + 1.0, 0.0)
        h[:, c.LAST] = value
        learning = h[:, c.LEARNT] == 0.0
        h[:, c.MOVES] += learning & ~still
        h[:, c.LONGEST_STILL] = np.where(
            learning, np.maximum(h[:, c.LONGEST_STILL], h[:, c.STILL]), h[:, c.LONGEST_STILL]
        )
        slow = self._slow[slots] & (h[:, c.LEARNT] == 1.0)
        if slow.any():
            _follow(h, slow, value)
        columns[slots] = h

    def _learn(self, columns: Floats, slots: Ints, value: Floats, learning: _Learning) -> None:
        open_ = columns[slots, c.LEARNT] == 0.0
        if not open_.any():
            if np.all(columns[self._device_of >= 0, c.LEARNT] == 1.0):
                self._learning = None  # frees the windows
            return
        slots, value = slots[open_], value[open_]
        samples = columns[slots, c.SAMPLES].astype(np.int64)
        due = samples % learning.every[slots] == 0
        chosen = slots[due]
        place = learning.kept[chosen] % learning.window.shape[1]
        learning.window[chosen, place, 0] = columns[chosen, c.LEVEL]
        learning.window[chosen, place, 1] = value[due]
        learning.window[chosen, place, 2] = columns[chosen, c.FAST_PART]
        learning.kept[chosen] += 1
        ready = (samples >= self._warmup[slots]) & (columns[slots, c.MOVES] >= MOVES_WANTED)
        for slot in slots[ready][:FREEZES]:
            count = min(int(learning.kept[slot]), learning.window.shape[1])
            freeze(columns[slot], learning.window[slot, :count])

    def _judge(self, columns: Floats, slots: Ints) -> None:
        slots = slots[columns[slots, c.LEARNT] == 1.0]
        h = columns[slots]
        self._z[slots] = anomaly(h[:, c.FAST_PART], h[:, c.LEVEL], h)
        logit = h[:, c.GAIN] * self._z[slots] + h[:, c.BIAS]
        self._logit[slots] = np.clip(logit, -LOGIT_CLIP, LOGIT_CLIP)

    def _weigh(self, device: _Device, t: float) -> list[Event]:
        """The device's score from its tags', and its alarm."""
        logits = self._logit[device.slots]
        known = np.isfinite(logits)
        if not known.any():
            device.score, device.since = None, None
            return []
        if device.config.calibrate is not None:
            a, b = device.config.calibrate
            worst = a * float(np.max(self._z[device.slots][known])) + b
        else:
            worst = float(np.max(logits[known])) - math.log(int(known.sum()))
        device.score = float(_score(np.array([worst]))[0])
        order = np.argsort(-np.where(known, logits, -np.inf), kind="stable")[:CAUSES]
        low = [i for i in order if known[i] and logits[i] > 0.0] or [int(order[0])]
        device.causes = (
            tuple(self._keys[device.slots[i]][1] for i in low) if device.score < device.config.alarm else ()
        )
        return self._alarm(device, t)

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


def anomaly(fast: Floats, level: Floats, reference: Floats) -> Floats:
    """z of the two parts against frozen references (rows of health columns), shape as `fast`."""
    with np.errstate(over="ignore"):
        slow = np.abs(level - reference[..., c.REF_LEVEL]) / (1.25 * reference[..., c.REF_SPREAD])
        worst = np.maximum(fast / reference[..., c.REF_FAST], slow / reference[..., c.REF_SLOW])
        return np.asarray(np.log(FLOOR + np.minimum(worst, 1e12)), dtype=np.float64)


def _follow(h: Floats, chosen: NDArray[np.bool_], value: Floats) -> None:
    """Lets the reference of the chosen rows follow their values, outliers clipped."""
    spread = h[chosen, c.REF_SPREAD]
    off = np.clip(value[chosen] - h[chosen, c.REF_LEVEL], -CLIP * spread, CLIP * spread)
    h[chosen, c.REF_LEVEL] += SEASON_RATE * off
    h[chosen, c.REF_SPREAD] = np.maximum(spread + SEASON_RATE * (np.abs(off) - spread), c.TINY)


def freeze(row: Floats, window: Floats) -> None:
    """Ends a tag's commissioning: reference, medians and the two-quantile logistic from its window (samples, 3)."""
    skip = len(window) // 8  # the models themselves were only starting
    level, value, fast = window[skip:].T
    row[c.REF_LEVEL] = np.median(level)
    row[c.REF_SPREAD] = max(float(np.mean(np.abs(value - row[c.REF_LEVEL]))), c.TINY)
    row[c.REF_FAST] = max(float(np.median(fast)), 1e-3)
    slow = np.abs(level - row[c.REF_LEVEL]) / (1.25 * row[c.REF_SPREAD])
    row[c.REF_SLOW] = max(float(np.median(slow)), 1e-3)
    z = anomaly(fast, level, row)
    middle, high = np.quantile(z, [0.5, 0.995])
    row[c.GAIN] = LOG_99 / max(high - middle, REACH_LEAST)
    row[c.BIAS] = -row[c.GAIN] * max(high, middle + REACH_LEAST)
    row[c.LEARNT] = 1.0


def _score(logit: Floats) -> Floats:
    """1 - 1 / (1 + exp(-logit)); NaN stays NaN."""
    return np.asarray(1.0 - 1.0 / (1.0 + np.exp(-np.clip(logit, -LOGIT_CLIP, LOGIT_CLIP))), dtype=np.float64)
