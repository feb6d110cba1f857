"""Travels in the no-op contender's archive: answers the same bytes to everything."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ts.torch_handler.base_handler import BaseHandler


class NoopHandler(BaseHandler):  # type: ignore[misc]
    """Logs as little as our handler does."""

    def initialize(self, context: Any) -> None:
        """Read the answer."""
        logging.getLogger().setLevel(logging.WARNING)
        self.answer = Path(context.system_properties["model_dir"], "answer.json").read_bytes()
        self.initialized = True

    def handle(self, data: list[Any], context: Any) -> list[bytes]:
        """The answer, as JSON, once for each request of the batch."""
        for index in range(len(data)):
            context.set_response_content_type(index, "application/json")
        return [self.answer] * len(data)
