"""Changes under way exclude each other by version; those of killed commands are found, others never."""

from __future__ import annotations

import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from carla_policy_tools.lifecycle import intents
from carla_policy_tools.lifecycle.events import operator
from carla_policy_tools.lifecycle.intents import any_interrupted, intent, interrupted, under_way
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.lifecycle.settling import settle
from tests.declared import registry_of
from tests.elsewhere import FORK, changing, ended, leave_interrupted, started

VERSION = "v1.1.0"


@pytest.fixture
def file(tmp_path: Path) -> RegistryFile:
    """Of two versions, the first promoted."""
    file = RegistryFile.of(tmp_path)
    file.write(registry_of("v1.0.0", VERSION))
    return file


def test_gate_is_announced_and_excludes_another_gate_but_no_change(file: RegistryFile) -> None:
    with intent(file, "gate", VERSION):
        assert [(found.verb, found.version, found.is_change) for found in under_way(file)] == [("gate", VERSION, False)]
        with intent(file, "rollback", VERSION):
            assert [found.verb for found in under_way(file)] == ["rollback", "gate"]
        with pytest.raises(RegistryError, match=f"{VERSION}: another gate is under way: gate {VERSION} by"):
            intent(file, "gate", VERSION).__enter__()
        assert not any_interrupted(file)
    assert under_way(file) == []


def test_change_is_announced_until_it_ends(file: RegistryFile) -> None:
    assert under_way(file) == []
    with intent(file, "retire", VERSION):
        (found,) = under_way(file)
        assert (found.version, found.verb, found.by) == (VERSION, "retire", operator())
    assert under_way(file) == []
    assert list(file.intents_directory.iterdir()) == []


def test_change_that_fails_is_not_under_way_any_more(file: RegistryFile) -> None:
    with pytest.raises(KeyError), intent(file, "retire", VERSION):
        raise KeyError
    assert under_way(file) == []


def test_second_change_of_a_version_is_refused_with_who_and_since_when(file: RegistryFile) -> None:
    with changing(file, "retire", VERSION):
        (found,) = under_way(file)
        with pytest.raises(RegistryError) as caught, intent(file, "promote", VERSION):
            pytest.fail("two changes of one version")
        assert f"{VERSION}: another change is under way: retire {VERSION} by {operator()} since 2" in str(caught.value)
        assert under_way(file) == [found]
        with intent(file, "promote", "v1.0.0"):
            assert [change.version for change in under_way(file)] == ["v1.0.0", VERSION]


def test_patient_change_begins_when_the_other_ends(file: RegistryFile) -> None:
    order = []
    entered = threading.Event()

    def wait_and_change() -> None:
        entered.set()
        with intent(file, "promote", VERSION, patience_s=30):
            order.append("second")

    with intent(file, "retire", VERSION):
        second = threading.Thread(target=wait_and_change)
        second.start()
        entered.wait()
        time.sleep(0.05)
        order.append("first")
    second.join()
    assert order == ["first", "second"]


def claim(file: RegistryFile, together: Barrier, all_tried: Barrier, report: Connection) -> None:
    together.wait()
    try:
        with intent(file, "retire", VERSION):
            report.send("won")
            all_tried.wait()
    except RegistryError as error:
        report.send(str(error))
        all_tried.wait()


def test_of_eight_that_claim_a_version_at_once_exactly_one_wins(file: RegistryFile) -> None:
    for _ in range(5):
        together, all_tried = FORK.Barrier(8), FORK.Barrier(8)
        pipes = [FORK.Pipe(duplex=False) for _ in range(8)]
        processes = [started(claim, file, together, all_tried, sender) for _, sender in pipes]
        results = [receiver.recv() for receiver, _ in pipes]
        assert {ended(process) for process in processes} == {0}
        for end in (end for pipe in pipes for end in pipe):
            end.close()
        assert results.count("won") == 1
        assert sum("another change is under way" in result for result in results) == 7


def test_change_of_a_killed_command_is_found_once_and_a_live_one_is_not(file: RegistryFile) -> None:
    leave_interrupted(file, "retire", VERSION)
    assert any_interrupted(file)
    with changing(file, "register", "v1.2.0"):
        with file.locked(), interrupted(file) as found:
            assert [(change.verb, change.version) for change in found] == [("retire", VERSION)]
        with file.locked(), interrupted(file) as found:
            assert found == []
        assert not any_interrupted(file)
        assert [change.version for change in under_way(file)] == ["v1.2.0"]


def test_change_stays_interrupted_until_it_could_be_taken_back(file: RegistryFile) -> None:
    leave_interrupted(file, "retire", VERSION)
    with pytest.raises(OSError, match="no server"), interrupted(file):
        raise OSError("no server")
    with interrupted(file) as found:
        assert len(found) == 1


def test_interrupted_change_is_not_overwritten_by_the_next(file: RegistryFile) -> None:
    leave_interrupted(file, "retire", VERSION)
    with pytest.raises(RegistryError, match=f"retire {VERSION} by"), intent(file, "promote", VERSION):
        pytest.fail("an interrupted change was overwritten")
    assert [change.verb for change in under_way(file)] == ["retire"]


def test_change_that_was_interrupted_just_before_the_next_claims_is_not_overwritten(
    file: RegistryFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock_late(descriptor: int) -> bool:
        monkeypatch.undo()
        leave_interrupted(file, "retire", VERSION)
        return intents.try_lock(descriptor)

    monkeypatch.setattr(intents, "try_lock", lock_late)
    with pytest.raises(RegistryError, match=f"retire {VERSION} by"), intent(file, "promote", VERSION):
        pytest.fail("an interrupted change was overwritten")


def test_change_that_claims_while_the_one_before_it_ends_is_announced(
    file: RegistryFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock_late(descriptor: int) -> bool:
        monkeypatch.undo()
        (file.intents_directory / VERSION).unlink()
        return intents.try_lock(descriptor)

    monkeypatch.setattr(intents, "try_lock", lock_late)
    with intent(file, "promote", VERSION, patience_s=30):
        assert [change.verb for change in under_way(file)] == ["promote"]


@pytest.mark.parametrize("content", [b"not JSON", b"[]", b'{"verb": "retire"}', b"\xff"])
def test_intent_that_cannot_be_read_is_still_one(file: RegistryFile, content: bytes) -> None:
    leave_interrupted(file, "retire", VERSION)
    (file.intents_directory / VERSION).write_bytes(content)
    with interrupted(file) as found:
        assert [str(change) for change in found] == [f"change {VERSION} by an unknown operator since an unknown time"]


def test_command_that_was_killed_before_it_wrote_its_intent_had_begun_nothing(file: RegistryFile) -> None:
    before = file.read()
    file.intents_directory.mkdir()
    (file.intents_directory / VERSION).touch()
    assert settle(file, None) == file.read() == before
    assert list(file.intents_directory.iterdir()) == []


@pytest.mark.parametrize("name", ["v1.1.0~", ".v1.1.0.swp", "1.1.0", "a directory"])
def test_file_whose_name_is_no_version_is_nobody_s_change(file: RegistryFile, name: str) -> None:
    before = file.read()
    path = file.intents_directory / name
    path.parent.mkdir()
    assert not any_interrupted(file)
    if "directory" in name:
        path.mkdir()
    else:
        path.write_text("{}")
    assert under_way(file) == []
    assert not any_interrupted(file)
    assert settle(file, None) == file.read() == before
    assert path.exists()
