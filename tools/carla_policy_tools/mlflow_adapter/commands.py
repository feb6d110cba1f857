"""`carla-policy mlflow`: pull a registered model, log an artifact, push what is promoted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from carla_policy.version import parse_version
from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.options import Json, Registry, Store
from carla_policy_tools.paths import ARTIFACTS, MODEL_NAME, MODEL_STORE

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
TrackingUri = Annotated[
    str | None,
    typer.Option(help="MLflow's server or database, `sqlite:///mlflow.db`; by default MLFLOW_TRACKING_URI."),
]
Name = Annotated[str, typer.Option(help="The registered model.")]


@app.callback()
def _root() -> None:
    """Artifacts from and to MLflow's model registry, and our promotions as its aliases and tags (extra `mlflow`).

    Example: `carla-policy mlflow push --tracking-uri http://localhost:5000`
    """


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="NAME (its newest version), NAME/VERSION or NAME@ALIAS.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- FRAMEWORK ...]",
            help="How `carla-policy export` is to make an artifact of it; {} is the directory of its files.",
        ),
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Of the artifact, if it is to be exported; the next minor one by default.")
    ] = None,
    artifacts: Annotated[Path, typer.Option(help="Directory that the artifact's directory is put into.")] = ARTIFACTS,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Make an artifact of a version of a registered model: as it is if it is an artifact, else by an export.

    What is taken as it is has to be whole and to reproduce its golden vectors. An export loads the model's files and
    with them what is pickled there: name only models of people you trust. Where they came from stands in the card.

    Examples: `carla-policy mlflow pull carla_policy@champion`,
    `carla-policy mlflow pull racer/7 --version v1.2.0 -- sb3 {}/sac.zip --env highway_env:racetrack-v1`
    """
    from carla_policy_tools.mlflow_adapter.connection import connect
    from carla_policy_tools.mlflow_adapter.models import ModelReference
    from carla_policy_tools.mlflow_adapter.pulling import pull as pull_version

    def export(arguments: Sequence[str]) -> None:
        from typer.main import get_command

        from carla_policy_tools.export.commands import app as export_app

        more = ["--json"] if as_json else []
        get_command(export_app).main(args=[*arguments, *more], prog_name="carla-policy export", standalone_mode=False)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds, so that nothing is left behind
    with connect(tracking_uri) as connection:
        taken = pull_version(
            connection,
            ModelReference.parse(model),
            version=parse_version(version) if version else None,
            artifacts=artifacts,
            words=words or (),
            export=export,
        )
    if taken is None:
        return
    if as_json:
        print_json({**vars(taken), "directory": str(taken.directory)})
    else:
        verb = "unchanged" if taken.unchanged else "pulled"
        out.print(f"{verb} {taken.directory} from {taken.model} version {taken.model_version}", markup=False)
        out.print(f"  {taken.card_hash[:19]}, whole, and it reproduces its golden vectors")
        out.print(f"next: carla-policy build {taken.directory}", markup=False)


@app.command()
def log(
    artifact: Annotated[Path, typer.Argument(help="Artifact directory.")],
    name: Name = MODEL_NAME,
    experiment: Annotated[str, typer.Option(help="Experiment that the run is put into.")] = MODEL_NAME,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Log an artifact as a run with its card's metrics, and as a version of a registered model; once only.

    Example: `carla-policy mlflow log artifacts/v0.3.0 --name carla_policy --tracking-uri sqlite:///mlflow.db`
    """
    from carla_policy_tools.mlflow_adapter.connection import connect
    from carla_policy_tools.mlflow_adapter.publishing import log as log_artifact

    with connect(tracking_uri, create=True) as connection, err.status(f"logging {artifact}"):
        logged = log_artifact(connection, artifact, name=name, experiment=experiment)
    if as_json:
        print_json(vars(logged))
    else:
        verb = "unchanged: was logged" if logged.unchanged else "logged"
        out.print(f"{verb} {logged.version} as {logged.model} version {logged.model_version} (run {logged.run_id})")


@app.command()
def push(
    name: Name = MODEL_NAME,
    deployment: Annotated[
        str | None, typer.Option(help="Begins aliases and tags, where several deployments share a model.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Tell MLflow what the registry declares: aliases `promoted` and `previous`, and tags for each version.

    A rollback moves the aliases back, a retired version gets a tag that says so. Aliases of others are left alone.
    Exit status 1 if something could not be pushed, after all the rest was.

    Example: `carla-policy mlflow push --name carla_policy --dry-run`
    """
    from carla_policy_tools.lifecycle.registry import RegistryFile
    from carla_policy_tools.mlflow_adapter.connection import MlflowError, connect
    from carla_policy_tools.mlflow_adapter.pushing import Names, apply, plan

    file, names = RegistryFile.of(store, registry), Names(deployment)
    content = file.read()
    if not content.history:
        raise MlflowError(f"{file.path}: declares nothing yet; `carla-policy serve` writes it")
    with connect(tracking_uri) as connection:
        found = plan(connection, content, store, name=name, names=names)
        if not dry_run:
            apply(connection, found, names)
    if as_json:
        print_json({**found.to_json(), "dry_run": dry_run})
    else:
        for change in found.changes:
            of = f" of version {change.model_version}" if change.model_version else ""
            out.print(
                f"{change.kind} {change.name}{of}: {change.before or 'none'} -> {change.after or 'none'}", markup=False
            )
        if not found.changes:
            out.print("nothing to change")
        elif dry_run:
            out.print("nothing was changed, for --dry-run")
        for note in found.notes:
            out.print(f"note: {note}", markup=False)
        for problem in found.problems:
            err.print(f"not pushed: {problem}", markup=False)
    if found.problems:
        raise typer.Exit(1)
