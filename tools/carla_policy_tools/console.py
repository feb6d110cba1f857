"""What all verbs print with: text for people on two streams, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

out, err = (Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False) for stderr in (False, True))


def print_json(content: Mapping[str, Any]) -> None:
    """The one JSON object of a verb that was asked for `--json`."""
    print(json.dumps(content), flush=True)


def parity_table(stages: Iterable[Mapping[str, Any]]) -> Table:
    """How closely each stage reproduces training."""
    table = Table("stage", "bit-equal to training", "largest difference", "ULP", box=None, padding=(0, 2))
    for stage in stages:
        values = {key.replace("_", "").lower(): value for key, value in stage.items()}
        share, difference = f"{values['bitequalshare']:.2%}", f"{values['maxabsdifference']:.3g}"
        table.add_row(values["stage"], share, difference, str(values["maxulp"]))
    return table
