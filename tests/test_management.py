"""The management API is asked again where TorchServe fails by chance, and only where asking twice does no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from carla_policy_tools.lifecycle.management import Management
from carla_policy_tools.lifecycle.registry import RegistryError
from tests.declared import PretendedServer

OLD, NEW = "v1.0.0", "v1.1.0"
REPEATABLE: dict[str, Callable[[Management], Any]] = {
    "versions": lambda management: list(management.versions()),
    "version": lambda management: management.version(NEW).version,
    "default": lambda management: management.default(),
    "scale": lambda management: management.scale(NEW, 2),
}


@pytest.fixture
def server() -> Iterator[PretendedServer]:
    with PretendedServer([OLD, NEW], OLD).running() as running:
        yield running


@pytest.mark.parametrize(
    ("name", "answer"), [("versions", [OLD, NEW]), ("version", NEW), ("default", OLD), ("scale", None)]
)
def test_what_may_be_asked_twice_is_where_the_server_fails_by_chance(
    server: PretendedServer, name: str, answer: Any
) -> None:
    server.failures = 3
    with Management(server.url) as management:
        assert REPEATABLE[name](management) == answer
    assert server.writes == (["scale v1.1.0"] if name == "scale" else [])


@pytest.mark.parametrize("name", REPEATABLE)
def test_a_server_that_goes_on_failing_is_told(server: PretendedServer, name: str) -> None:
    server.failures = 1000
    with Management(server.url) as management, pytest.raises(RegistryError, match=r"500: .*ConcurrentModification"):
        REPEATABLE[name](management)
    assert 2 <= 1000 - server.failures <= 10


def test_a_promotion_is_asked_once(server: PretendedServer) -> None:
    server.failures = 1
    with Management(server.url) as management, pytest.raises(RegistryError, match=r"promote v1\.1\.0"):
        management.set_default(NEW)
    assert server.failures == 0
    assert server.default == OLD
