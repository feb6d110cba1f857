"""Load an unpacked archive as a TorchServe worker would, with nothing of this project on the path, and replay it.

Run as a script in a process of its own, `python -I isolated_replay.py MODEL_DIR`, which imports only the standard
library, installed packages and what the archive carries. Prints one JSON object: parity per stage, or the reason why
the version must not be served.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any


def main(model_dir: Path) -> dict[str, object]:
    os.chdir(model_dir)
    sys.path[:] = [str(model_dir), *_installed()]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in repr(finder)]
    logging.disable(logging.CRITICAL)

    from ts.model_loader import TsModelLoader

    import policy_handler  # noqa: F401 - TorchServe's loader hides why an import fails

    service = TsModelLoader().load("carla_policy", str(model_dir), "policy_handler.py", None, 1)
    _check_origins(model_dir)
    handler = service._entry_point.__self__
    metadata, card = handler.describe_handle(), handler.service.loaded.policy.card
    _check_answers(service)
    return {
        "version": metadata["version"],
        "preprocessor": metadata["preprocessor"],
        "vectors": metadata["selfTest"]["vectors"],
        "gate": card.gate,
        "stages": metadata["selfTest"]["stages"],
    }


def _installed() -> list[str]:
    """The import path without checkouts that were installed in editable mode."""
    roots = [sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")]
    return [
        entry for entry in sys.path if entry.endswith(".zip") or any(Path(entry).is_relative_to(root) for root in roots)
    ]


def _check_origins(model_dir: Path) -> None:
    """Every module of the serving code must have come from the archive."""
    for name, module in sorted(sys.modules.items()):
        origin = str(getattr(module, "__file__", None))
        if name.partition(".")[0] in ("carla_policy", "policy_handler") and not Path(origin).is_relative_to(model_dir):
            raise ValueError(f"{name}: the archive does not carry it; it was found at {origin}")
        if name.partition(".")[0] == "carla_policy_tools":
            raise ValueError(f"{name}: the archive's code depends on it, but does not carry it")


def _check_answers(service: Any) -> None:
    """Golden observations, asked alone and together, must get the same answers, and the golden ones."""
    import numpy as np
    from ts.context import RequestProcessor

    handler, context = service._entry_point.__self__, service.context
    loaded = handler.service.loaded
    golden = loaded.golden

    def ask(golden: Any, groups: list[slice]) -> list[list[dict[str, float]]]:
        rows = [{"body": _request(golden, group, handler.service.state_codec)} for group in groups]
        context.request_ids = {index: str(index) for index in range(len(rows))}
        context.request_processor = [RequestProcessor({"content-type": "application/json"}) for _ in rows]
        bodies = handler.handle(rows, context)
        statuses = {context.get_response_status(index)[0] for index in range(len(rows))}
        if statuses != {200}:
            raise ValueError(f"golden observations were refused: {bodies[0].decode()[:300]}")
        return [json.loads(body)["actions"] for body in bodies]

    policy = loaded.policy
    evaluation = policy.evaluate(golden.observations, policy.preprocessor(golden.observations), golden.states)
    expected = policy.decide(golden.deterministic_actions, evaluation).controls
    if policy.card.ood and policy.card.ood.action == "reject":
        # What the card refuses is refused here too; the others must be answered.
        golden, expected = golden.rows(~evaluation.novelty.is_ood), expected[~evaluation.novelty.is_ood]
    limit = policy.card.inference.max_observations
    slices = [slice(start, start + limit) for start in range(0, len(golden), limit)]
    together = [action for group in slices for action in ask(golden, [group])[0]]
    alone = [actions[0] for actions in ask(golden, [slice(row, row + 1) for row in range(len(golden))])]
    if together != alone:
        raise ValueError("the answer to an observation depends on what it is batched with")
    got = np.array([[action["throttle"], action["brake"], action["steer"]] for action in together])
    if not (np.abs(got - expected) <= policy.card.parity.atol).all():
        raise ValueError("answers to the golden observations are not the golden actions")


def _request(golden: Any, group: slice, codec: Any) -> bytes:
    rows = golden.observations[group].tolist()
    body = {"observations": [{"speed": row[0], "steering": row[1], "sensors": row[2:]} for row in rows]}
    if codec is not None:
        body["state"] = codec.encode(golden.states[group])
    return json.dumps(body).encode()


if __name__ == "__main__":
    try:
        result = main(Path(sys.argv[1]).resolve())
    except Exception as error:
        result = {"error": str(error) or repr(error)}
    print(json.dumps(result))
