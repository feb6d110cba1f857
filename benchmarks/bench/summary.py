"""What `carla-policy bench --compare-baseline --json` found, as Markdown for a job's summary.

`python -m benchmarks.bench.summary comparison.json` exits with 1 where a figure has become worse, or where nothing
could be compared. Goals that were missed are listed and do not count: they were set for another machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.bench.comparison import THRESHOLD_PERCENT, Change


def summarize(found: dict[str, Any], threshold: float = THRESHOLD_PERCENT) -> tuple[str, int]:
    """Markdown, and the exit status."""
    changes = [Change.model_validate(change) for change in found["changes"]]
    worse = [change for change in changes if change.is_worse(threshold)]
    if not changes:
        return "### Benchmark\n\nNothing could be compared: one of the two runs has no figures.\n", 1
    verdict = f"**{len(worse)} have become worse**" if worse else "none has become worse"
    lines = [
        f"### Benchmark\n\n{len(changes)} figures compared with the base, {verdict} by more than {threshold:g} %.\n"
    ]
    lines += ["| figure | of | against | base | head | worse by | |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for change in sorted(changes, key=lambda change: -change.percent):
        mark = "worse" if change in worse else "" if change.certain else "not certain"
        figures = f"{change.before.value:.3g} | {change.now.value:.3g} | {change.percent:.1f} %"
        lines.append(f"| {change.figure} | {change.of} | {change.against or ''} | {figures} | {mark} |")
    lines += ["", *(f"- {problem}" for problem in found["problems"])]
    return "\n".join(lines) + "\n", 1 if worse else 0


if __name__ == "__main__":
    text, status = summarize(json.loads(Path(sys.argv[1]).read_text()))
    print(text)
    sys.exit(status)
