"""What the guard finds about a canary, and how seldom it is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from carla_policy_tools.lifecycle.records import Registry, VersionRecord
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.routing.guard import Finding, Watch
from carla_policy_tools.routing.guarding import Guard, canaries
from carla_policy_tools.routing.splitting import take_out
from carla_policy_tools.routing.traffic import Exchange

BASELINE, CANARY = "v0.2.0", "v0.3.0"
Change = Callable[[np.random.Generator, Exchange], Exchange]


def exchange(version: str = CANARY, status: int = 200, **fields: object) -> Exchange:
    plain = Exchange(version=version, route="split", status=status, response_ms=2.0, total_ms=2.0)
    return dataclasses.replace(plain, **fields)  # type: ignore[arg-type]


def traffic(seed: int, requests: int, *, share: float = 0.1, change: Change | None = None) -> Iterator[Exchange]:
    """Of 400 episodes, each with its own readiness to need interventions; `change` is done to the canary's."""
    rng = np.random.default_rng(seed)
    readiness = rng.beta(0.3, 3.0, size=400)
    with_canary = rng.random(400) < share
    episodes = rng.integers(400, size=requests)
    statuses = rng.choice([200, 500, 422], p=[0.98, 0.01, 0.01], size=requests)
    latencies, luck = rng.lognormal(0.7, 0.5, size=requests), rng.random((requests, 2))
    for number, episode in enumerate(episodes):
        made = Exchange(
            version=CANARY if with_canary[episode] else BASELINE,
            route="split",
            status=int(statuses[number]),
            response_ms=float(latencies[number]),
            total_ms=float(latencies[number]),
            interventions=("bounds",) if luck[number, 0] < readiness[episode] else (),
            ood=int(luck[number, 1] < readiness[episode] / 4),
            key=f"episode:{episode}",
        )
        yield change(rng, made) if change and made.version == CANARY else made


def watch(exchanges: Iterator[Exchange], **options: float) -> tuple[list[Finding], Watch]:
    watched = Watch(BASELINE, CANARY, **options)  # type: ignore[arg-type]
    for made in exchanges:
        if findings := watched.add(made):
            return findings, watched
    return [], watched


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_equal_versions_raise_an_alarm_no_more_often_than_alpha(share: float) -> None:
    runs, alpha, alarms = 50, 0.1, 0
    for seed in range(runs):
        findings, watched = watch(traffic(seed, 5_000, share=share), alpha=alpha)
        alarms += bool(findings)
        assert findings or watched.looks >= 4
    assert alarms <= alpha * runs


@pytest.mark.parametrize(
    ("measure", "change"),
    [
        ("errors", lambda rng, e: dataclasses.replace(e, status=503) if rng.random() < 0.1 else e),
        ("errors", lambda rng, e: dataclasses.replace(e, status=-1) if rng.random() < 0.1 else e),
        ("errors", lambda rng, e: dataclasses.replace(e, complete=False) if rng.random() < 0.1 else e),
        ("refusals", lambda rng, e: dataclasses.replace(e, status=422) if rng.random() < 0.3 else e),
        ("latency", lambda _, e: dataclasses.replace(e, response_ms=e.response_ms * 1.6)),
        (
            "interventions",
            lambda rng, e: dataclasses.replace(e, interventions=("steer_rate",) if rng.random() < 0.6 else ()),
        ),
        ("fallbacks", lambda rng, e: dataclasses.replace(e, interventions=("fallback",) if rng.random() < 0.2 else ())),
        ("out of distribution", lambda rng, e: dataclasses.replace(e, ood=int(rng.random() < 0.3))),
    ],
)
def test_a_clear_degradation_is_found(measure: str, change: Change) -> None:
    for seed in range(3):
        findings, watched = watch(traffic(seed, 40_000, change=change))
        assert measure in [finding.measure for finding in findings]
        assert watched.arms[CANARY].requests < 3_000


def test_a_canary_that_is_better_is_left_alone() -> None:
    def better(_: np.random.Generator, made: Exchange) -> Exchange:
        return dataclasses.replace(made, status=200, response_ms=0.5, interventions=(), ood=0)

    assert not watch(traffic(1, 20_000, change=better))[0]


def test_slower_by_less_than_a_quarter_is_no_finding() -> None:
    def slower(_: np.random.Generator, made: Exchange) -> Exchange:
        assert made.response_ms is not None
        return dataclasses.replace(made, response_ms=made.response_ms * 1.1)

    assert not watch(traffic(2, 40_000, share=0.5, change=slower))[0]


def test_one_odd_episode_condemns_nobody() -> None:
    """Thousands of interventions, all in the same episode: it might as well have been the baseline's."""
    watched = Watch(BASELINE, CANARY)
    for number in range(4_000):
        for version, episodes in ((CANARY, 5), (BASELINE, 45)):
            episode = number % episodes
            odd = version == CANARY and episode == 0
            met = ("bounds",) if odd else ()
            assert not watched.add(exchange(version, key=f"episode:{version}-{episode}", interventions=met))


