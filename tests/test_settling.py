"""What a killed command had begun is taken back, or recorded where it cannot be; nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from carla_policy_tools.lifecycle.events import Event, operator
from carla_policy_tools.lifecycle.intents import intent, under_way
from carla_policy_tools.lifecycle.management import Management
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.lifecycle.settling import settle
from tests.declared import PretendedServer, changed, registry_of
from tests.elsewhere import leave_interrupted

VERSION = "v1.1.0"


@pytest.fixture
def file(tmp_path: Path) -> RegistryFile:
    """Of two versions, the first promoted."""
    file = RegistryFile.of(tmp_path)
    file.write(registry_of("v1.0.0", VERSION))
    return file


class Settled:
    """What settling did: to the server, and to the registry."""

    def __init__(self, file: RegistryFile, server: PretendedServer | None) -> None:
        before = file.read()
        if server is None:
            self.registry = settle(file, None)
        else:
            with server.running(), Management(server.url) as management:
                self.registry = settle(file, management)
        assert self.registry == file.read()
        self.events: list[Event] = list(self.registry.history[before.sequence :])
        self.verbs = [(event.verb, event.version) for event in self.events]
        self.writes = server.writes if server else []


def test_interrupted_registration_is_unregistered(file: RegistryFile) -> None:
    leave_interrupted(file, "register", "v1.2.0")
    settled = Settled(file, PretendedServer(["v1.0.0", VERSION, "v1.2.0"], "v1.0.0"))
    assert settled.writes == ["unregister v1.2.0"]
    assert settled.verbs == [("undo", "v1.2.0")]
    assert settled.events[0].reason.startswith(f"interrupted: register v1.2.0 by {operator()} since 2")
    assert under_way(file) == []


def test_version_that_was_being_tried_out_is_unloaded(file: RegistryFile) -> None:
    leave_interrupted(file, "register", "v1.2.0")
    server = PretendedServer(["v1.0.0", VERSION], "v1.0.0")
    server.candidates.add("v1.2.0")
    assert Settled(file, server).writes == ["unload candidate v1.2.0"]


def test_copies_of_a_killed_gate_are_unloaded_and_nothing_else_is_changed(file: RegistryFile) -> None:
    leave_interrupted(file, "gate", VERSION)
    server = PretendedServer(["v1.0.0", VERSION], VERSION)
    server.candidates |= {"v1.0.0", VERSION}
    settled = Settled(file, server)
    assert settled.writes == [f"unload candidate {VERSION}", "unload candidate v1.0.0"]
    assert (settled.verbs, under_way(file)) == ([], [])


def test_interrupted_registration_that_had_become_the_default_is_unregistered(file: RegistryFile) -> None:
    leave_interrupted(file, "register", "v1.2.0")
    settled = Settled(file, PretendedServer(["v1.0.0", VERSION, "v1.2.0"], "v1.2.0"))
    assert settled.writes == ["promote v1.0.0", "unregister v1.2.0"]


def test_interrupted_promotion_is_set_back(file: RegistryFile) -> None:
    leave_interrupted(file, "promote", VERSION)
    settled = Settled(file, PretendedServer(["v1.0.0", VERSION], VERSION))
    assert settled.writes == ["promote v1.0.0"]
    assert settled.verbs == [("undo", VERSION)]
    assert settled.registry.promoted == "v1.0.0"


def test_retirement_interrupted_after_the_version_was_unregistered_is_recorded(file: RegistryFile) -> None:
    leave_interrupted(file, "retire", VERSION)
    settled = Settled(file, PretendedServer(["v1.0.0"], "v1.0.0"))
    assert settled.writes == []
    assert settled.verbs == [("retire", VERSION)]
    assert list(settled.registry.versions) == ["v1.0.0"]


def test_retirement_interrupted_before_that_is_undone(file: RegistryFile) -> None:
    leave_interrupted(file, "retire", VERSION)
    settled = Settled(file, PretendedServer(["v1.0.0", VERSION], "v1.0.0"))
    assert settled.writes == []
    assert settled.verbs == [("undo", VERSION)]
    assert list(settled.registry.versions) == ["v1.0.0", VERSION]


def test_version_that_is_missing_after_another_change_is_not_retired(file: RegistryFile) -> None:
    leave_interrupted(file, "promote", VERSION)
    settled = Settled(file, PretendedServer(["v1.0.0"], "v1.0.0"))
    assert settled.verbs == [("undo", VERSION)]
    assert VERSION in settled.registry.versions


@pytest.mark.parametrize(
    ("verb", "version"),
    [("register", VERSION), ("promote", "v1.0.0"), ("rollback", "v1.0.0"), ("retire", "v0.9.0"), ("split", VERSION)],
)
def test_change_that_was_recorded_before_its_command_was_killed_holds(
    file: RegistryFile, verb: str, version: str
) -> None:
    leave_interrupted(file, verb, version)
    settled = Settled(file, PretendedServer(["v1.0.0", VERSION], "v1.0.0"))
    assert (settled.writes, settled.verbs, under_way(file)) == ([], [], [])


def test_promoted_version_that_the_server_has_lost_is_left_to_reconcile(file: RegistryFile) -> None:
    leave_interrupted(file, "promote", VERSION)
    assert Settled(file, PretendedServer([VERSION], VERSION)).writes == []


def test_several_interrupted_changes_are_settled_together(file: RegistryFile) -> None:
    for verb, version in (("retire", VERSION), ("register", "v1.2.0")):
        leave_interrupted(file, verb, version)
    settled = Settled(file, PretendedServer(["v1.0.0", "v1.2.0"], "v1.2.0"))
    assert settled.verbs == [("retire", VERSION), ("undo", "v1.2.0")]
    assert settled.writes == ["promote v1.0.0", "unregister v1.2.0"]


@pytest.mark.parametrize(("verb", "version"), [("register", "v1.2.0"), ("promote", VERSION), ("retire", VERSION)])
def test_without_a_server_an_interrupted_change_is_only_noted(file: RegistryFile, verb: str, version: str) -> None:
    leave_interrupted(file, verb, version)
    settled = Settled(file, None)
    assert settled.verbs == [("undo", version)]
    assert under_way(file) == []
    assert changed(settled.registry, "promote", VERSION).promoted == VERSION


def test_where_nothing_was_interrupted_nothing_is_written(file: RegistryFile) -> None:
    before = file.path.stat()
    with intent(file, "retire", VERSION):
        settled = Settled(file, PretendedServer(["v1.0.0", VERSION, "v1.9.0"], VERSION))
    after = file.path.stat()
    assert (settled.writes, settled.verbs) == ([], [])
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_registry_that_never_was_is_settled_without_a_file(tmp_path: Path) -> None:
    file = RegistryFile.of(tmp_path)
    assert settle(file, None) == Registry()
    assert not file.exists()
