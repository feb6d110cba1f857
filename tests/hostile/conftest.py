"""Whom hostile requests are sent to: a service in this process, and a server that puts many requests into a batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from carla_policy.card import GOLDEN_FILE, load_card
from carla_policy.loading import LoadedPolicy
from carla_policy.service import PolicyService
from carla_policy_tools.paths import ARTIFACTS
from tests.hostile.http_client import Target
from tests.hostile.subject import Subject
from tests.servers import ServeProcess
from tests.synthetic import observations

EXACT = "v0.2.0"
"""Has no limits in its card: what leaves is the policy's action, bit for bit."""


@pytest.fixture(scope="package")
def subject(synthetic: LoadedPolicy) -> Subject:
    return Subject(synthetic.policy.card, observations(64, 5, seed=5))


@pytest.fixture(scope="package")
def service(synthetic: LoadedPolicy) -> PolicyService:
    return PolicyService(synthetic)


@pytest.fixture(scope="package")
def served() -> Subject:
    """A shipped version, as `target` serves it."""
    with np.load(ARTIFACTS / EXACT / GOLDEN_FILE) as golden:
        return Subject(load_card(ARTIFACTS / EXACT / "model_card.yaml"), golden["observations"])


@pytest.fixture(scope="package")
def target(server: ServeProcess) -> Target:
    """The shipped versions in the realtime profile."""
    return Target(server, EXACT)


@pytest.fixture(scope="package")
def crowded(store: Path) -> Iterator[Target]:
    """A server of its own that puts up to 64 requests into a batch."""
    with ServeProcess(store, EXACT, "--profile", "throughput") as process:
        yield Target(process, EXACT)
