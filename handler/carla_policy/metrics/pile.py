"""What waits to be summed up: to put something there costs next to nothing, and to sum up many at once costs little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
CAPACITY = 512
"""Rows: few enough to be summed up within a fraction of a millisecond, and not to keep much memory in use."""


class Pile(Generic[Item]):
    """Items in order, handed to `sum_up` when they have come to `CAPACITY` rows, or when asked to."""

    def __init__(self, sum_up: Callable[[list[Item]], None]) -> None:
        self._sum_up = sum_up
        self._items: list[Item] = []
        self._rows = 0

    def add(self, item: Item, rows: int = 1) -> None:
        self._items.append(item)
        self._rows += rows
        if self._rows >= CAPACITY:
            self.flush()

    def flush(self) -> None:
        """Sum up what is there."""
        items, self._items, self._rows = self._items, [], 0
        if items:
            self._sum_up(items)
