"""What a running server says of a version, and observations that this version takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import requests

from carla_policy.card import ModelCard
from carla_policy.golden import FloatArray
from carla_policy_tools.client import RefusedRequest, golden_observations, promoted_version
from carla_policy_tools.paths import archive_name
from carla_policy_tools.urls import local_session, prediction_url

POOL_ROWS = 512
TIMEOUT_S = 30.0


class NotServed(RuntimeError):
    """A server does not say what a load test has to know."""


@dataclass(frozen=True)
class Served:
    """A version as its own metadata describe it, and `pool` `[rows, 2 + sensors]` float32 of observations for it."""

    card: ModelCard
    pool: FloatArray

    @property
    def version(self) -> str:
        return self.card.version

    @property
    def is_recurrent(self) -> bool:
        return self.card.recurrent is not None

    @property
    def most_rows(self) -> int:
        """That one request may have."""
        return self.card.inference.max_observations

    def rows(self, count: int, start: int = 0) -> FloatArray:
        """`count` observations from number `start` of the pool on, over and over."""
        picked: FloatArray = self.pool[np.arange(start, start + count) % len(self.pool)]
        return picked


@lru_cache
def promoted(base: str) -> str:
    """The version that answers at `base` where none is named; asked once."""
    try:
        return promoted_version(base)
    except (RefusedRequest, requests.RequestException) as error:
        raise NotServed(f"{base}: no version answers where none is named: {error}") from None


@lru_cache
def served(base: str, version: str, store: str = "") -> Served:
    """What `version` at `base` is; asked once.

    The observations are the golden ones of its archive in `store`. Without a store they are drawn from the range that
    training saw, where the card has it, or else from the bounds. `NotServed` says what is missing.
    """
    url = f"{prediction_url(base, version)}/metadata"
    try:
        with local_session() as session:
            response = session.get(url, timeout=TIMEOUT_S)
        response.raise_for_status()
        card = ModelCard.model_validate_json(json.dumps(response.json()["card"]))
        pool = golden_observations(Path(store, archive_name(version)))[0] if store else drawn(card)
    except (requests.RequestException, OSError, ValueError, KeyError) as error:
        raise NotServed(f"{url}: cannot tell what {version} takes: {error}") from None
    return Served(card, pool)


def forget() -> None:
    """What was asked once, so that it is asked again."""
    promoted.cache_clear()
    served.cache_clear()


def drawn(card: ModelCard, rows: int = POOL_ROWS, seed: int = 0) -> FloatArray:
    """Observations `[rows, 2 + sensors]` float32 within what training saw or the card's bounds."""
    low, high = card.observation.bounds
    seen = [field.seen or (field.low, field.high) for field in card.observation.fields]
    begin, end = np.array(seen, np.float64).T
    values = np.random.default_rng(seed).uniform(begin, end, (rows, len(seen))).astype(np.float32)
    within: FloatArray = np.clip(values, low, high)
    return within
