"""The one spelling of a version: `vMAJOR.MINOR.PATCH`, as in directory, card, URL, manifest, answer and metrics."""

from __future__ import annotations

import re

_SPELLING = re.compile(r"v(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")


CANDIDATE = "-candidate-"
"""In a model's name: a version that is tried before it is registered. Nobody drives with it: it has no metrics."""


def check_version(text: str) -> str:
    """`text` itself if it is spelled `v1.2.3`, else `ValueError`."""
    if not _SPELLING.fullmatch(text):
        raise ValueError(f"{text!r} is not a version: expected vMAJOR.MINOR.PATCH without leading zeros, as in v1.2.3")
    return text


def parse_version(text: str) -> str:
    """The version that a person means by `v1.2.3` or `1.2.3`, spelled `v1.2.3`; `ValueError` for anything else."""
    return check_version(text if text.startswith("v") else f"v{text}")


def version_key(version: str) -> tuple[int, ...]:
    """Sort key: `v0.10.0` comes after `v0.9.0`."""
    return tuple(int(part) for part in check_version(version)[1:].split("."))
