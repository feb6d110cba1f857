"""`VectorizedCarlaEnv`: several services as one `gymnasium.vector.VectorEnv`, stepped in parallel threads.

Each service has a simulator and an episode of its own. One that fails loses its episode and nothing else: its
environment is truncated, and comes back as soon as its service does, while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from carla_policy_environment.carla_env import CarlaEnv
from carla_policy_environment.recovering import Member, Outcome, wait_for_any
from carla_policy_environment.vector_infos import batch_infos

Arrays = NDArray[Any]
Stepped = tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class VectorizedCarlaEnv(VectorEnv[Any, Any, Arrays]):
    """The environments that the services at `server_urls` simulate, each once, in this order.

    All services must have the same spaces. `autoreset_mode` is Gymnasium's and stands in `metadata`; other options are
    those of `CarlaEnv`. `recovery_timeout`: seconds that a failed service may be away before its failure is raised.

    When a service fails, the step in which that is noticed returns for its environment the last observation, reward 0,
    `truncated`, and `service_failure` in its info. While it stays away, further steps return the same at once, in the
    mode NEXT_STEP; they are steps after an episode's end, which learners for that mode leave out. Then comes the
    first observation of a new episode. In the mode SAME_STEP, and in `reset`, the service is waited for.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        server_urls: Sequence[str],
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        recovery_timeout: float = 300.0,
        **options: Any,
    ) -> None:
        if isinstance(server_urls, str) or not server_urls:
            raise ValueError(f"server_urls: expected a list of at least one address, got {server_urls!r}")
        if len(set(server_urls)) != len(server_urls):
            raise ValueError("server_urls: each service simulates one environment, so each may be named once only")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.num_envs = len(server_urls)
        self._pool = ThreadPoolExecutor(self.num_envs, thread_name_prefix="env")
        making = [self._pool.submit(CarlaEnv, url, **options) for url in server_urls]
        wait(making)
        self.envs = [made.result() for made in making if made.exception() is None]
        """One `CarlaEnv` for each service, as `branch` takes them."""
        self._members = [Member(env, recovery_timeout) for env in self.envs]
        try:
            for made in making:
                made.result()
            self._demand_same_spaces()
        except BaseException:
            self.close()
            raise
        first = self.envs[0]
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = first.render_mode
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in all environments, or in those of `options["reset_mask"]`, a mask [num_envs].

        Environment i gets the seed `seed + i`, or `seed[i]` of a list.
        """
        super().reset(seed=seed if isinstance(seed, int) else None)
        seeds = self._seeds(seed)
        rest = dict(options or {})
        chosen = self._mask(rest.pop("reset_mask", None))
        outcomes = self._in_parallel(lambda index: self._members[index].reset(seeds[index], rest), chosen)
        return self._batch(), batch_infos([outcomes[i].info if i in outcomes else {} for i in range(self.num_envs)])

    def step(self, actions: Any) -> Stepped:
        """Take one action in each environment; `ValueError` names one that is not in the action space, before any."""
        rows = list(iterate(self.action_space, actions))
        if len(rows) != self.num_envs:
            raise ValueError(f"actions: expected one for each of {self.num_envs} environments, got {len(rows)}")
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            wait_for_any(self._members)
        for index, (member, action) in enumerate(zip(self._members, rows, strict=True)):
            member.check(action, index, self.autoreset_mode)
        stepped = self._in_parallel(
            lambda index: self._members[index].step(rows[index], self.autoreset_mode), range(self.num_envs)
        )
        outcomes = [stepped[index] for index in range(self.num_envs)]
        return (
            self._batch(),
            np.array([outcome.reward for outcome in outcomes], np.float64),
            np.array([outcome.terminated for outcome in outcomes], np.bool_),
            np.array([outcome.truncated for outcome in outcomes], np.bool_),
            batch_infos([outcome.info for outcome in outcomes]),
        )

    def render(self) -> tuple[NDArray[np.uint8] | None, ...]:  # type: ignore[override]
        """The present image of each environment."""
        return tuple(self._pool.map(lambda env: env.render(), self.envs))

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What the method `name` of each environment returns, or its attribute of that name."""
        values = [getattr(env, name) for env in self.envs]
        return tuple(value(*args, **kwargs) if callable(value) else value for value in values)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute `name` of each environment."""
        return self.call(name)

    def close_extras(self, **_: Any) -> None:
        """Give all services back."""
        for member in self._members:
            member.close()
        self._pool.shutdown()

    def _in_parallel(self, function: Callable[[int], Outcome], indices: Sequence[int]) -> dict[int, Outcome]:
        """What `function` returns for each of `indices`; an exception is raised when all have ended."""
        if len(indices) == 1:
            return {indices[0]: function(indices[0])}
        futures = {index: self._pool.submit(function, index) for index in indices}
        wait(futures.values())
        return {index: future.result() for index, future in futures.items()}

    def _demand_same_spaces(self) -> None:
        first = self.envs[0]
        for env in self.envs[1:]:
            for kind in ("observation_space", "action_space"):
                if getattr(env, kind) != getattr(first, kind):
                    raise ValueError(
                        f"{env.server_url}: its {kind.replace('_', ' ')} is {getattr(env, kind)}, but that of "
                        f"{first.server_url} is {getattr(first, kind)}; a vector needs the same in all"
                    )

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None or isinstance(seed, int | np.integer):
            return [None if seed is None else int(seed) + index for index in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"seed: expected one for each of {self.num_envs} environments, got {len(seed)}")
        return list(seed)

    def _mask(self, mask: Any) -> list[int]:
        if mask is None:
            return list(range(self.num_envs))
        if (
            not isinstance(mask, np.ndarray)
            or mask.dtype != np.bool_
            or mask.shape != (self.num_envs,)
            or not mask.any()
        ):
            raise ValueError(
                f"options['reset_mask']: expected a mask of bool [{self.num_envs}], not all false, got {mask!r}"
            )
        if any(member.observation is None and not chosen for member, chosen in zip(self._members, mask, strict=True)):
            raise gymnasium.error.ResetNeeded("reset all environments before some of them")
        return [int(index) for index in np.flatnonzero(mask)]

    def _batch(self) -> Any:
        """The last observation of each environment, in arrays that are the caller's to keep."""
        empty: Any = create_empty_array(self.single_observation_space, n=self.num_envs, fn=np.zeros)
        return concatenate(self.single_observation_space, [member.observation for member in self._members], empty)
