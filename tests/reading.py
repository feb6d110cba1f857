"""One JSON request by itself, read as a worker reads it."""

from __future__ import annotations

from carla_policy.card import ModelCard
from carla_policy.errors import RequestError
from carla_policy.prediction import Prediction
from carla_policy.state import StateCodec
from carla_policy.wire import JsonReader


def read(body: bytes, card: ModelCard, codec: StateCodec | None = None) -> Prediction:
    """The request in `body`; raises the `RequestError` that it is answered with."""
    reader = JsonReader(card, codec)
    (prediction,) = reader.finish([reader.draft(body)])
    if isinstance(prediction, RequestError):
        raise prediction
    return prediction
