"""Edgetwin: an edge agent for factory gateways."""

__version__ = "0.1.0"
RELEASED_MS = 1_793_491_200_000
"""Month of this version's release (2026-11-01T00:00Z) in ms: a wall clock before it cannot be right."""
