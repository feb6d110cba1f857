"""Episodes, overrides, samples and fleets: what is sent, what comes back, and what is counted."""

import asyncio
import time
import unittest

from carla_policy_client import Action, AsyncPolicyClient, Decay, Hold, PolicyClient
from tests.clients import KINDS, PATIENT_S
from tests.fake_server import VERSION, FakeServer, Held, action, changed, error, policy, response, silent, until, well

ROW = [10.0, 0.0]


def recurrent(sock, request):
    """A policy that counts its steps, as its state, and refuses states of others."""
    if request.path.endswith("/episodes"):
        return well(sock, request)
    state = request.content.get("state")
    if not request.content.get("episode_start") and not str(state).startswith("step "):
        return error("422 INVALID_STATE", "this version is recurrent")(sock, request)
    after = 1 if request.content.get("episode_start") else int(state[5:]) + 1
    content = policy(request, state=f"step {after}", actions=[action(throttle=after / 100)] * request.rows)
    return sock.sendall(response(request, content))


class AStep(unittest.TestCase):
    def test_says_who_asks_what_until_when(self):
        for kind in KINDS:
            with FakeServer() as server:
                with kind(server.url, deadline_s=2.0, vehicle_id="car-7", token="k3y") as client:
                    first = client.act(ROW)
                    self.assertEqual(client.vehicle_id, "car-7")
                    client.start_episode("drive:1")
                    client.act(ROW)
                before, within = server.requests
                self.assertEqual(before.path, "/predictions/carla_policy")
                self.assertEqual(before.headers["authorization"], "Bearer k3y")
                self.assertEqual(before.headers["x-vehicle-id"], "car-7")
                self.assertRegex(before.headers["x-policy-deadline-ms"], r"^[0-9]{1,5}(\.[0-9]{1,6})?$")
                self.assertTrue(0.0 < float(before.headers["x-policy-deadline-ms"]) < 2000.0)
                self.assertRegex(before.headers["x-request-id"], r"^car-7:[0-9a-f]{8}:1$")
                self.assertEqual(first.request_id, before.headers["x-request-id"])
                self.assertNotIn("x-episode-id", before.headers)
                self.assertEqual(within.headers["x-episode-id"], "drive:1")

    def test_can_be_a_sample_whose_seed_comes_back(self):
        for kind in KINDS:
            with FakeServer() as server, kind(server.url, deadline_s=PATIENT_S) as client:
                self.assertIsNone(client.act(ROW).seed)
                self.assertEqual(client.act(ROW, deterministic=False).seed, 7)
                self.assertEqual(client.act(ROW, deterministic=False, seed=2**64 - 1).seed, 2**64 - 1)
                self.assertEqual(server.requests[-1].content["seed"], 2**64 - 1)
                server.behave = changed(seed=8)
                self.assertIn("seed", client.act(ROW, deterministic=False, seed=9).message)

    def test_tells_version_interventions_and_latency(self):
        notes = [{"observation": 1, "kind": "bounds"}, {"observation": 1, "kind": "deadline"}]
        for kind in KINDS:
            with FakeServer(changed(interventions=notes)) as server, kind(server.url, deadline_s=PATIENT_S) as client:
                first, second = client.act_many([ROW, ROW])
                self.assertEqual((first.interventions, second.interventions), ((), ("bounds", "deadline")))
                self.assertEqual((first.version, first.source), (VERSION, "policy"))
                found = client.statistics
                self.assertEqual(found.interventions, {"bounds": 1, "deadline": 1})
                self.assertEqual((found.versions, found.steps), ({VERSION: 1}, 1))
                self.assertEqual(found.latency_s["p50"], first.latency_s)
                self.assertEqual(found.as_dict()["by_source"], {"policy": 1, "fallback": 0, "override": 0})
                self.assertEqual(client.act_many([]), [])

    def test_of_another_version_than_was_asked_for_is_a_fallback(self):
        for kind in KINDS:
            with FakeServer() as server, kind(server.url, "v9.9.9", deadline_s=PATIENT_S) as client:
                self.assertIn("expected v9.9.9", client.act(ROW).message)

    def test_after_the_end_is_a_fallback(self):
        for kind in KINDS:
            with FakeServer() as server:
                client = kind(server.url, deadline_s=PATIENT_S)
                client.act(ROW)
                if kind is PolicyClient:
                    client.close()
                    client.close()
                    self.assertEqual(client.act(ROW).reason, "closed")
                else:
                    client._loop.run_until_complete(client._client.close())
                    self.assertEqual(client.act(ROW).reason, "closed")
                    client.close()


class AnOverride(unittest.TestCase):
    def test_is_every_action_until_it_is_released_and_the_server_is_not_asked(self):
        for kind in KINDS:
            with FakeServer() as server, kind(server.url, deadline_s=PATIENT_S, fallback=Hold(9.0)) as client:
                self.assertEqual(client.act(ROW).throttle, 0.1)
                client.set_override(Action(throttle=0.9, steer=0.5))
                for taken in [client.act(ROW), *client.act_many([ROW, [float("nan")]])]:
                    self.assertEqual((taken.source, taken.throttle, taken.steer), ("override", 0.9, 0.5))
                self.assertEqual(len(server.requests), 1)
                client.release()
                server.behave = error("500 INTERNAL")
                held = client.act(ROW)
                self.assertEqual((held.source, held.throttle), ("fallback", 0.1))
                self.assertEqual(client.statistics.by_source, {"policy": 1, "fallback": 1, "override": 2})


