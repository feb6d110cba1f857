"""What an archive tells TorchServe: one spelling of the manifest, and settings that a machine can bear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from model_archiver.model_archiver import ModelArchiver
from model_archiver.model_archiver_config import ModelArchiverConfig

from carla_policy.card import CARD_FILE, load_card
from carla_policy.errors import ArtifactError
from carla_policy_tools.manifest import CONFIG_FILE, HANDLER_FILE, MANIFEST_FILE, check_instructions, manifest_text
from carla_policy_tools.paths import ARTIFACTS, CONFIG, HANDLER_SOURCES, MODEL_NAME

CARD = load_card(ARTIFACTS / "v0.1.0" / CARD_FILE)
SETTINGS = yaml.safe_load((CONFIG / CONFIG_FILE).read_text())


def instructions(directory: Path, **changes: Any) -> Path:
    (directory / MANIFEST_FILE).parent.mkdir(exist_ok=True)
    (directory / MANIFEST_FILE).write_text(manifest_text(CARD))
    settings = {key: value for key, value in {**SETTINGS, **changes}.items() if value is not None}
    (directory / CONFIG_FILE).write_text(yaml.safe_dump(settings))
    return directory


def test_manifest_is_that_of_torch_model_archiver_but_for_its_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    ModelArchiver.generate_model_archive(
        ModelArchiverConfig(
            model_name=MODEL_NAME,
            version=CARD.version,
            handler=str(HANDLER_SOURCES / HANDLER_FILE),
            serialized_file=str(ARTIFACTS / CARD.version / CARD.model_file),
            config_file=str(CONFIG / CONFIG_FILE),
            export_path=str(tmp_path),
            archive_format="no-archive",
        )
    )
    written = json.loads((tmp_path / MODEL_NAME / MANIFEST_FILE).read_text())
    assert json.loads(manifest_text(CARD)) == {**written, "createdOn": CARD.created.strftime("%d/%m/%Y %H:%M:%S")}


def test_shipped_settings_are_accepted(tmp_path: Path) -> None:
    check_instructions(instructions(tmp_path), CARD)


@pytest.mark.parametrize("key", SETTINGS)
def test_setting_may_be_left_to_torchserve(tmp_path: Path, key: str) -> None:
    check_instructions(instructions(tmp_path, **{key: None}), CARD)


@pytest.mark.parametrize("key", SETTINGS)
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", [1], 1 << 40])
def test_setting_that_is_no_number_within_its_bounds_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ArtifactError, match=rf"^model-config\.yaml: {key}: .*got "):
        check_instructions(instructions(tmp_path, **{key: value}), CARD)


@pytest.mark.parametrize("key", ["parallelType", "torchrun", "useVenv", "deviceType"])
def test_other_settings_are_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(ArtifactError, match=rf"^model-config\.yaml: {key}: Extra inputs are not permitted"):
        check_instructions(instructions(tmp_path, **{key: 1}), CARD)


@pytest.mark.parametrize(
    ("own", "field"),
    [
        (1, "handler"),
        ({"script": "x"}, "handler.script"),
        *(({"busyPollUs": v}, "handler.busyPollUs") for v in (-1, "1", 1.5, 1 << 20)),
    ],
)
def test_setting_of_the_handler_that_it_does_not_know_or_that_is_out_of_bounds_is_refused_by_name(
    tmp_path: Path, own: Any, field: str
) -> None:
    with pytest.raises(ArtifactError, match=rf"^model-config\.yaml: {field}: .*got "):
        check_instructions(instructions(tmp_path, handler=own), CARD)


def test_worker_may_be_told_to_poll(tmp_path: Path) -> None:
    check_instructions(instructions(tmp_path, handler={"busyPollUs": 500}), CARD)
