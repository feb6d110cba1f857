"""Hostile files, made by code and never stored: each attack writes into an artifact, an archive or a model directory.

Whatever an attack would run writes a marker file, so that a test sees whether it ran.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Attack:
    """`apply(directory, marker)` damages a directory; `refusal` is a pattern of what must be said about it."""

    name: str
    apply: Callable[[Path, Path], None]
    refusal: str

    def __str__(self) -> str:
        return self.name
