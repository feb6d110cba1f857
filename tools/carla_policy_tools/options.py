"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _of_settings(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    """What the environment or the deployment says, where the command line does not: as for `serve`."""
    source = context.get_parameter_source(str(parameter.name))
    if context.resilient_parsing or source is None or source.name != "DEFAULT":
        return value
    from carla_policy_tools.settings.resolving import resolve

    return getattr(resolve().settings, str(parameter.name))


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
_STORE, _REGISTRY = "Directory of the archives.", "The registry; `registry.json` in the store by default."
Store = Annotated[Path, typer.Option("--store", help=_STORE, callback=_of_settings)]
Registry = Annotated[Path | None, typer.Option("--registry", help=_REGISTRY, callback=_of_settings)]
StoreFlag = Annotated[Path | None, typer.Option("--store", help=_STORE)]
"""As `Store`, for verbs that resolve all settings themselves."""
RegistryFlag = Annotated[Path | None, typer.Option("--registry", help=_REGISTRY)]
Reason = Annotated[str, typer.Option("--reason", help="Why; stands in the history.")]
Deployment = Annotated[
    str | None,
    typer.Option("--deployment", help="A deployment in config/deployments, or a .yaml file of your own; else local."),
]
