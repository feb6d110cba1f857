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

PROBE_ROWS = 32


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
    probes = _check_answers(service)
    return {
        "version": metadata["version"],
        "preprocessor": metadata["preprocessor"],
        "vectors": metadata["selfTest"]["vectors"],
        "gate": card.gate,
        "stages": metadata["selfTest"]["stages"],
        "atol": card.parity.atol,
        "git_sha": card.git_sha,
        "probes": probes,
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


def _check_answers(service: Any) -> list[dict[str, Any]]:
    """Golden observations, asked alone and together, must get the same answers, and the golden ones.

    Returns them as requests and the actions that this process answered, for a server to be asked the same.
    """
    import numpy as np

    handler = service._entry_point.__self__
    golden, policy, codec = handler.service.loaded.golden, handler.service.loaded.policy, handler.service.state_codec
    evaluation = policy.evaluate(golden.observations, policy.preprocessor(golden.observations), golden.states)
    expected = policy.decide(golden.deterministic_actions, evaluation).controls
    if policy.card.ood and policy.card.ood.action == "reject":
        # What the card refuses is refused here too; the others must be answered.
        golden, expected = golden.rows(~evaluation.novelty.is_ood), expected[~evaluation.novelty.is_ood]
    slices = _slices(len(golden), policy.card.inference.max_observations)
    together = [
        action for group in slices for action in _ask(service, [_request(golden, group, _states(golden, codec))])[0]
    ]
    single = [_request(golden, row, _states(golden, codec)) for row in _slices(len(golden), 1)]
    if together != [actions[0] for actions in _ask(service, single)]:
        raise ValueError("the answer to an observation depends on what it is batched with")
    got = np.array([[action["throttle"], action["brake"], action["steer"]] for action in together])
    if not (np.abs(got - expected) <= policy.card.parity.atol).all():
        raise ValueError("answers to the golden observations are not the golden actions")
    options: list[dict[str, Any]] = [{"deterministic": True}, {"deterministic": False, "seed": 0}]
    # A state's token may be signed with a secret that only the server has: a recurrent policy begins an episode.
    begin: dict[str, Any] = {} if codec is None else {"episode_start": True}
    groups = _slices(len(golden), min(PROBE_ROWS, policy.card.inference.max_observations))
    bodies = [{**_request(golden, group, None), **begin, **option} for option in options for group in groups]
    probes = zip(bodies, (_ask(service, [body])[0] for body in bodies), strict=True)
    return [{"request": body, "actions": actions} for body, actions in probes]


def _ask(service: Any, bodies: list[dict[str, Any]]) -> list[list[dict[str, float]]]:
    """The actions that the handler answers to requests in one batch."""
    from ts.context import RequestProcessor

    context = service.context
    rows = [{"body": json.dumps(body).encode()} for body in bodies]
    context.request_ids = {index: str(index) for index in range(len(rows))}
    context.request_processor = [RequestProcessor({"content-type": "application/json"}) for _ in rows]
    answers = service._entry_point(rows, context)
    statuses = {context.get_response_status(index)[0] for index in range(len(rows))}
    if statuses != {200}:
        raise ValueError(f"golden observations were refused: {answers[0].decode()[:300]}")
    return [json.loads(answer)["actions"] for answer in answers]


def _request(golden: Any, group: slice, encode_states: Any) -> dict[str, Any]:
    rows = golden.observations[group].tolist()
    body: dict[str, Any] = {"observations": [{"speed": row[0], "steering": row[1], "sensors": row[2:]} for row in rows]}
    return body if encode_states is None else {**body, "state": encode_states(group)}


def _states(golden: Any, codec: Any) -> Any:
    return None if codec is None else lambda group: codec.encode(golden.states[group])


def _slices(rows: int, length: int) -> list[slice]:
    return [slice(start, min(start + length, rows)) for start in range(0, rows, length)]


if __name__ == "__main__":
    try:
        result = main(Path(sys.argv[1]).resolve())
    except Exception as error:
        result = {"error": str(error) or repr(error)}
    print(json.dumps(result))
