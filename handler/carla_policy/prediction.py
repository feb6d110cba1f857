"""What a valid prediction request consists of, whatever form it came in, and the checks that all forms share.

Numbers are float32 on both sides: an observation is rounded to it on arrival, and an action is written so that
reading it back gives the same float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from carla_policy.arrays import every
from carla_policy.card import ModelCard
from carla_policy.errors import BatchTooLarge, ErrorDetail, OutOfRange, RequestError, ShapeMismatch
from carla_policy.golden import FloatArray

MAX_DETAILS = 10


class Prediction(NamedTuple):
    """Observations `[rows, 2 + sensors]` float32, and the options."""

    observations: FloatArray
    deterministic: bool = True
    seed: int | None = None
    log_prob: bool = False
    state: FloatArray | None = None
    """To a recurrent policy, `[rows, state_size]` float32."""
    binary: bool = False
    """Whether the answer is an array, as the request was."""
    due: float | None = None
    """When (`time.perf_counter()`) the answer comes too late."""

    @property
    def is_plain(self) -> bool:
        """Whether its actions are a function of the network's outputs, so that those of many can be chosen at once."""
        return self.deterministic and not self.log_prob


def check_rows(rows: int, card: ModelCard) -> None:
    """`ShapeMismatch` for none, `BatchTooLarge` for more than the card allows."""
    limit = card.inference.max_observations
    if not rows:
        raise ShapeMismatch.at("observations", "expected at least 1 observation, got 0", "too_short")
    if rows > limit:
        message = f"expected at most {limit} observations, got {rows}; split the request"
        raise BatchTooLarge.at("observations", message, "too_long")


def within_bounds(exact: NDArray[Any], card: ModelCard) -> FloatArray:
    """`exact` `[rows, columns]` as float32; `OutOfRange` names what lies beyond the card's bounds or is no number."""
    lowest, highest = card.observation.exact_bounds
    inside = (exact >= lowest) & (exact <= highest)
    if not every(inside):
        raise _out_of_range(exact, np.argwhere(~inside), card)
    rounded: FloatArray = exact.astype(np.float32)
    return rounded


def _out_of_range(exact: NDArray[Any], outside: NDArray[np.intp], card: ModelCard) -> RequestError:
    fields = card.observation.fields
    findings = [
        (
            f"observations[{row}].{_column_path(column)}",
            f"{fields[column].name} must lie within [{fields[column].low}, {fields[column].high}] "
            f"{fields[column].unit}, got {exact[row, column]}",
            "out_of_range",
        )
        for row, column in outside[:MAX_DETAILS]
    ]
    return listing(OutOfRange, findings, len(outside))


def listing(error: type[RequestError], findings: Sequence[tuple[str, str, str]], total: int) -> RequestError:
    """An error of the first of `total` findings, each `(loc, message, type)`, that lists up to ten of them."""
    details: list[ErrorDetail] = [{"loc": loc, "msg": msg, "type": kind} for loc, msg, kind in findings[:MAX_DETAILS]]
    more = f" (and {total - 1} more)" if total > 1 else ""
    return error(f"{findings[0][0]}: {findings[0][1]}{more}", details)


def _column_path(column: int) -> str:
    return ("speed", "steering")[column] if column < 2 else f"sensors[{column - 2}]"
