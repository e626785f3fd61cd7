"""Names of the numbers that the controller's kernel and its reference share."""

INTEGRAL, DERIVATIVE, LAST_WEIGHTED, LAST_OUTPUT, WANTED = range(5)
STATE = 5
"""LAST_WEIGHTED is c * setpoint - pv of the step before; LAST_OUTPUT what was put out, after all limits; WANTED what
would have been put out without any."""

GAIN, TI, TD, B, C, N, LOW, HIGH, RATE = range(9)
PARAMETERS = 9
"""GAIN is kp, negative for direct action; TI 0: no integral action; TD 0: no derivative action; RATE per second,
infinite where there is no limit."""
