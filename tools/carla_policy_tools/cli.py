"""The `carla-policy` command line: the verbs of all its parts, each with an example in its help.

A verb prints for people, or one JSON object with `--json`. It exits with 0 only if it did what was asked; with 1 and
a one-line reason on standard error if it could not; with 2 if it was called wrongly.
"""

from __future__ import annotations

import sys

import requests
import typer

from carla_policy.errors import ArtifactError
from carla_policy_tools import artifact_commands, serving_commands, signing_commands
from carla_policy_tools.console import err
from carla_policy_tools.export.commands import app as export_app
from carla_policy_tools.lifecycle import commands as lifecycle_commands
from carla_policy_tools.lifecycle.registry import RegistryError
from carla_policy_tools.routing import commands as routing_commands
from carla_policy_tools.routing.haproxy import ProxyError
from carla_policy_tools.torchserve import ServerError

VERBS = (
    *artifact_commands.VERBS,
    *signing_commands.VERBS,
    *serving_commands.VERBS,
    *lifecycle_commands.VERBS,
    *routing_commands.VERBS,
)

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
app.add_typer(export_app, name="export")
for verb in VERBS:
    app.command()(verb)


@app.callback()
def _root() -> None:
    """Build, verify and serve driving policies, exactly as they were trained."""


def main() -> None:
    """Run a verb; what is wrong with its input or surroundings is told in one line, without a traceback."""
    from carla_policy_tools.client import RefusedRequest

    try:
        app()
    except (ArtifactError, ServerError, RegistryError, ProxyError, RefusedRequest, ValueError, OSError) as error:
        if isinstance(error, requests.ConnectionError):
            url = error.request.url if error.request else ""
            error = OSError(f"no server answers at {url}; start one with `carla-policy serve`, or name its --url")
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        err.print(f"error: {text}", markup=False)
        sys.exit(1)
