"""Rows of numbers that wait to be summed up: a row costs a copy, and summing up many at once costs little."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Columns = Mapping[str, NDArray[Any]]
CAPACITY = 1024


class Block:
    """Arrays `[CAPACITY, width]` by name, filled from the top, and handed to `sum_up` when full or when asked to."""

    def __init__(
        self, widths: Mapping[str, int], sum_up: Callable[[Columns], None], dtype: DTypeLike = np.float32
    ) -> None:
        self._arrays = {name: np.empty((CAPACITY, width), dtype) for name, width in widths.items()}
        self._sum_up = sum_up
        self._filled = 0

    def add(self, rows: int, columns: Mapping[str, Any]) -> None:
        """Take `rows` rows of each column; more than fit are summed up at once."""
        end = self._filled + rows
        if end > CAPACITY:
            self.flush()
            end = rows
            if rows > CAPACITY:
                self._sum_up(columns)
                return
        for name, array in self._arrays.items():
            array[self._filled : end] = columns[name]
        self._filled = end

    def flush(self) -> None:
        """Sum up what is there."""
        filled, self._filled = self._filled, 0
        if filled:
            self._sum_up({name: array[:filled] for name, array in self._arrays.items()})
