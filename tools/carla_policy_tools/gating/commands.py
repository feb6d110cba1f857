"""`carla-policy gate`."""

from __future__ import annotations

from typing import Annotated

import typer

from carla_policy.version import parse_version
from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.gating.options import GateOptions, Words, with_gate_options
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.options import Json, Registry, Store
from carla_policy_tools.paths import MODEL_STORE


@with_gate_options
def gate(
    version: Annotated[str, typer.Argument(help="A registered version, such as v0.3.0.")],
    options: GateOptions,
    words: Words = None,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Drive a version in process and through the running server: are the trajectories the same, bit by bit?

    And is its return not worse than the promoted version's, in the same seeded episodes, and no more of them end in a
    collision or off the road? Changes nothing; exits with 1 if it has not passed.

    Example: `carla-policy gate v0.3.0 --checkpoint ppo.zip --from sb3 -- --preprocessor preprocessor.pkl`
    """
    from carla_policy_tools.gating.rendering import render_gate
    from carla_policy_tools.gating.running import run_gate

    driven = run_gate(RegistryFile.of(store, registry), parse_version(version), words or (), options)
    if as_json:
        print_json(driven.to_json())
    else:
        out.print(render_gate(driven))
    if not driven.passed:
        err.print(f"not passed: {'; '.join(driven.reasons)}", markup=False)
        raise typer.Exit(1)
    if not as_json:
        out.print("passed")


VERBS = (gate,)
