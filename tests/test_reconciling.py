"""What `reconcile` does about a version that it cannot load: it says so, after all else is mended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from carla_policy_tools.lifecycle.endpoint import announced
from carla_policy_tools.lifecycle.reconciling import reconcile
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.paths import archive_name
from tests.declared import PretendedServer, digest_of, registry_of

OLD, LOST, LATER, STRAY = "v1.0.0", "v1.1.0", "v1.2.0", "v9.0.0"


@pytest.fixture
def file(tmp_path: Path) -> RegistryFile:
    registry_file = RegistryFile.of(tmp_path / "store")
    with registry_file.locked():
        registry_file.write(registry_of(OLD, LOST, LATER))
    return registry_file


@pytest.fixture
def server(file: RegistryFile, tmp_path: Path) -> Iterator[PretendedServer]:
    """Has lost one version, has one that nobody declared, and answers with the wrong one."""
    (tmp_path / "run").mkdir()
    pretended = PretendedServer([OLD, LATER, STRAY], LATER)
    with pretended.running(), announced(file) as announcement:
        announcement.say(pretended.endpoint(tmp_path / "run"))
        yield pretended


def test_archive_that_is_gone_is_told_with_what_to_do_after_all_else_is_mended(
    file: RegistryFile, server: PretendedServer, tmp_path: Path
) -> None:
    """The server's own copy is no substitute: it is not the archive that was registered, byte for byte."""
    own = tmp_path / "run" / "store" / archive_name(LOST)
    own.parent.mkdir()
    own.write_bytes(b"a copy with a profile in it")
    with pytest.raises(RegistryError) as refused:
        reconcile(file)
    archive = file.store / archive_name(LOST)
    assert f"{archive}: cannot be read: No such file or directory; build it again" in str(refused.value)
    assert f"put the one with {digest_of(LOST)} back, or `carla-policy retire {LOST}`" in str(refused.value)
    assert server.default == OLD
    assert STRAY not in server.workers
    assert own.read_bytes() == b"a copy with a profile in it"


def test_archive_that_has_changed_is_told_with_what_to_do_after_all_else_is_mended(
    file: RegistryFile, server: PretendedServer
) -> None:
    (file.store / archive_name(LOST)).write_bytes(b"another one")
    with pytest.raises(RegistryError, match=f"has changed since {LOST} was registered; put .* retire {LOST}"):
        reconcile(file)
    assert server.default == OLD
    assert STRAY not in server.workers
