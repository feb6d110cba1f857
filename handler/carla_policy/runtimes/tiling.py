"""Run a network in tiles of a fixed number of rows.

A matrix product may round differently for another number of rows. So every forward pass has exactly `tile` rows,
the last one padded, and a row's bits depend on nothing but the row. With a tile of one row they are also the bits
of a training framework that predicts one observation at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from carla_policy.golden import FloatArray

NEXT_STATE = "next_state"


@dataclass(frozen=True)
class Signature:
    """What goes into a network and comes out of it, by name, with the columns of each; rows come first in all."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    def zeros(self, rows: int) -> list[FloatArray]:
        """Inputs to try a network with."""
        return [np.zeros((rows, width), np.float32) for width in self.inputs.values()]


class Runtime(ABC):
    """A network, its tile, and the device that it runs on."""

    def __init__(self, signature: Signature, tile: int, device: str) -> None:
        self.signature = signature
        self.tile = tile
        self.device = device

    def __call__(self, *inputs: FloatArray) -> dict[str, FloatArray]:
        """Outputs by name, each `[rows, width]` float32, of inputs `[rows, width]` in the signature's order."""
        rows = len(inputs[0])
        padding = -rows % self.tile
        outputs = self.run([_padded(part, padding) for part in inputs] if padding else inputs)
        named = zip(self.signature.outputs, outputs, strict=True)
        return {name: values[:rows] for name, values in named} if padding else dict(named)

    @abstractmethod
    def run(self, inputs: Sequence[FloatArray]) -> list[FloatArray]:
        """All outputs of inputs whose rows are a multiple of the tile, each forward pass with one tile."""


def _padded(part: FloatArray, padding: int) -> FloatArray:
    return np.concatenate([part, np.repeat(part[-1:], padding, axis=0)])
