"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Store = Annotated[Path, typer.Option("--store", help="Directory of the archives.")]
Registry = Annotated[
    Path | None, typer.Option("--registry", help="The registry; `registry.json` in the store by default.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why; stands in the history.")]
Deployment = Annotated[
    str | None,
    typer.Option("--deployment", help="A deployment in config/deployments, or a .yaml file of your own; else local."),
]
