"""The soak's samples as a picture: what each process holds, and logs and disk, over the requests."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from benchmarks.drills.sampling import WARM_UP, Sample

FORMATS = (".svg", ".png", ".pdf")


def check_plot(path: Path) -> None:
    """`ValueError` if nothing can be drawn to `path`: said before the drill, not after it."""
    if path.suffix not in FORMATS:
        raise ValueError(f"expected a name that ends in {', '.join(FORMATS)}, got {path}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"there is no directory {path.absolute().parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("needs matplotlib: pip install -e '.[bench]'")


def draw_growth(samples: Sequence[Sample], requests_each: int, path: Path) -> None:
    """Write the curves to `path` (.svg, .png or .pdf); a sample was taken after each `requests_each` requests."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 8.0), layout="constrained")
    memory, files, disk = figure.subplots(3, 1, sharex=True)
    counts = [requests_each * number for number in range(1, len(samples) + 1)]
    for name in sorted({name for sample in samples for name in sample.resident_mb}):
        memory.plot(counts, [sample.resident_mb.get(name, float("nan")) for sample in samples], label=name)
        files.plot(counts, [sample.files.get(name, float("nan")) for sample in samples], label=name)
    disk.plot(counts, [sample.logs_mb for sample in samples], label="logs")
    disk.plot(counts, [sample.disk_mb for sample in samples], label="all files of the server")
    for axes, label in ((memory, "resident set, MB"), (files, "open files"), (disk, "on disk, MB")):
        axes.axvspan(0, WARM_UP * counts[-1], color="0.93")
        axes.set(ylabel=label, ylim=(0, None), xlim=(0, counts[-1]))
        axes.legend(fontsize=8, frameon=False, ncols=2)
    disk.set(xlabel="requests; grey is the warm-up")
    with mpl.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(path)