def test_ten_failures_in_a_row_are_enough() -> None:
    watched = Watch(BASELINE, CANARY)
    watched.add(exchange(BASELINE))
    found = [watched.add(exchange(status=500)) for _ in range(10)]
    assert not any(found[:9])
    assert str(found[9][0]) == "v0.3.0: errors 10 in a row"


def test_failures_of_both_are_not_the_canary_s_fault() -> None:
    watched = Watch(BASELINE, CANARY)
    for _ in range(40):
        assert not watched.add(exchange(BASELINE, status=503))
        assert not watched.add(exchange(CANARY, status=503))


def test_other_versions_do_not_count() -> None:
    watched = Watch(BASELINE, CANARY)
    assert not [finding for _ in range(100) for finding in watched.add(exchange("v9.0.0", status=500))]
    assert watched.arms[CANARY].requests == 0


def test_a_finding_tells_its_numbers() -> None:
    watched = Watch(BASELINE, CANARY, failures_in_a_row=1_000)
    for number in range(1_170):
        watched.add(exchange(BASELINE, status=500 if number == 0 else 200))
    findings = [
        finding for number in range(50) for finding in watched.add(exchange(status=500 if number % 5 == 0 else 200))
    ]
    assert str(findings[0]).startswith("v0.3.0: errors 10/50 against 1/1,170, p = ")
    assert str(findings[0]).endswith("spent alpha 0.00083")


def test_what_is_spent_adds_up_to_alpha() -> None:
    spent = [0.01 / (look * (look + 1)) for look in range(1, 10_000)]
    assert sum(spent) < 0.01


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1])
def test_alpha_is_a_probability(alpha: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Watch(BASELINE, CANARY, alpha=alpha)


def registry_of(promotions: list[str], shares: dict[str, int] | None) -> Registry:
    registry = Registry()
    for version in sorted({BASELINE, CANARY, *promotions, *(shares or {})}):
        event = registry.event("register", version, digest=f"sha256:{'0' * 64}", profile="realtime")
        events = [event] if registry.versions else [event, registry.event("promote", promotions[0], offset=2)]
        record = VersionRecord(
            digest=event.digest or "",
            git_sha="0" * 40,
            built=event.at,
            registered=event.at,
            registered_by=event.by,
            profile="realtime",
        )
        registry = registry.after(*events, records={version: record})
    for version in promotions[1:]:
        registry = registry.after(registry.event("promote", version))
    return registry.after(registry.event("split", shares=shares)) if shares else registry


@pytest.mark.parametrize(
    ("promotions", "shares", "pairs"),
    [
        ([BASELINE], {BASELINE: 90, CANARY: 10}, [(BASELINE, CANARY)]),
        ([BASELINE], {CANARY: 90, BASELINE: 10}, [(BASELINE, CANARY)]),
        ([BASELINE], {"v0.4.0": 80, CANARY: 20}, [("v0.4.0", CANARY)]),
        ([BASELINE], {BASELINE: 80, CANARY: 10, "v0.4.0": 10}, [(BASELINE, CANARY), (BASELINE, "v0.4.0")]),
        ([BASELINE, CANARY], None, [(BASELINE, CANARY)]),
        ([BASELINE], None, []),
    ],
)
def test_canaries_are_what_is_new(
    promotions: list[str], shares: dict[str, int] | None, pairs: list[tuple[str, str]]
) -> None:
    assert canaries(registry_of(promotions, shares)) == pairs


@pytest.mark.parametrize(
    ("promotions", "shares", "promoted", "split"),
    [
        ([BASELINE], {BASELINE: 90, CANARY: 10}, BASELINE, None),
        ([BASELINE], {BASELINE: 80, CANARY: 10, "v0.4.0": 10}, BASELINE, {BASELINE: 90, "v0.4.0": 10}),
        ([BASELINE], {"v0.4.0": 80, CANARY: 20}, BASELINE, {"v0.4.0": 100}),
        ([BASELINE, CANARY], None, BASELINE, None),
        ([BASELINE], {BASELINE: 100}, BASELINE, {BASELINE: 100}),
    ],
)
def test_what_is_taken_out_gives_its_share_to_the_baseline(
    tmp_path: Path, promotions: list[str], shares: dict[str, int] | None, promoted: str, split: dict[str, int] | None
) -> None:
    registry_file = RegistryFile.of(tmp_path)
    registry_file.write(registry_of(promotions, shares))
    baseline = next((pair[0] for pair in canaries(registry_file.read()) if pair[1] == CANARY), BASELINE)
    before = registry_file.read()
    after = take_out(registry_file, CANARY, baseline, reason="guard; errors")
    assert (after.promoted, after.split) == (promoted, split)
    assert after == registry_file.read()
    assert after == before or after.history[-1].reason == "guard; errors"


def test_only_what_the_proxy_chose_is_compared() -> None:
    """Who asks for a version by name is no random sample."""
    guarded = Guard(alpha=0.01, failures_in_a_row=10)
    guarded.follow(registry_of([BASELINE], {BASELINE: 50, CANARY: 50}))
    for _ in range(100):
        assert guarded.add(exchange(status=500, route="named")) is None
    assert [guarded.add(exchange(status=500)) for _ in range(10)][-1] is not None
