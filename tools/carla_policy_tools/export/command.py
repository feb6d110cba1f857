"""`carla-policy export`: a command for each framework; all share the options that do not depend on it."""

from __future__ import annotations

import inspect
import json
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.main import get_command

from carla_policy.errors import ArtifactError
from carla_policy.strict_yaml import parse_yaml
from carla_policy.version import parse_version, version_key
from carla_policy_tools.console import err, out, parity_table, print_json
from carla_policy_tools.export.choices import FILE_OF_RUNTIME, ROLLOUT_EPISODES, ROLLOUT_STEPS, Choices
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.paths import ARTIFACTS, sorted_versions

if TYPE_CHECKING:
    from carla_policy_tools.export.exporting import Export
    from carla_policy_tools.export.source import Source

CONTEXT = ("overlay", "env")

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
FRAMEWORKS: list[str] = []
_loaders = typer.Typer()
"""The frameworks' own options without the shared ones: what other verbs load checkpoints with."""


@app.callback()
def _root() -> None:
    """Make an artifact of what a trainer left: one command for each framework.

    Example: `carla-policy export sb3 model.zip --vecnormalize vecnormalize.pkl --env highway_env:racetrack-v1`

    Golden vectors are computed by the framework's own inference, on observations from an --env or from a file; an
    export that does not reproduce them is refused. Loading a checkpoint runs code inside it: use only your own.
    """


@dataclass(frozen=True)
class Shared:
    """Options of every framework's command."""

    env: Annotated[
        str | None, typer.Option(help="Environment to take observations from and to compare in: `id`, `module:id`.")
    ] = None
    env_arguments: Annotated[str, typer.Option(help="Arguments of the environment, as a JSON object.")] = "{}"
    steps: Annotated[int, typer.Option(help="Observations to collect in the environment, at least.", min=256)] = (
        ROLLOUT_STEPS
    )
    episodes: Annotated[int, typer.Option(help="Episodes to collect them from, at least.", min=2)] = ROLLOUT_EPISODES
    observations: Annotated[
        Path | None, typer.Option(help="Recorded observations instead: .npz with `observations` (`episode_starts`).")
    ] = None
    version: Annotated[str | None, typer.Option(help="Version; the next minor one by default.")] = None
    artifacts: Annotated[Path, typer.Option(help="Directory that the artifact's directory is put into.")] = ARTIFACTS
    runtime: Annotated[
        str | None, typer.Option(help="Format of the network: torchscript (the default), onnx or pt2.")
    ] = None
    layout: Annotated[
        str | None, typer.Option(help="What the action's dimensions are, such as `throttle,brake,steer`.")
    ] = None
    table: Annotated[
        Path | None, typer.Option(help="Of a discrete action: YAML or JSON list of {throttle, brake, steer}.")
    ] = None
    speed_column: Annotated[
        str | None,
        typer.Option(help="Column of the observation that is the speed, 0 by default; `none` if it is not there."),
    ] = None
    steering_column: Annotated[str | None, typer.Option(help="As --speed-column, for the steering; 1 by default.")] = (
        None
    )
    card: Annotated[
        Path | None,
        typer.Option(help="YAML with keys of the model card that take precedence, see `carla-policy init`."),
    ] = None
    ood: Annotated[bool, typer.Option(help="Whether to learn what is out of distribution.")] = True
    provenance: Annotated[str | None, typer.Option(hidden=True, help="That section of the card, as JSON.")] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False


