"""`carla-policy guard`: watch a canary's traffic, and take it away when it is worse than its baseline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from carla_policy_tools.lifecycle.events import MAX_REASON
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.routing.following import require_proxy
from carla_policy_tools.routing.guard import Finding, Watch
from carla_policy_tools.routing.splitting import take_out, wait_in_force
from carla_policy_tools.routing.traffic import Exchange, Traffic

_READ_S = 0.2
_REGISTRY_S = 0.5


@dataclass
class Guard:
    """What a guard has seen, and what came of it."""

    alpha: float
    failures_in_a_row: int
    watches: dict[tuple[str, str], Watch] = field(default_factory=dict)
    """By baseline and canary."""
    findings: list[Finding] = field(default_factory=list)
    after: Registry | None = None
    """The registry after a canary was taken out."""
    current: list[Watch] = field(default_factory=list)
    """Of the present canaries."""
    lost: int = 0
    """Records of the proxy that came too fast."""

    def follow(self, registry: Registry) -> None:
        """Watch what is now a canary; what has been seen of a pair stays."""
        pairs = canaries(registry)
        for baseline, canary in pairs:
            self.watches.setdefault(
                (baseline, canary),
                Watch(baseline, canary, alpha=self.alpha, failures_in_a_row=self.failures_in_a_row),
            )
        self.current = [self.watches[pair] for pair in pairs]

    def add(self, exchange: Exchange) -> Watch | None:
        """Count an exchange whose version the client did not choose; the watch that it leads to findings in."""
        if exchange.route in ("split", "promoted"):
            for watch in self.current:
                self.findings = watch.add(exchange)
                if self.findings:
                    return watch
        return None

    def to_json(self) -> dict[str, object]:
        return {
            "tripped": bool(self.findings),
            "findings": [{**vars(finding), "text": str(finding)} for finding in self.findings],
            "watched": [
                {"baseline": baseline, "canary": canary, "looks": watch.looks, "versions": watch.summary()}
                for (baseline, canary), watch in self.watches.items()
            ],
            "lost_records": self.lost,
            "promoted": self.after.promoted if self.after else None,
            "split": self.after.split if self.after else None,
        }


def canaries(registry: Registry) -> list[tuple[str, str]]:
    """Pairs of baseline and canary.

    In a split every version is a canary but the promoted one, or, if that has no share, the one with the largest.
    Without a split the promoted version is, if there is one to roll back to.
    """
    if registry.split:
        shares = registry.split
        baseline = registry.promoted if registry.promoted in shares else max(shares, key=lambda name: shares[name])
        return [(baseline, version) for version in shares if version != baseline]
    target = registry.rollback_target()
    return [(target, registry.promoted)] if target and registry.promoted else []


def guard(
    registry_file: RegistryFile,
    *,
    alpha: float,
    failures_in_a_row: int,
    duration_s: float | None,
    stopping: Callable[[], bool],
    on_progress: Callable[[Guard], None],
) -> Guard:
    """Watch until a canary is found to be worse and has been taken out, the time is up, or `stopping`.

    `RegistryError` if there is no canary or no proxy; `ProxyError` when the proxy ends.
    """
    state, registry = require_proxy(registry_file), registry_file.read()
    if not canaries(registry):
        raise RegistryError(
            "there is no canary: no split, and no version to roll back to; begin one with `carla-policy split`"
        )
    guarded = Guard(alpha, failures_in_a_row)
    guarded.follow(registry)
    started = looked = time.monotonic()
    with Traffic(state.traffic_socket) as traffic:
        while not stopping() and (duration_s is None or time.monotonic() - started < duration_s):
            for exchange in traffic.read(_READ_S):
                watch = guarded.add(exchange)
                if watch:
                    reason = "; ".join(["guard", *map(str, guarded.findings)])[:MAX_REASON]
                    guarded.after = take_out(registry_file, watch.canary, watch.baseline, reason=reason)
                    wait_in_force(registry_file, guarded.after.sequence)
                    return guarded
            guarded.lost = traffic.lost
            if time.monotonic() - looked > _REGISTRY_S:
                guarded.follow(registry_file.read())
                looked = time.monotonic()
            on_progress(guarded)
    return guarded
