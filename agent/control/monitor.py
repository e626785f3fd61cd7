"""Whether a loop on a fixed model still behaves as the model says."""

from __future__ import annotations

import math
from collections import deque

CROSSINGS = 4
"""Changes of the error's sign within the window that are an oscillation."""
SHARE_OF_STEP = 0.1
NOISE_FLOOR = 6.0
"""Standard deviations of the noise; smaller errors count for nothing."""
AGAINST = -0.3
TOO_STRONG = 2.5
"""Bounds of the gain that shows, over the model's. A load that is being rejected pulls it below 1, never that far."""
CLEAR = 10.0
"""Standard deviations of the noise that the controller's own moves must have moved the PV before that is judged."""
SMOOTHING = 1.0 / 48.0
"""Of the window: time constant behind which the error's sign is taken, so that noise crosses nothing."""
LASTING = 1.0 / 12.0
"""Of the window, for which the gain must show to be wrong: a delay that is a little wrong looks like that at first."""


class Monitor:
    """Counts in seconds since it was made or cleared. `window`: seconds; `noise`: standard deviation of the PV."""

    def __init__(self, window: float, noise: float) -> None:
        self._window = window
        self._noise = noise
        self.clear(math.nan, math.nan)

    def clear(self, setpoint: float, pv: float) -> None:
        """The loop starts here."""
        self._t = 0.0
        self._setpoint, self._pv = setpoint, pv
        self._step = abs(setpoint - pv) if math.isfinite(setpoint - pv) else 0.0
        self._sign, self._error = 0, setpoint - pv if math.isfinite(setpoint - pv) else 0.0
        self._crossings: deque[float] = deque()
        self._wrong_for = self._alone = self._moved = self._answered = 0.0

    def see(self, dt: float, setpoint: float, pv: float, alone: float) -> str | None:
        """One plan later; what is wrong, None while nothing is. `alone`: the PV if the moves were all, from 0 on."""
        self._t += dt
        change, self._pv = pv - self._pv, pv
        moved, self._alone = alone - self._alone, alone
        if not math.isfinite(change):
            return None
        kept = math.exp(-dt / self._window)
        self._moved = kept * self._moved + moved * moved
        self._answered = kept * self._answered + moved * change
        if self._oscillates(dt, setpoint, pv):
            return "the loop oscillates"
        wrong = self._wrong_gain()
        self._wrong_for = self._wrong_for + dt if wrong else 0.0
        return wrong if self._wrong_for > LASTING * self._window else None

    def _wrong_gain(self) -> str | None:
        if self._moved > (CLEAR * self._noise) ** 2:
            if self._answered < AGAINST * self._moved:
                return "the PV moves against what the model says"
            if self._answered > TOO_STRONG * self._moved:
                return "the PV moves far more than the model says"
        return None

    def _oscillates(self, dt: float, setpoint: float, pv: float) -> bool:
        jump = abs(setpoint - self._setpoint)
        self._setpoint = setpoint
        if jump > NOISE_FLOOR * self._noise:  # a change of sign that this one brings is none of the loop's
            self._step, self._sign = jump, 0
            self._crossings.clear()
        share = min(1.0, dt / (SMOOTHING * self._window))
        self._error += share * (setpoint - pv - self._error)
        if abs(self._error) > max(SHARE_OF_STEP * self._step, NOISE_FLOOR * self._noise):
            sign = 1 if self._error > 0.0 else -1
            if sign == -self._sign:
                self._crossings.append(self._t)
            self._sign = sign
        while self._crossings and self._t - self._crossings[0] >= self._window:
            self._crossings.popleft()
        return len(self._crossings) >= CROSSINGS
