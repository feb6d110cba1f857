"""Fixtures: the shipped artifacts, archives built of them, and real servers of those archives."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from carla_policy.loading import LoadedPolicy, load_policy
from carla_policy_tools.archive import unpack
from carla_policy_tools.build import build
from carla_policy_tools.paths import ARTIFACTS, archive_name
from carla_policy_tools.routing.proxy import Proxy
from carla_policy_tools.routing.routes import Routes
from carla_policy_tools.settings.model import NAMES, variables_of
from carla_policy_tools.settings.sources import DEPLOYMENT_VARIABLE
from tests.fake_upstream import OLD, FakeUpstream, Vehicle
from tests.servers import ServeProcess
from tests.synthetic import make_artifact

# How long an example takes says more about the machine than about the code.
settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")

# What a developer's shell says, such as PORT or LOG_LEVEL, is not what a test asked for.
for variable in (DEPLOYMENT_VARIABLE, *(variable for name in NAMES for variable in variables_of(name))):
    os.environ.pop(variable, None)

LONGEST = ("test_drills", "test_versions", "test_containers", "test_bench_run", "test_policy_contract", "test_examples")
"""Modules of minutes: they begin first, so that at the end none of them keeps one process busy while others idle."""
PATIENCE_S = 60
SHIPPED = sorted(path.name for path in ARTIFACTS.glob("v*"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first, in this order; `--no-loadscope-reorder` keeps it."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture
def impatient() -> Iterator[None]:
    """Whoever waits for a pipe is interrupted."""

    def interrupt(*_: object) -> None:
        raise TimeoutError("it waits for a file that has no end")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(PATIENCE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """As in a worker."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with an archive of every shipped artifact."""
    directory = tmp_path_factory.mktemp("store")
    for version in SHIPPED:
        build(ARTIFACTS / version, directory)
    return directory


@pytest.fixture(scope="session")
def server(store: Path) -> Iterator[ServeProcess]:
    """All shipped versions side by side, in the realtime profile."""
    with ServeProcess(store) as process:
        yield process


@pytest.fixture
def shipped_copy(tmp_path: Path) -> Path:
    """A copy of a shipped artifact, to be damaged."""
    return Path(shutil.copytree(ARTIFACTS / SHIPPED[0], tmp_path / SHIPPED[0]))


@pytest.fixture(scope="session")
def unpacked(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpack a shipped version's archive into a directory of its own."""

    def unpack_version(version: str) -> Path:
        directory = tmp_path_factory.mktemp("unpacked")
        unpack(store / archive_name(version), directory)
        return directory

    return unpack_version


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    """A loaded policy of 5 sensors and an `[acceleration, steer]` action, quick to make."""
    root = tmp_path_factory.mktemp("synthetic")
    build(make_artifact(root, "v1.0.0"), root)
    unpack(root / archive_name("v1.0.0"), root / "unpacked")
    return load_policy(root / "unpacked")


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with two synthetic versions of 5 sensors."""
    root = tmp_path_factory.mktemp("small")
    for version in ("v1.9.0", "v1.10.0"):
        build(make_artifact(root, version), root / "store")
    return root / "store"


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory of a short path, as workers' sockets need, for a server; it is not there yet."""
    with tempfile.TemporaryDirectory(prefix="run-") as scratch:
        yield Path(scratch, "run")


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    """What the tests of routing have in TorchServe's place."""
    with FakeUpstream() as server:
        yield server


@pytest.fixture
def proxy(upstream: FakeUpstream) -> Iterator[Proxy]:
    with Proxy(upstream.address, Routes(OLD)) as running:
        yield running


@pytest.fixture
def vehicle(proxy: Proxy) -> Iterator[Vehicle]:
    with Vehicle(proxy.port) as client:
        yield client
