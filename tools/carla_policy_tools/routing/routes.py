"""What the proxy shall do with requests that name no version, and how its map says so.

The map has an entry for each bucket of the hash and for each version that takes part; both read "<index> <version>".
An episode's index is kept by the proxy. A version that is taken out loses its entry, so its episodes fall back to
their bucket; one that is added takes over buckets only, so episodes that have begun stay where they are. An index
never means another version: it is given once in a proxy's life.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from carla_policy.version import check_version, version_key

BUCKETS = 100


@dataclass(frozen=True)
class Routes:
    """Everything to `promoted`, or to versions by `shares` in percent; `ValueError` unless they add up to 100."""

    promoted: str
    shares: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        check_version(self.promoted)
        if self.shares is None:
            return
        for version, share in self.shares.items():
            check_version(version)
            if not 0 <= share <= BUCKETS:
                raise ValueError(f"{version}={share}: expected a share from 0 to 100 percent")
        total = sum(self.shares.values())
        if total != BUCKETS:
            parts = " + ".join(f"{version}={share}" for version, share in self.shares.items())
            raise ValueError(f"{parts or 'no share'}: expected shares that add up to 100 percent, got {total}")


class RouteMap:
    """Turns routes into entries of the proxy's map; one of it lives as long as the proxy."""

    def __init__(self) -> None:
        self._indices: dict[str, int] = {}

    def entries(self, routes: Routes) -> dict[str, str]:
        """Keys and values of the map."""
        if routes.shares is None:
            return {"promoted": self._choice(routes.promoted)}
        taking_part = sorted((version for version, share in routes.shares.items() if share), key=version_key)
        entries: dict[str, str] = {}
        owners = [version for version in taking_part for _ in range(routes.shares[version])]
        for bucket, version in enumerate(owners):
            entries[f"bucket/{bucket}"] = self._choice(version)
        for version in taking_part:
            entries[f"index/{self._indices[version]}"] = self._choice(version)
        return entries

    def _choice(self, version: str) -> str:
        return f"{self._indices.setdefault(version, len(self._indices) + 1)} {version}"
