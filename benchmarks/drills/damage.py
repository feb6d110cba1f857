"""Archives that look like any other and cannot be served, one for each way of failing, or are a burden to serve."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.archives import SECOND, copy_artifact, repack
from carla_policy.card import CARD_FILE, GOLDEN_FILE, ModelCard, load_card
from carla_policy.preprocessing import COMPILED_FILE
from carla_policy_tools.archive import pack, unpack
from carla_policy_tools.artifact import load_training_preprocessor, seal
from carla_policy_tools.client import request_body
from carla_policy_tools.compilation import compile_preprocessor
from carla_policy_tools.manifest import HANDLER_FILE
from carla_policy_tools.paths import archive_name

_INITIALIZE = "    def initialize(self, context: Context) -> None:\n"
_HANDLE = "    def handle(self, data: list[dict[str, Any]], context: Context) -> list[Any]:\n"
_ANSWERS = "return [answer.body for answer in answers]"
_OTHER_ANSWERS = """if {condition}:
            return [answer.body.replace(b'"brake":0.', b'"brake":0.5') for answer in answers]
        """
_IN_WORKER = 'sys.argv[0].endswith("model_service_worker.py")'
_HANG = "        while {condition}:\n            __import__('time').sleep(1)\n"


def _truncate_model(artifact: Path) -> None:
    data = (artifact / "model.pt").read_bytes()
    (artifact / "model.pt").write_bytes(data[: len(data) // 2])


def _change_golden(artifact: Path) -> None:
    with np.load(artifact / GOLDEN_FILE) as golden:
        arrays = dict(golden)
    arrays["deterministic_actions"] = arrays["deterministic_actions"].copy()
    arrays["deterministic_actions"][3] += np.float32(0.125)
    np.savez(artifact / GOLDEN_FILE, **arrays)


def _remove_file(directory: Path) -> None:
    (directory / COMPILED_FILE).unlink()
    (directory / "carla_policy" / "heads.py").unlink()


def _edit_handler(edit: Callable[[str], str]) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / HANDLER_FILE
        before = path.read_text()
        after = edit(before)
        if after == before:
            raise ValueError(f"{HANDLER_FILE}: has not the lines that this damage changes")
        path.write_text(after)

    return change


OF_THE_ARTIFACT: dict[str, Callable[[Path], None]] = {
    "truncated model": _truncate_model,
    "golden mismatch": _change_golden,
}


def _insert(after: str, text: str) -> Callable[[Path], None]:
    return _edit_handler(lambda source: source.replace(after, after + text))


def _append(statement: str) -> Callable[[Path], None]:
    return _edit_handler(lambda source: f"{source}\nif {_IN_WORKER}:\n    {statement}\n")


OF_THE_ARCHIVE: dict[str, Callable[[Path], None]] = {
    "missing file": _remove_file,
    "hangs in verification": _insert(_INITIALIZE, _HANG.format(condition="True")),
    # From here on only a server's worker is affected: verification alone, in another process, finds nothing.
    "hangs in initialize": _insert(_INITIALIZE, _HANG.format(condition=_IN_WORKER)),
    "hangs in handle": _insert(_HANDLE, _HANG.format(condition=_IN_WORKER)),
    "raises at import": _append("raise OSError('no such device')"),
    "exits at once": _append("os._exit(3)"),
    "answers differently": _edit_handler(
        lambda source: source.replace(_ANSWERS, _OTHER_ANSWERS.format(condition=_IN_WORKER) + _ANSWERS)
    ),
}
KINDS = (*OF_THE_ARTIFACT, *OF_THE_ARCHIVE)


def broken_archive(kind: str, version: str, store: Path) -> Path:
    """Write an archive of `version` into `store` that is broken as `kind`, one of `KINDS`, says.

    Its digests fit, so that only loading or using it can tell.
    """
    return _write_archive(version, store, OF_THE_ARTIFACT.get(kind, _leave), OF_THE_ARCHIVE.get(kind))


def burdened_archive(statement: str, version: str, store: Path) -> Path:
    """Write an archive of `version` into `store` that answers as it should, but slowly, or at a cost.

    Its workers run `statement` before each batch, in which `data` are the batch's rows and `self` is the handler.
    """
    before_each_batch = _insert(_HANDLE, f"        if {_IN_WORKER}:\n            {statement}\n")
    return _write_archive(version, store, _leave, before_each_batch)


class _Trap(torch.nn.Module):
    """A network that never answers a row of features whose number `column` is above `limit`."""

    def __init__(self, network: Any, column: int, limit: float) -> None:
        super().__init__()
        self.network = network
        self.column = column
        self.limit = limit

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        while bool((features[:, self.column] > self.limit).any()):
            features = features + 0.0
        outputs: tuple[torch.Tensor, torch.Tensor] = self.network(features)
        return outputs


def hanging_archive(version: str, store: Path, deadline_ms: float) -> bytes:
    """Write an archive of `version` whose network hangs on one request, which is returned.

    It answers all others as it should. Its card has a deadline.
    """
    asked: list[bytes] = []

    def lay(artifact: Path) -> None:
        card_file = artifact / CARD_FILE
        card = load_card(card_file)
        with np.load(artifact / GOLDEN_FILE) as golden:
            observations, features = golden["observations"], golden["features"]
        trap = observations[:1].copy()
        trap[0, 2:] = [field.high for field in card.observation.fields[2:]]
        above = load_training_preprocessor(artifact, card)(trap)[0] - features.max(axis=0)
        column = int(above.argmax())
        if not above[column] > 0:
            raise ValueError(f"{artifact}: no observation within its bounds is beyond all golden ones")
        limit = float(features[:, column].max() + above[column] / 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit
            network: Any = torch.jit.load(artifact / "model.pt")  # type: ignore[no-untyped-call]
            trapped: Any = torch.jit.script(_Trap(network, column, limit).eval())
        trapped.save(artifact / "model.pt")
        content = yaml.safe_load(card_file.read_text())
        content["inference"] = {**content.get("inference", {}), "deadline_ms": float(deadline_ms)}
        card_file.write_text(yaml.safe_dump(content, sort_keys=False))
        asked.append(json.dumps(request_body(trap)).encode())

    _write_archive(version, store, lay, None)
    return asked[0]


def _leave(artifact: Path) -> None:
    """Damage nothing."""


def _write_archive(
    version: str, store: Path, of_artifact: Callable[[Path], None], of_archive: Callable[[Path], None] | None
) -> Path:
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="carla-policy-drill-") as scratch:
        artifact = copy_artifact(SECOND, version, Path(scratch))
        compiled = compile_preprocessor(
            load_training_preprocessor(artifact, load_card(artifact / CARD_FILE)),
            np.load(artifact / GOLDEN_FILE)["observations"],
        )
        of_artifact(artifact)
        card: ModelCard = seal(artifact)
        archive = store / archive_name(version)
        archive.write_bytes(pack(artifact, card, compiled))
        if of_archive:
            directory = Path(scratch, "unpacked")
            directory.mkdir()
            unpack(archive, directory)
            of_archive(directory)
            repack(directory, archive)
    return archive
