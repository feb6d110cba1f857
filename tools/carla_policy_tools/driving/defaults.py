"""What a drive is unless told otherwise; light enough for a `--help`."""

from __future__ import annotations

ENVIRONMENT = "examples.racetrack.driving_env:DrivingEnv"
"""The one that the shipped policies were trained in."""
FIRST_SEED = 10_000
"""Far from the seeds that policies are usually trained with."""
DEADLINE_S = 0.05
"""The vehicle client's own."""
