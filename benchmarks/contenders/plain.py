"""The policy as a team would load it without this project: TorchScript, a pickled scaler, a few lines of arithmetic.

What the contenders other than ours have in common. Imports nothing of ours.
"""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

ARTIFACT_VARIABLE = "BENCH_ARTIFACT"


class PlainPolicy:
    """Network, scaler and action bounds of the artifact that the environment names."""

    def __init__(self) -> None:
        artifact = Path(os.environ[ARTIFACT_VARIABLE])
        card = yaml.safe_load((artifact / "model_card.yaml").read_text())
        torch.set_num_threads(1)
        self.version: str = card["version"]
        self.low, self.high = (np.array(card["action"][end], np.float32) for end in ("low", "high"))
        self.scaler: Any = pickle.loads((artifact / "preprocessor.pkl").read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(artifact / "model.pt"))  # type: ignore[no-untyped-call]
            self.network: Any = torch.jit.freeze(network.eval())

    def act(self, features: Any) -> list[tuple[float, float, float]]:
        """Throttle, brake and steer for each row of scaled `features` `[rows, columns]` float32."""
        with torch.inference_mode():
            output = self.network(torch.from_numpy(features))
        mean = (output[0] if isinstance(output, tuple) else output).numpy()
        return [
            (max(acceleration, 0.0), max(-acceleration, 0.0), steer)
            for acceleration, steer in np.clip(mean, self.low, self.high).tolist()
        ]
