"""Actions, observations, fallbacks and arguments: what cannot be used is refused by name, before anything drives."""

import array
import dataclasses
import unittest

from carla_policy_client import REASONS, Action, Decay, Hold, Observation, PolicyClient
from tests.clients import KINDS, PATIENT_S
from tests.fake_server import FakeServer

NAN, INFINITY = float("nan"), float("inf")


class AnAction(unittest.TestCase):
    def test_is_always_finite_and_in_range(self):
        for name in ("throttle", "brake", "steer"):
            for value in (NAN, INFINITY, -INFINITY, 1.0000001, -1.0000001):
                with self.assertRaisesRegex(ValueError, name):
                    Action(**{name: value})
            for value in ("0.5", True, None, [0.5]):
                with self.assertRaisesRegex(TypeError, name):
                    Action(**{name: value})
        with self.assertRaises(dataclasses.FrozenInstanceError):
            Action().brake = 2.0

    def test_names_its_controls_as_carla_does(self):
        self.assertEqual(Action(1, 0, -1).controls(), {"throttle": 1.0, "brake": 0.0, "steer": -1.0})


class AnObservation(unittest.TestCase):
    def test_of_what_are_no_finite_numbers_is_refused_by_field(self):
        for arguments, error, name in [
            ((NAN, 0.0, []), ValueError, "speed"),
            ((1.0, INFINITY, []), ValueError, "steering"),
            ((1.0, 0.0, [2.0, NAN]), ValueError, r"sensors\[1\]"),
            (("8", 0.0, []), TypeError, "speed"),
            ((1.0, True, []), TypeError, "steering"),
            ((1.0, 0.0, [2.0, "3"]), TypeError, r"sensors\[1\]"),
            ((1.0, 0.0, "345"), TypeError, "'345'"),
        ]:
            with self.subTest(arguments=arguments), self.assertRaisesRegex(error, name):
                Observation(*arguments)

    def test_goes_out_alike_in_all_of_its_forms(self):
        wire = {"speed": 8.0, "steering": -0.5, "sensors": [1.0, 2.5]}
        forms = (Observation(8, -0.5, (1, 2.5)), wire, [8, -0.5, 1, 2.5], array.array("d", [8.0, -0.5, 1.0, 2.5]))
        for kind in KINDS:
            with FakeServer() as server, kind(server.url, deadline_s=PATIENT_S) as client:
                for form in forms:
                    self.assertEqual(client.act(form).throttle, 0.08)
                client.act_many(forms)
                sent = [request.content["observations"] for request in server.requests]
                self.assertEqual(sent, [[wire]] * 4 + [[wire] * 4])

    def test_that_cannot_be_used_is_a_fallback_and_is_not_sent(self):
        class Broken:
            def __iter__(self):
                raise ZeroDivisionError("a sensor is gone")

        unusable = [
            ([1.0, NAN], "steering: expected a finite number, got nan"),
            ([1.0, 0.0, INFINITY], "sensors[0]: expected a finite number, got inf"),
            ({"speed": 1.0, "steering": 0.0, "sensors": [-INFINITY]}, "sensors[0]"),
            ({"speed": 1.0, "steering": 0.0}, "expected speed, steering and sensors"),
            ([10**400, 0.0], "speed: expected a number"),
            ([1.0], "got 1 values"),
            ("12", "expected numbers"),
            (None, "NoneType"),
            (Broken(), "a sensor is gone"),
        ]
        for kind in KINDS:
            with FakeServer() as server, kind(server.url, deadline_s=PATIENT_S, failures_to_open=1) as client:
                for observation, said in unusable:
                    with self.subTest(observation=repr(observation)[:40]):
                        taken = client.act(observation)
                        self.assertEqual((taken.source, taken.reason, taken.brake), ("fallback", "observation", 1.0))
                        self.assertIn(said, taken.message)
                self.assertEqual(
                    [taken.reason for taken in client.act_many([[1.0, 0.0], [NAN, 0.0]])], ["observation"] * 2
                )
                self.assertEqual((server.requests, client.statistics.circuit), ([], "closed"))


