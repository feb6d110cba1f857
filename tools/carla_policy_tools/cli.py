"""The `carla-policy` command line: the verbs of all its parts, each with an example in its help.

A verb prints for people, or one JSON object with `--json`. It exits with 0 only if it did what was asked; with 1 and
a one-line reason on standard error if it could not; with 2 if it was called wrongly.
"""

from __future__ import annotations

import sys

import typer

from carla_policy_tools import (
    artifact_commands,
    benchmark_commands,
    log_commands,
    prediction_command,
    serving_commands,
    signing_commands,
)
from carla_policy_tools.console import err
from carla_policy_tools.driving import commands as driving_commands
from carla_policy_tools.driving import latency_command
from carla_policy_tools.environment_commands import app as environment_app
from carla_policy_tools.export.commands import app as export_app
from carla_policy_tools.gating import commands as gating_commands
from carla_policy_tools.lifecycle import commands as lifecycle_commands
from carla_policy_tools.mlflow_adapter.commands import app as mlflow_app
from carla_policy_tools.routing import commands as routing_commands
from carla_policy_tools.settings import commands as settings_commands

VERBS = (
    *artifact_commands.VERBS,
    *signing_commands.VERBS,
    *serving_commands.VERBS,
    *log_commands.VERBS,
    *prediction_command.VERBS,
    *driving_commands.VERBS,
    *latency_command.VERBS,
    *lifecycle_commands.VERBS,
    *gating_commands.VERBS,
    *routing_commands.VERBS,
    *benchmark_commands.VERBS,
)

_PARTS = {"carla_policy_client": "client", "carla_policy_environment": "environment"}
"""Distributions of their own that some verbs need, and their directories in the project."""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
app.add_typer(export_app, name="export")
app.add_typer(settings_commands.app, name="config")
app.add_typer(mlflow_app, name="mlflow")
app.add_typer(environment_app, name="env")
for verb in VERBS:
    if verb is benchmark_commands.drill:
        app.command(context_settings=benchmark_commands.DRILL_SETTINGS, add_help_option=False)(verb)
    else:
        app.command()(verb)


@app.callback()
def _root() -> None:
    """Build, verify and serve driving policies, exactly as they were trained."""


def main() -> None:
    """Run a verb; what is wrong with its input or surroundings is told in one line, without a traceback."""
    try:
        app()
    except Exception as error:
        sys.exit(report(error))


def report(error: Exception) -> int:
    """Tell a person what went wrong, and the status to exit with; a mistake in this program is raised again."""
    reason = _reason(error)
    if reason is None:
        raise error
    err.print(f"error: {reason}", markup=False)
    return 1


def _reason(error: Exception) -> str | None:
    """What a person needs to know of what went wrong; `None` for a mistake in this program."""
    import requests

    from carla_policy.errors import ArtifactError
    from carla_policy_tools.client import RefusedRequest
    from carla_policy_tools.lifecycle.registry import RegistryError
    from carla_policy_tools.routing.haproxy import ProxyError
    from carla_policy_tools.torchserve import ServerError

    if isinstance(error, requests.ConnectionError):
        url = error.request.url if error.request else ""
        return f"no server answers at {url}; start one with `carla-policy serve`, or name its --url"
    if isinstance(error, ModuleNotFoundError) and error.name in _PARTS:
        return f"{error.name} is not installed: `pip install ./{_PARTS[error.name]}` in the project's directory"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    expected = (ArtifactError, ServerError, RegistryError, ProxyError, RefusedRequest, ValueError, OSError)
    return str(error) if isinstance(error, expected) else None
