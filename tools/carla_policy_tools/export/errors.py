"""What can be wrong with what a trainer left."""

from __future__ import annotations


class ExportError(ValueError):
    """What a trainer left cannot become an artifact; the message says what to do."""