class AFallback(unittest.TestCase):
    LAST = Action(throttle=0.8, brake=0.0, steer=-0.4)

    def test_holds_the_last_good_action_so_long_and_then_brakes(self):
        hold = Hold(0.5, then=Action(brake=0.6))
        self.assertEqual(hold.action(self.LAST, 0.5), self.LAST)
        self.assertEqual(hold.action(self.LAST, 0.51), Action(brake=0.6))
        self.assertEqual(hold.action(None, 0.0), Action(brake=0.6))

    def test_decays_to_a_stop_and_never_has_throttle_and_brake_together(self):
        decay = Decay(2.0, brake=0.9)
        steps = [decay.action(self.LAST, age / 10) for age in range(30)]
        self.assertEqual(steps[0].controls(), self.LAST.controls())
        self.assertEqual(steps[5].throttle, 0.4)
        self.assertEqual(steps[10].controls(), {"throttle": 0.0, "brake": 0.0, "steer": -0.2})
        self.assertEqual(steps[15].brake, 0.45)
        self.assertEqual([step.controls() for step in steps[20:]], [Action(brake=0.9).controls()] * 10)
        self.assertTrue(all(step.throttle * step.brake == 0.0 for step in steps))
        for before, after in zip(steps, steps[1:]):
            self.assertTrue(before.throttle >= after.throttle and before.brake <= after.brake)
            self.assertLessEqual(abs(after.steer), abs(before.steer))
        self.assertEqual(decay.action(Action(brake=0.95), 0.1).brake, 0.95)
        self.assertEqual(decay.action(None, 0.0), Action(brake=0.9))

    def test_of_one_s_own_that_fails_is_the_brake(self):
        from carla_policy_client import Fallback

        class Wrong(Fallback):
            def action(self, last, age_s):
                return 1 / age_s if last is None else last

        with FakeServer() as server:
            server.behave = lambda *_: False
            with PolicyClient(server.url, deadline_s=PATIENT_S, fallback=Wrong()) as client:
                self.assertEqual(client.act([1.0, 0.0]).controls(), Action(brake=1.0).controls())


class AnArgument(unittest.TestCase):
    def test_that_cannot_be_used_is_refused_by_name(self):
        url = "http://localhost:8080"
        for error, name, given in [
            (ValueError, "url", {"url": "localhost:8080"}),
            (ValueError, "url", {"url": "ftp://localhost"}),
            (ValueError, "url", {"url": "http://"}),
            (ValueError, "url", {"url": "http://localhost:0"}),
            (ValueError, "url", {"url": "http://localhost:99999"}),
            (ValueError, "url", {"url": "http://[::1"}),
            (ValueError, "url", {"url": "http://user:secret@localhost"}),
            (ValueError, "url", {"url": "http://localhost/?x=1"}),
            (ValueError, "url", {"url": "http://localhost/\r\nx: y"}),
            (ValueError, "url", {"url": "http://local host"}),
            (ValueError, "url", {"url": "http://b\u00fccher"}),
            (TypeError, "url", {"url": None}),
            (ValueError, "version", {"version": "../models"}),
            (ValueError, "version", {"version": ".."}),
            (ValueError, "version", {"version": "v1 HTTP/1.1\r\nx: y"}),
            (TypeError, "version", {"version": 1}),
            (ValueError, "model", {"model": ""}),
            (ValueError, "vehicle_id", {"vehicle_id": "car-7\r\nx-policy-seed: 1"}),
            (ValueError, "vehicle_id", {"vehicle_id": "car 7"}),
            (ValueError, "vehicle_id", {"vehicle_id": "c" * 65}),
            (TypeError, "vehicle_id", {"vehicle_id": 7}),
            (ValueError, "token", {"token": "a\nb"}),
            (TypeError, "token", {"token": b"key"}),
            (ValueError, "deadline_s", {"deadline_s": 0.0}),
            (ValueError, "deadline_s", {"deadline_s": -0.05}),
            (ValueError, "deadline_s", {"deadline_s": NAN}),
            (ValueError, "deadline_s", {"deadline_s": 61.0}),
            (TypeError, "deadline_s", {"deadline_s": "0.05"}),
            (TypeError, "fallback", {"fallback": {"brake": 1.0}}),
            (ValueError, "failures_to_open", {"failures_to_open": 0}),
            (TypeError, "failures_to_open", {"failures_to_open": 2.5}),
        ]:
            for kind in KINDS:
                with self.subTest(given=given), self.assertRaisesRegex(error, "^" + name):
                    kind(**{"url": url, **given})
        for strategy in (Hold, Decay):
            for seconds in (0.0, -1.0, NAN, INFINITY):
                with self.assertRaisesRegex(ValueError, "seconds"):
                    strategy(seconds)

    def test_key_is_not_repeated_by_its_error(self):
        with self.assertRaises(ValueError) as caught:
            PolicyClient("http://localhost", token="secret key")
        self.assertNotIn("secret", str(caught.exception))

    def test_of_a_step_is_refused_too(self):
        for kind in KINDS:
            with FakeServer() as server, kind(server.url, deadline_s=PATIENT_S) as client:
                for error, name, given in [
                    (TypeError, "deterministic", {"deterministic": 1}),
                    (TypeError, "seed", {"seed": 1.0}),
                    (ValueError, "seed", {"seed": -1}),
                    (ValueError, "seed", {"seed": 2**64}),
                ]:
                    with self.assertRaisesRegex(error, name):
                        client.act([1.0, 0.0], **given)
                with self.assertRaisesRegex(TypeError, "override"):
                    client.set_override({"brake": 1.0})
                for total_return, length in ((NAN, 1), ("1", 1), (1.0, 0), (1.0, 2.5), (1e10, 1)):
                    with self.assertRaisesRegex((TypeError, ValueError), "total_return|length"):
                        client.end_episode(total_return, length)
                self.assertEqual(client.act([1.0, 0.0]).source, "policy")
        self.assertEqual(len(set(REASONS)), 10)


if __name__ == "__main__":
    unittest.main()