def command(name: str) -> Callable[[Callable[..., Source]], Callable[..., Source]]:
    """Register a function that makes a source; its options come first, then the shared ones.

    Parameters named as in `CONTEXT` are no options: they are what shared ones come to.
    """

    def register(make: Callable[..., Source]) -> Callable[..., Source]:
        def run(**values: Any) -> None:
            shared = Shared(**{key: values.pop(key) for key in Shared.__dataclass_fields__})
            _export(lambda **context: make(**values, **_wanted(make, context)), shared)

        own = [p for p in inspect.signature(make).parameters.values() if p.name not in CONTEXT]
        common = inspect.signature(Shared).parameters.values()
        hints = {**get_type_hints(Shared, include_extras=True), **_parameter_hints(make)}
        parameters = [p.replace(kind=p.KEYWORD_ONLY, annotation=hints[p.name]) for p in (*own, *common)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = make.__doc__
        app.command(name)(run)

        def load(context: typer.Context, **values: Any) -> Source:
            return make(**values, **_wanted(make, context.obj))

        options = [p.replace(kind=p.KEYWORD_ONLY, annotation=hints[p.name]) for p in own]
        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        load.__signature__ = inspect.Signature([context, *options])  # type: ignore[attr-defined]
        load.__annotations__ = {p.name: p.annotation for p in (context, *options)}
        _loaders.command(name)(load)
        FRAMEWORKS.append(name)
        return make

    return register


def load_source(framework: str, words: Sequence[str], **context: Any) -> Source:
    """The source that `carla-policy export FRAMEWORK WORDS` would export, by that framework's own options alone.

    `context` has what `CONTEXT` names. Raises `ExportError` where it cannot be loaded, and typer's errors for words
    that are no options of it.
    """
    loaded: Source = get_command(_loaders).main(
        [framework, *words], prog_name="carla-policy export", standalone_mode=False, obj=context
    )
    return loaded


def _parameter_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of the parameters alone: that of a source is not imported for a `--help`."""
    annotations = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    described = SimpleNamespace(__annotations__=annotations)
    return get_type_hints(described, globalns=function.__globals__, include_extras=True)


def _wanted(make: Callable[..., Any], context: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in context.items() if key in inspect.signature(make).parameters}


def _export(make: Callable[..., Source], shared: Shared) -> None:
    if shared.runtime not in (None, *FILE_OF_RUNTIME):
        raise typer.BadParameter(f"expected one of {', '.join(FILE_OF_RUNTIME)}", param_hint="--runtime")
    if shared.env and shared.observations:
        raise typer.BadParameter("observations come from an --env or from a file, not both", param_hint="--env")

    from carla_policy_tools.export.environments import make_env
    from carla_policy_tools.export.exporting import export
    from carla_policy_tools.export.overlay import check_overlay, check_table
    from carla_policy_tools.export.rollouts import load_observations

    overlay = read_document(shared.card, "--card", dict) if shared.card else {}
    table = read_document(shared.table, "--table", list) if shared.table else ()
    if shared.card:
        check_overlay(shared.card, overlay)
    if shared.table:
        check_table(shared.table, table)
    if shared.provenance:
        overlay = {**overlay, "provenance": json.loads(shared.provenance)}
    choices = Choices(
        version=parse_version(shared.version) if shared.version else _next_version(shared.artifacts, overlay),
        artifacts=shared.artifacts,
        runtime=shared.runtime,
        layout=tuple(part.strip() for part in shared.layout.split(",")) if shared.layout else (),
        table=table,
        speed_column=_column("--speed-column", shared.speed_column, 0),
        steering_column=_column("--steering-column", shared.steering_column, 1),
        columns_known=None not in (shared.speed_column, shared.steering_column) or "observation" in overlay,
        steps=shared.steps,
        episodes=shared.episodes,
        ood=shared.ood,
        overlay=overlay,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds, so that nothing is left behind
    env = make_env(shared.env, shared.env_arguments) if shared.env else None
    with err.status("loading") as status:
        source = make(overlay=overlay, env=env)
        result = export(
            source,
            choices,
            env=env,
            recorded=load_observations(shared.observations, source) if shared.observations else None,
            progress=lambda stage, done, of: status.update(f"{stage} {done:,} of {of:,}"),
        )
    if shared.as_json:
        print_json(result.to_json())
    else:
        _print(result)


def read_document(path: Path, option: str, kind: type[Any]) -> Any:
    """The YAML or JSON document at `path`, which must be of `kind`."""
    try:
        document = parse_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise ExportError(f"{option} {path}: cannot be read: {error.strerror}") from None
    if not isinstance(document, kind):
        expected = "keys and values" if kind is dict else "a list"
        raise ArtifactError(f"{path}: expected {expected}, got {type(document).__name__}")
    return document


def _column(option: str, text: str | None, default: int) -> int | None:
    if text is not None and text.lower() == "none":
        return None
    try:
        return default if text is None else int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a column's number or `none`, got {text!r}", param_hint=option) from None


def _next_version(artifacts: Path, overlay: Mapping[str, Any]) -> str:
    if "version" in overlay:
        return parse_version(str(overlay["version"]))
    newest = sorted_versions(path.name for path in artifacts.glob("v*"))[-1:]
    major, minor, _ = version_key(newest[0]) if newest else (0, 0, 0)
    return f"v{major}.{minor + 1}.0"


def _print(result: Export) -> None:
    out.print(f"exported {result.directory} ({result.head} head)", markup=False)
    for assumption in result.assumptions:
        out.print(f"  assumed: {assumption}", markup=False)
    out.print(f"  {result.vectors} golden vectors from the framework itself, reproduced ({result.gate}):")
    out.print(parity_table([vars(stage) for stage in result.parity]))
    if loop := result.closed_loop:
        how = "the same trajectories" if loop.same_trajectories else "trajectories that rounding parts"
        out.print(
            f"  closed loop: {loop.episodes} episodes, {loop.steps} steps, {loop.bit_equal_actions:.2%} of the actions "
            f"with the same bits, largest difference {loop.max_abs_difference:.3g}, {how}"
        )
    if ood := result.ood:
        out.print(
            f"  out of distribution: {ood['false_positive_rate']:.2%} of {ood['held_out_rows']} held-out observations "
            "are flagged"
        )
    out.print(f"next: carla-policy build {shlex.quote(str(result.directory))}", markup=False)