class AnEpisode(unittest.TestCase):
    def test_of_a_recurrent_policy_carries_its_state_and_begins_anew(self):
        for kind in KINDS:
            with FakeServer(recurrent) as server, kind(server.url, deadline_s=PATIENT_S) as client:
                for _ in range(2):
                    client.start_episode()
                    self.assertEqual([client.act(ROW).throttle for _ in range(3)], [0.01, 0.02, 0.03])
                server.behave = error("500 INTERNAL")
                client.act(ROW)
                server.behave = recurrent
                self.assertEqual(client.act(ROW).throttle, 0.04)
                self.assertEqual([taken.throttle for taken in client.act_many([ROW] * 2)], [0.01] * 2)
                self.assertEqual([taken.throttle for taken in client.act_many([ROW] * 2)], [0.02] * 2)
                self.assertEqual(client.act(ROW).throttle, 0.05)
                self.assertEqual([taken.throttle for taken in client.act_many([ROW] * 3)], [0.01] * 3)

    def test_whose_state_is_refused_goes_on_anew_within_the_step(self):
        for kind in KINDS:
            with FakeServer(recurrent) as server, kind(server.url, deadline_s=PATIENT_S) as client:
                client.act(ROW)
                server.behave = changed(state="of another version")
                client.act(ROW)
                server.behave = recurrent
                taken = client.act(ROW)
                self.assertEqual((taken.source, taken.throttle), ("policy", 0.01))
                self.assertEqual(client.statistics.state_losses, 1)
                server.behave = error("422 INVALID_STATE")
                self.assertEqual(client.act(ROW).reason, "refused")

    def test_forgets_the_actions_of_the_one_before(self):
        for kind in KINDS:
            for fallback in (Hold(60.0), Decay(60.0)):
                with FakeServer() as server, kind(server.url, deadline_s=PATIENT_S, fallback=fallback) as client:
                    client.act([50.0, 0.5])
                    server.behave = error("500 INTERNAL")
                    held = client.act(ROW)
                    self.assertAlmostEqual(held.throttle, 0.5, places=1)
                    self.assertEqual((held.version, held.source), ("", "fallback"))
                    client.start_episode()
                    self.assertEqual(client.act(ROW).controls(), Action(brake=1.0).controls())

    def test_is_reported_to_the_version_that_drove_it(self):
        for kind in KINDS:
            with FakeServer() as server, kind(server.url, deadline_s=PATIENT_S, vehicle_id="car-7") as client:
                self.assertFalse(client.end_episode(1.0, 1))  # nobody drove
                episode = client.start_episode()
                client.act(ROW)
                self.assertTrue(client.end_episode(-12.5, 300))
                until(lambda: client.statistics.episodes_reported == 1)
                report = server.requests[-1]
                self.assertEqual(report.path, f"/predictions/carla_policy/{VERSION}/episodes")
                self.assertEqual(report.content, {"return": -12.5, "length": 300})
                self.assertEqual(report.headers["x-episode-id"], episode)
                client.act(ROW)
                server.behave = changed(version="v2.0.0")
                self.assertEqual(client.act(ROW).reason, "invalid")  # the header says another
                server.behave = well
                self.assertTrue(client.end_episode(1.0, 1))

    def test_reports_never_hold_up_a_step_and_are_hardly_waited_for_in_the_end(self):
        for kind in KINDS:
            with FakeServer() as server:
                client = kind(server.url, deadline_s=PATIENT_S)
                client.act(ROW)
                server.behave = silent
                began = time.monotonic()
                for _ in range(300):
                    client._driver._episode_versions.add(VERSION)
                    client.end_episode(1.0, 1)
                client.close(timeout_s=0.05)
                self.assertLess(time.monotonic() - began, 2.0)
                self.assertEqual(client.statistics.episodes_dropped, 300)


class ATask(unittest.TestCase):
    def test_waits_for_its_turn_or_falls_back_and_leaves_the_loop_free(self):
        async def drive(server):
            async with AsyncPolicyClient(server.url, deadline_s=PATIENT_S) as client:
                taken = await asyncio.gather(*[client.act([speed, 0.0]) for speed in (10.0, 20.0, 30.0)])
                self.assertEqual([action.throttle for action in taken], [0.1, 0.2, 0.3])
                self.assertEqual(server.connections, 1)
                server.release.clear()
                ticks = []

                async def tick():
                    while True:
                        ticks.append(time.monotonic())
                        await asyncio.sleep(0.005)

                ticking = asyncio.ensure_future(tick())
                first = asyncio.ensure_future(client.act(ROW))
                await asyncio.sleep(0)
                client._driver.deadline_s = 0.1
                self.assertEqual((await client.act(ROW)).reason, "busy")
                server.release.set()
                self.assertEqual((await first).source, "policy")
                self.assertGreaterEqual(len(ticks), 2)
                ticking.cancel()

        with Held() as server:
            server.release.set()
            loop = asyncio.new_event_loop()
            loop.run_until_complete(drive(server))
            loop.close()

    def test_that_is_cancelled_leaves_nothing_behind_for_the_next(self):
        async def drive(server):
            async with AsyncPolicyClient(server.url, deadline_s=PATIENT_S) as client:
                step = asyncio.ensure_future(client.act(ROW))
                while not server.requests:
                    await asyncio.sleep(0.002)
                step.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await step
                server.behave = well
                self.assertEqual((await client.act([20.0, 0.0])).throttle, 0.2)

        with FakeServer(silent) as server:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(drive(server))
            loop.close()


if __name__ == "__main__":
    unittest.main()
