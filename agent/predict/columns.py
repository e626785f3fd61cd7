"""The columns of one tag's scalar state, and the settings of the model: plain numbers for kernels and references.

The settings were found by measurement; only order, horizon and interval can be configured.
"""

from __future__ import annotations

Y = 0  # last level, filled with own forecasts while samples are missing
REAL = 1  # last real sample: the last-value expert
SCALE = 2  # exponentially weighted mean of |difference|
MEAN = 3  # slow mean: the level term's centre
SIGMA = 4  # scale of the scaled innovations, for the Huber weight
CHANGES = 5  # differences that SCALE has seen
STEP = 6  # steps of the tag's own period since its first sample, missing ones too
SEEN = 7  # real samples
LOW = 8  # range seen, slowly forgotten
HIGH = 9
SMOOTH_FAST = 10  # exponential smoothers
SMOOTH_SLOW = 11
MISSING = 12  # steps missing since the last real sample
SMALLEST = 13  # smallest change seen that is not zero: the quantum where none is given
TIME = 14  # of the last step
PERIOD = 15
QUANTUM = 16  # 0: not known
INNOVATION = 17  # sample minus the forecast made one step before; NaN when there was none
DEVIATION = 18  # mean distance from the slow smoother
FAR = 19  # samples in a row that were far from it
SCALARS = 20

EXPERTS = 5  # last value, fast smoother, slow smoother, AR of order 2, AR of order p
MIXED = EXPERTS  # the experts' mixture, judged against the last value like one more expert
PLAIN = EXPERTS + 1  # error column: the last value over the mixture's longer memory
JUDGED = EXPERTS + 2
COMBINED = (
    EXPERTS + 1
)  # what a ring slot keeps beside: the forecast published, its half width, how much it was widened
HALF = EXPERTS + 2
WIDENING = EXPERTS + 3
KEPT = EXPERTS + 4

Q = 0  # interval: multiple of the mean error
ERROR = 1  # interval: exponentially weighted mean of |error|
COUNT = 2  # interval: errors seen
JUDGED_SHOWN = 3  # book of the forecasts that were shown: how many were judged so far,
SUM_ERROR = 4  # the sum of their absolute errors,
SUM_LAST = 5  # of the last value's,
SUM_INSIDE = 6  # how often the sample lay inside the interval,
SUM_WIDTH = 7  # and the sum of the intervals' widths
INTERVAL = 8

INPUT_TERMS = 5  # regressors of one exogenous input: its level and its last four changes
X_LAST = 0
X_MEAN = 1
X_SCALE = 2
X_COUNT = 3
X_CHANGES = 4  # and three more
X_STATE = 8

SAMPLES = 0  # health: samples seen while learning, and after
LEARNT = 1  # health: 1 once the reference is frozen
SPREAD = 2  # health: mean |innovation|
FAST_PART = 3  # health: smoothed, clipped |innovation| / spread
LEVEL = 4  # health: smoothed value
REF_LEVEL = 5  # health: the frozen reference and its spread
REF_SPREAD = 6
REF_FAST = 7  # health: medians of the two parts while learning
REF_SLOW = 8
GAIN = 9  # health: a and b of the logistic
BIAS = 10
STILL = 11  # health: samples since the value changed
LONGEST_STILL = 12  # health: longest such run while learning
LAST = 13  # health: last value
AT_LOW = 14  # health: samples at either end of the range while learning
AT_HIGH = 15
MOVES = 16  # health: changes seen while learning
HEALTH = 17

DEVICE = 0  # setting of a watched tag: index of its device, -1 where nobody scores it
WARMUP = 1  # samples of its commissioning
EVERY = 2  # keep each so many-th of them
SEASONS = 3  # 1: its reference follows its values
RANGE_LOW = 4
RANGE_HIGH = 5
CURRENT = 6  # 1: a 4-20 mA signal
SETTINGS = 7

STUCK, LOW_END, HIGH_END, CURRENT_FAILURE, CURRENT_LIMIT = range(5)
RULES = 5
READY = RULES  # mark of a tag: commissioning complete; the marks of its rules stand before it
MARKS = RULES + 1
BEGINS, ENDS = 1, 2  # of a rule

LOGIT = 0  # watched now: what the score is made of; NaN where there is none
Z = 1
UNSEEN = 2  # 1 until the first sample in this process
STORED = 3  # samples kept of a commissioning
SINCE = 4  # since when each rule is met, s; NaN where it is not
RAISED = SINCE + RULES  # 1 where its event is raised
WATCH = RAISED + RULES

OPEN, COMPLETE, TURNED = 1, 2, 4
"""What a scan brought: tags still in commissioning; some that completed it; rules that began or ended to hold."""

RATE = 0.1  # of the smoothed parts
SPREAD_RATE = 0.002
SEASON_RATE = 5e-4
"""Of a slow reference: a change is half forgotten after some 1400 samples."""
PART_CLIP = 8.0
FLOOR = 0.05
MOVES_WANTED = 10
"""Changes that a tag must have shown before its commissioning ends; one that never moves teaches nothing."""
LOGIT_CLIP = 50.0
STUCK_TIMES = 5.0
"""A sensor counts as stuck after so many times the longest still run seen while it was commissioned."""
STUCK_LEAST = 30.0
"""But never after fewer samples than this."""
DELAY = 3.0
"""Seconds that a signal must be out of its limits."""
AT_END_USUAL = 0.01
"""Share of commissioning spent at an end of the range above which that end is normal for the tag."""
NE43_LOW, NE43_LEAST, NE43_MOST, NE43_HIGH = 3.6, 3.8, 20.5, 21.0
"""mA: failure at and below the first and at and above the last; valid from the second to the third (NAMUR NE 43)."""

FORGET = 0.998  # of the least squares
PRIOR = 10.0  # weight of the prior "nothing changes", re-injected at each step
PRIOR_INPUT = (
    0.1  # the same for the terms of exogenous inputs, which move seldom and are clipped as outliers at first
)
HUBER = 3.0
SHORT = 2  # the nested order
CLIP = 20.0  # of scaled regressors
LEVEL_CLIP = 1000.0
FAST = 0.3
SLOW = 0.05
FAR_TIMES = (
    8.0  # of DEVIATION: so many samples in a row beyond it are a new level, and the means start from there
)
FAR_SAMPLES = 3.0
ERROR_CAP = 20.0  # of the mean error: an outlier that all experts share must not drown what tells them apart
ETA = 10.0  # sharpness of the experts' weights
ETA_MIXED = 100.0  # of the mixture against the last value: where nothing can be foretold, nothing is
MEMORY_MIXED = 0.999
MARGIN_MIXED = 0.018
MEMORY = 0.995  # of the experts' errors
RANGE_FORGET = 1.0 / 5000.0
FIRST_FORECAST = 30  # real samples before a forecast is shown
Q_START = 1.645
Q_GAIN = 0.12
Q_GAIN_AHEAD = 0.4
"""The gain is Q_GAIN / h ** Q_GAIN_AHEAD: with a gain g the coverage of n samples is off by no more than
|log(q_n / q_0)| / (g n), so a fast one keeps it; but what is learnt at a horizon comes h steps late."""
ERROR_RATE = 0.03
TINY = 1e-290  # a scale below it is none
HUGE = 1e300  # a sample beyond it is missing
