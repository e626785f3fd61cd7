"""Names of the numbers that the controller's kernel and its reference share."""

INTEGRAL, DERIVATIVE, LAST_WEIGHTED, LAST_OUTPUT, WANTED = range(5)
STATE = 5
"""LAST_WEIGHTED is c * setpoint - pv of the step before; LAST_OUTPUT what was put out, after all limits; WANTED what
would have been put out without any."""

GAIN, TI, TD, B, C, N, LOW, HIGH, RATE = range(9)
PARAMETERS = 9
"""GAIN is kp, negative for direct action; TI 0: no integral action; TD 0: no derivative action; RATE per second,
infinite where there is no limit."""

LEAST_TRACKING = 0.2
"""Of TI: the shortest time in which the integral follows an output that is limited."""

SHOWN, WISHED, FILTERED, BEFORE, LOAD, GAP, CLOCK, BASE, GOAL, SURPRISE, PASSED, ALONE, EARLIER, LACK = range(
    14
)
MEMORY = 14
"""State of the predictive controller; the moves of the output follow from MEMORY on, the newest first.

SHOWN as LAST_OUTPUT, WISHED as WANTED. FILTERED and BEFORE: the PV as filtered, now and an interval before. LOAD: what
moves the PV beside the output. GAP: distance from the setpoint that is still forgiven after taking over. CLOCK: share
of an interval that has passed. Moves and GOAL are outputs without feed-forward, as distances from BASE. SURPRISE: the
PV less what was foretold for it at the last plan. PASSED: intervals in the last step; 0: the last plan was kept.
ALONE and EARLIER: the PV as the moves alone would have it, without any correction, now and an interval before. LACK:
what limits and rate took from the last plan."""

A1, A2, B1, B2, B3, DEAD, TRUST, DRIFT, APPROACH, LOWEST, HIGHEST, PACE, INTERVAL = range(13)
DESIGN = 13
"""y(t) = A1 y(t-1) + A2 y(t-2) + B1 v(t-1-DEAD) + B2 v(t-2-DEAD) + B3 v(t-3-DEAD) + load, t in intervals (seconds).

TRUST and DRIFT: shares of a surprise that go into the filtered PV and into the load. APPROACH: what is left of the
distance to the setpoint after an interval. LOWEST, HIGHEST, PACE: as LOW, HIGH, RATE."""

MOVES = 3
SWEEPS = 8
"""Of the coordinate descent."""
MOST_MISSED = 100
"""Intervals for which the model runs on without a sample."""
