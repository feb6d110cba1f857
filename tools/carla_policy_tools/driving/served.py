"""Who drives when a served version does: the vehicle's own client, with its deadline and its fallback."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError
from requests.auth import AuthBase

from carla_policy.card import ModelCard
from carla_policy.golden import FloatArray
from carla_policy_client import PolicyClient
from carla_policy_tools.client import TIMEOUT_S, RefusedRequest, promoted_version
from carla_policy_tools.driving.records import Answer, Episode
from carla_policy_tools.urls import local_session, prediction_url


@dataclass
class ServedPilot:
    """Drives by the answers that `client` gets, whatever it does without one; recurrent policies keep their state.

    With a `sampling_seed` actions are sampled: the seed of each is drawn from it and the number of the episode.
    """

    client: PolicyClient
    sampling_seed: int | None = None
    _episodes: int = 0
    _random: np.random.Generator | None = None

    def begin(self) -> None:
        self.client.start_episode()
        if self.sampling_seed is not None:
            self._random = np.random.default_rng([self.sampling_seed, self._episodes])
        self._episodes += 1

    def act(self, row: FloatArray) -> Answer:
        seed = None if self._random is None else int(self._random.integers(2**63))
        action = self.client.act(row.tolist(), deterministic=seed is None, seed=seed)
        return Answer(
            np.array([action.throttle, action.brake, action.steer], np.float32),
            action.source,
            action.reason,
            action.latency_s,
            action.interventions,
            action.message,
            action.version,
            action.seed,
        )

    def report(self, episode: Episode) -> None:
        """Tell the server what `episode` was worth, in the background; one that was cut is not told."""
        if episode.ending in ("", "max_steps"):
            return
        self.client.end_episode(episode.total_return, len(episode.steps))


def served_card(url: str, version: str | None, auth: AuthBase | None = None) -> ModelCard:
    """The card of `version`, or of the promoted one, as the server at `url` tells it.

    `RefusedRequest` for a version that it does not serve, `requests.RequestException` where nobody answers,
    `ValueError` for an answer without a card.
    """
    asked = version or promoted_version(url, auth)
    with local_session(auth) as session:
        response = session.get(f"{prediction_url(url, asked)}/metadata", timeout=TIMEOUT_S)
    try:
        answer = response.json()
    except ValueError:
        answer = {}
    if not response.ok:
        raise RefusedRequest(response.status_code, answer or {"message": response.text[:200]})
    try:
        return ModelCard.model_validate_json(json.dumps(answer["card"]))
    except (KeyError, TypeError, ValidationError) as error:
        raise ValueError(
            f"{url}: the metadata of {asked} have no model card that can be read: {error!s:.200}"
        ) from None
