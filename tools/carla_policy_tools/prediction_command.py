"""The verb that asks a running server: `carla-policy predict`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from carla_policy.version import parse_version
from carla_policy_tools.asked_server import KeyFile, Url, asked_server
from carla_policy_tools.console import out, print_json
from carla_policy_tools.options import Json, Registry, Store
from carla_policy_tools.paths import MODEL_STORE, archive_name


def predict(
    version: Annotated[str | None, typer.Argument(help="Version to ask; the promoted one by default.")] = None,
    url: Url = None,
    file: Annotated[
        Path | None, typer.Option(help="A request as JSON, or - for standard input.", allow_dash=True)
    ] = None,
    golden: Annotated[
        int | None,
        typer.Option(help="Without a file: which golden observation to send; the first by default.", min=0),
    ] = None,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample the action instead of taking the mode.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of a stochastic answer.", min=0)] = None,
    key_file: KeyFile = None,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Send an observation to a running server and print the action.

    Examples: `carla-policy predict`, `carla-policy predict v0.1.0 --golden 7 --stochastic --seed 42`,
    `carla-policy predict --file request.json`
    """
    from carla_policy_tools import client

    asked = parse_version(version) if version else None
    if file and (golden is not None or stochastic or seed is not None):
        raise typer.BadParameter("a file is sent as it is: write deterministic and seed into it", param_hint="--file")
    if seed is not None and not stochastic:
        raise typer.BadParameter("a seed matters to a sampled action only: add --stochastic", param_hint="--seed")
    server = asked_server(url, key_file, store, registry)
    if file:
        body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    else:
        source = store / archive_name(asked or client.promoted_version(server.url, server.auth))
        observations, recurrent = client.golden_observations(source)
        row = golden or 0
        if row >= len(observations):
            raise ValueError(f"--golden {row}: {source.name} has the observations 0 to {len(observations) - 1}")
        request = client.request_body(
            observations[row : row + 1], deterministic=not stochastic, seed=seed, episode_start=recurrent
        )
        body = json.dumps(request).encode()
    answer = client.predict(server.url, asked, body, server.auth)
    if as_json:
        print_json(answer)
        return
    for action in answer["actions"]:
        out.print("  ".join(f"{name} {value:+.6f}" for name, value in action.items()))
    how = "deterministic" if answer["deterministic"] else f"seed {answer['seed']}"
    out.print(f"{answer['version']}, {how}, {answer['timingMs']:.3f} ms")


VERBS = (predict,)
