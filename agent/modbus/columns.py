"""Names of the columns that the decoding kernel and its reference share."""

KIND, OFFSET, WORDS, ORDER, SHIFT, FIELD, LOOP_CURRENT, MISSING_FROM, MISSING_TO = range(9)
LAYOUT = 9
"""Per tag: how its raw value is built. OFFSET in bytes (bits for a coil); FIELD is a bit field's width, 0 for none."""

UNSIGNED, SIGNED, FLOAT32, FLOAT64, BCD, COIL, TEXT = range(7)
"""Kinds."""

MULTIPLIER, ADDEND, DIVISOR, LOWEST, HIGHEST = range(5)
NUMBERS = 5
"""Per tag: value = (raw * MULTIPLIER + ADDEND) / DIVISOR, a power of ten, so that decimals come out right."""

NO_POWER = -128
"""The register that `scale_from` names has no usable value."""

GOOD, UNCERTAIN, MISSING = 0, 1, 2
"""As in agent.twin.quality; a compiled function takes plain numbers."""

NE43_FAIL_LOW, NE43_LOW, NE43_HIGH, NE43_FAIL_HIGH = 3.6, 3.8, 20.5, 21.0
"""mA, NAMUR NE 43: a signal from 3.8 to 20.5 is a measurement; at or beyond 3.6 and 21.0 the transmitter has failed."""
