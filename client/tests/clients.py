"""Both clients with the same face, so that one test says what holds for both."""

import asyncio

from carla_policy_client import AsyncPolicyClient, PolicyClient

PATIENT_S = 20.0
"""A deadline that only a hanging test reaches."""
IMPATIENT_S = 0.05
SLACK_S = 4.0
"""Of a very busy machine; a server that is waited for beyond the deadline takes longer."""


class OnALoop:
    """An `AsyncPolicyClient` and a loop of its own, which runs while somebody waits."""

    def __init__(self, *arguments, **options):
        self._client = AsyncPolicyClient(*arguments, **options)
        self._loop = asyncio.new_event_loop()

    def act(self, *arguments, **options):
        return self._loop.run_until_complete(self._client.act(*arguments, **options))

    def act_many(self, *arguments, **options):
        return self._loop.run_until_complete(self._client.act_many(*arguments, **options))

    def close(self, timeout_s=1.0):
        self._loop.run_until_complete(self._client.close(timeout_s))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def __enter__(self):
        self._loop.run_until_complete(self._client.__aenter__())
        return self

    def __exit__(self, *_):
        self.close()

    def __getattr__(self, name):
        return getattr(self._client, name)

    def rest(self, seconds):
        """Give background tasks some time."""
        self._loop.run_until_complete(asyncio.sleep(seconds))


def connected_step(client, observation):
    """The first step for which there was a connection, however busy the machine is."""
    while True:
        taken = client.act(observation)
        if taken.message != "no connection yet":
            return taken


KINDS = (PolicyClient, OnALoop)
