"""Travels in the textbook contender's archive: a TorchServe handler as tutorials write one."""

from __future__ import annotations

import os
import pickle
import time
from typing import Any

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class TextbookHandler(BaseHandler):  # type: ignore[misc]
    """TorchServe decodes the JSON, the base class times the request, each row is scaled and answered by itself."""

    def initialize(self, context: Any) -> None:
        """Load network and scaler."""
        directory = context.system_properties["model_dir"]
        torch.set_num_threads(1)
        self.version = context.manifest["model"]["modelVersion"]
        self.model = torch.jit.load(os.path.join(directory, "model.pt"))  # type: ignore[no-untyped-call] # noqa: PTH118
        self.model.eval()
        with open(os.path.join(directory, "preprocessor.pkl"), "rb") as file:  # noqa: PTH118, PTH123
            self.scaler = pickle.load(file)
        self.initialized = True

    def preprocess(self, data: list[Any]) -> tuple[list[int], torch.Tensor]:
        """Scaled features of all rows, and how many rows each request has."""
        counts, rows = [], []
        for request in data:
            observations = (request.get("body") or request.get("data"))["observations"]
            counts.append(len(observations))
            for observation in observations:
                row = [observation["speed"], observation["steering"], *observation["sensors"]]
                rows.append(self.scaler.transform(np.array([row]))[0])
        return counts, torch.tensor(np.array(rows), dtype=torch.float32)

    def inference(self, data: tuple[list[int], torch.Tensor], *_: Any, **__: Any) -> tuple[list[int], torch.Tensor]:
        """The mean of the action's distribution."""
        counts, features = data
        with torch.no_grad():
            output = self.model(features)
        return counts, output[0] if isinstance(output, tuple) else output

    def postprocess(self, data: tuple[list[int], torch.Tensor]) -> list[dict[str, Any]]:
        """A dictionary for each request; TorchServe encodes it."""
        counts, means = data
        started, answers, position = time.time(), [], 0
        for count in counts:
            actions = []
            for mean in means[position : position + count]:
                acceleration, steer = (min(max(value.item(), -1.0), 1.0) for value in mean)
                actions.append({"throttle": max(acceleration, 0.0), "brake": max(-acceleration, 0.0), "steer": steer})
            position += count
            elapsed_ms = (time.time() - started) * 1000
            answers.append({"actions": actions, "version": self.version, "timingMs": elapsed_ms, "deterministic": True})
        return answers
