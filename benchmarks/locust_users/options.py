"""The options of a load test, beside those of Locust, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.locust_users.goals import SLO_FILE, load_goals
from carla_policy.version import check_version

PROMOTED = "promoted"
"""In `--versions`: a request that names no version."""


def add_options(parser: Any) -> None:
    """To Locust's own; values stay texts, as they travel to worker processes and through the web page."""
    parser.add_argument(
        "--versions",
        default="",
        type=_checked(parse_shares),
        metavar="V=SHARE,…",
        help="Whom MixedFleet asks, by name, in which shares, such as v0.2.0=60,v0.3.0=30,promoted=10. A request "
        "without a version may be answered by any of them. Default: the promoted version, by name and without.",
    )
    parser.add_argument(
        "--deadline-ms",
        type=int,
        default=200,
        help="The x-policy-deadline-ms of each vehicle's requests; an answer without the policy's own action, for want "
        "of time, counts as failed. 0 sends none.",
    )
    parser.add_argument(
        "--store",
        default="",
        metavar="DIRECTORY",
        help="Take the golden observations of the archives in this directory instead of drawing some.",
    )
    parser.add_argument(
        "--slo",
        default=str(SLO_FILE),
        type=_checked(lambda text: load_goals(Path(text))),
        metavar="FILE",
        help="Goals, which the exit status tells of, in the format of benchmarks/slo.yaml. Default: %(default)s",
        include_in_web_ui=False,
    )
    parser.add_argument(
        "--max-failures",
        type=float,
        default=0.0,
        metavar="PERCENT",
        help="Of all requests, failed or answered wrongly, that are still no failure of the test.",
        include_in_web_ui=False,
    )
    parser.add_argument(
        "--summary",
        default="",
        metavar="FILE",
        help="Also write which goals were met, as one JSON object.",
        include_in_web_ui=False,
    )


def parse_shares(text: str) -> Mapping[str, float]:
    """The shares in `v0.2.0=60,v0.3.0=30,promoted=10`; `ValueError` says what does not fit."""
    shares: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, share = part.partition("=")
        if name in shares or (name != PROMOTED and check_version(name) != name):
            raise ValueError(f"{name}: named twice")
        try:
            shares[name] = float(share)
        except ValueError:
            raise ValueError(f"{part!r}: expected VERSION=SHARE, such as v0.2.0=60") from None
        if not 0 < shares[name] < float("inf"):
            raise ValueError(f"{part!r}: a share is a number above 0")
    return shares


def by_turns(shares: Mapping[str, float]) -> Iterator[str]:
    """Names without end, each as often as its share says, as evenly spread as that allows."""
    total, credit = sum(shares.values()), dict.fromkeys(shares, 0.0)
    while True:
        for name, share in shares.items():
            credit[name] += share
        chosen = max(credit, key=credit.__getitem__)
        credit[chosen] -= total
        yield chosen


def _checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            parse(text)
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return check
