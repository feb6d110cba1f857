"""How a policy's observation travels: a request names speed and steering, and lists the rest as sensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from carla_policy.golden import FloatArray
from carla_policy_tools.export.errors import ExportError

UNSEEN = {"speed": (-150.0, 150.0), "steering": (-1.0, 1.0)}
"""Bounds of speed (m/s) and steering where the policy does not see them: CARLA's full range."""
HEADROOM = 10.0
"""Widths of the range seen in training that a value may lie beyond it, where the space itself has no bound."""


@dataclass(frozen=True)
class WireColumns:
    """Columns as a request orders them: for each the policy's own column, or `None` where it does not see it."""

    policy_column: tuple[int | None, ...]

    @classmethod
    def of(cls, columns: int, speed: int | None, steering: int | None) -> WireColumns:
        """Speed and steering from those columns of a policy that sees `columns` of them."""
        for option, column in (("--speed-column", speed), ("--steering-column", steering)):
            if column is not None and not 0 <= column < columns:
                raise ExportError(f"{option} {column}: the policy sees the columns 0 to {columns - 1}")
        if speed is not None and speed == steering:
            raise ExportError(f"--speed-column and --steering-column are both {speed}")
        rest = [column for column in range(columns) if column not in (speed, steering)]
        return cls((speed, steering, *rest))

    @property
    def selection(self) -> list[int] | None:
        """Where each of the policy's columns is in a request, or `None` if they come in its own order."""
        places = {column: place for place, column in enumerate(self.policy_column) if column is not None}
        order = [places[column] for column in range(len(places))]
        return None if order == list(range(len(self.policy_column))) else order

    def arrange(self, observations: FloatArray) -> FloatArray:
        """The policy's `observations` `[rows, columns]` as a request orders them; what it does not see is 0."""
        unseen = np.zeros(len(observations), np.float32)
        return np.stack([unseen if c is None else observations[:, c] for c in self.policy_column], axis=1)

    def fields(
        self, low: FloatArray, high: FloatArray, seen: FloatArray, given: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """The card's fields: `given` ones where there are, the space's bounds, else room around what was seen.

        `low` and `high` are `[columns]` of the policy, `seen` is `[columns, 2]`.
        """
        if given and len(given) != len(self.policy_column):
            raise ExportError(
                f"observation.fields: the card names {len(given)}, a request carries {len(self.policy_column)}"
            )
        fields = []
        for place, column in enumerate(self.policy_column):
            name = ("speed", "steering")[place] if place < 2 else f"sensor_{place - 2}"
            if column is None:
                bounds, occurred = UNSEEN[name], UNSEEN[name]
            else:
                first, last = (float(f"{end:.6g}") for end in seen[column])
                room = HEADROOM * max(last - first, 0.1)
                lowest = float(low[column]) if np.isfinite(low[column]) else float(np.floor(first - room))
                highest = float(high[column]) if np.isfinite(high[column]) else float(np.ceil(last + room))
                bounds, occurred = (min(lowest, first), max(highest, last)), (first, last)
            field = {
                "name": name,
                "unit": "as in training",
                "low": bounds[0],
                "high": bounds[1],
                "seen": list(occurred),
            }
            fields.append({**field, **(given[place] if given else {})})
        return fields
