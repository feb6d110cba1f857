"""What workers say in the log is told apart by version and by time, and their own reason comes first."""

from __future__ import annotations

import json
from pathlib import Path

from carla_policy_tools.worker_log import WorkerLog, is_death, load_failure, words


def line(version: str, text: str, stream: str = "stdout", event: str = "worker_output") -> str:
    said = {"message": text} if event else {}
    thread = f"W-9000-carla_policy_{version}-{stream}"
    return json.dumps({"time": "2025-01-01T00:00:00.000Z", "event": event, **said, "thread": thread}) + "\n"


def refusal(version: str) -> str:
    return line(version, "model.pt: content has changed", event="load_failed")


DEATH = "Backend worker process died."


def test_log_line_names_the_version_and_its_reason() -> None:
    assert load_failure(refusal("v1.2.3")) == ("v1.2.3", "model.pt: content has changed")
    assert load_failure(line("v1.2.3", DEATH)) is None
    assert load_failure(line("v1.2.3", "load_failed")) is None
    assert load_failure("load_failed: who?") is None
    assert is_death(line("v1.2.3", DEATH))
    assert not is_death(refusal("v1.2.3"))


def test_line_is_told_to_people_without_what_is_for_machines() -> None:
    assert words(line("v1.2.3", "gone").rstrip()) == "gone"
    assert words("no event") == "no event"
    assert words(json.dumps({"message": "m", "exception": "E: x\n\tat y\n"})) == "m\nE: x\n\tat y"
    assert words(json.dumps({"message": "m", "error": {"type": "OSError", "message": "x"}})) == "m: OSError: x"


def test_only_what_the_version_s_workers_say_from_now_on_counts(tmp_path: Path) -> None:
    path = tmp_path / "torchserve.log"
    path.write_text(refusal("v1.2.3"))
    log = WorkerLog(path, "v1.2.3")
    assert not log.has_failed()
    assert log.last_words() == "its workers said nothing"
    with path.open("ab") as file:
        file.write(
            refusal("v1.2.30").encode()
            + line("v1.2.3", "half a character: X", "stderr").encode().replace(b"X", b"\xc3")
        )
        file.write(refusal("v1.2.3").encode()[:40])
    assert not log.has_failed()
    assert log.last_words() == "half a character: \ufffd"
    with path.open("a") as file:
        file.write(refusal("v1.2.3")[40:] + line("v1.2.3", DEATH))
    assert log.has_failed()
    assert log.reason() == "model.pt: content has changed"


def test_worker_that_died_without_a_reason_is_quoted_with_its_last_exception(tmp_path: Path) -> None:
    path = tmp_path / "torchserve.log"
    log = WorkerLog(path, "v1.2.3")
    assert not log.has_failed()
    said = [
        "Traceback (most recent call last):",
        '  File "handler.py", line 1',
        "OSError: no such device",
        DEATH,
        "bye",
    ]
    path.write_text("".join(line("v1.2.3", text) for text in said))
    assert log.has_failed()
    assert log.reason() == "OSError: no such device"


def test_worker_that_died_without_an_exception_is_quoted_with_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "torchserve.log"
    log = WorkerLog(path, "v1.2.3")
    path.write_text(line("v1.2.3", DEATH) + line("v1.2.3", "gone"))
    assert (log.has_failed(), log.reason()) == (True, "gone")


def test_version_that_is_tried_out_is_the_version(tmp_path: Path) -> None:
    path = tmp_path / "torchserve.log"
    log = WorkerLog(path, "v1.2.3")
    path.write_text(refusal("v1.2.3").replace("carla_policy_", "carla_policy-candidate-v1.2.3_"))
    assert log.reason() == "model.pt: content has changed"


def test_log_that_was_begun_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "torchserve.log"
    path.write_text(line("v1.2.3", "x" * 1000))
    log = WorkerLog(path, "v1.2.3")
    path.write_text(refusal("v1.2.3"))
    assert log.has_failed()
    assert log.reason() == "model.pt: content has changed"
