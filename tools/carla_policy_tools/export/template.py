"""A model card to fill in, for networks that come without a framework: what `carla-policy init` writes."""

from __future__ import annotations

from collections.abc import Sequence

from carla_policy_tools.export.errors import ExportError

HEADS = {
    "deterministic": "the network yields the action itself: (action)",
    "gaussian": "the network yields (mean, log_std); with `scale: std` (mean, std)",
    "squashed_gaussian": "as gaussian, and the action is tanh of the sample",
    "beta": "the network yields (alpha, beta) of a Beta distribution over 0 to 1",
    "categorical": "the network yields (logits) over the rows of the action table",
    "epsilon_greedy": "the network yields (q_values) for the rows of the action table",
}
UNSCALED = ("squashed_gaussian", "beta")
DISCRETE = ("categorical", "epsilon_greedy")


def card_template(*, sensors: int, head: str, layout: Sequence[str], state_size: int) -> str:
    """A commented card for `export torch|onnx|torchscript|pt2 --card`; values to replace are marked `<-`."""
    if head not in HEADS:
        raise ExportError(f"--head {head}: expected one of {', '.join(HEADS)}")
    fields = [
        "  - {name: speed, unit: m/s, low: -10.0, high: 60.0}",
        "  - {name: steering, unit: 'fraction of full lock, positive to the right', low: -1.0, high: 1.0}",
        *(f"  - {{name: sensor_{n}, unit: m, low: 0.0, high: 100.0}}  # <-" for n in range(sensors)),
    ]
    epsilon = "\n  epsilon: 0.05  # <- share of sampled actions that are drawn from all choices" * (
        head == "epsilon_greedy"
    )
    recurrent = f"""
# Recurrent: the network takes (features, state) and yields its outputs and the next state, a row of numbers each.
recurrent:
  state_size: {state_size}
"""
    return f"""\
# A model card to fill in, for `carla-policy export torch|onnx|torchscript|pt2 ... --card THIS_FILE`.
# What the export computes (digests, ranges seen, tolerance, versions) it adds itself; any key of a card may stand here.

description: "what this policy is, and how it was trained"  # <-

# What a request carries: speed, steering, and the sensors in this order. A value outside of low and high means
# nothing and is refused. The network's preprocessor sees the columns in this order.
observation:
  fields:
{chr(10).join(fields)}

# {HEADS[head]}.
head:
  type: {head}{epsilon}
{_action(head, layout)}
# What leaves when the policy fails, and limits on what leaves at all. Those in comments are off.
safety:
  fallback: {{throttle: 0.0, brake: 1.0, steer: 0.0}}
  exclusive_pedals: true  # throttle and brake never together; the brake stays
  # steer_rate: {{max_change: 0.3}}  # from the observation's steering, at each action
  # throttle_rate: {{max_rise: 0.2, observed: sensor_0}}  # above the throttle that this field reports
  # steer_limit: {{speeds: [5.0, 15.0, 30.0], limits: [1.0, 0.5, 0.1]}}  # linear between, in the unit of speed
  # speed_cap: {{limit: 15.0, margin: 2.0, brake: 0.3}}  # no throttle from limit on, brake from limit + margin on
  # circuit_breaker: {{failures: 5, recovery_s: 1.0}}  # after so many unusable actions in a row, rest for so long
{recurrent if state_size else ""}"""


def _action(head: str, layout: Sequence[str]) -> str:
    if head in DISCRETE:
        return """
# What each choice does to the vehicle, in the order of the network's outputs.
action:
  table:
  - {throttle: 0.5, brake: 0.0, steer: -0.3}  # <-
  - {throttle: 0.5, brake: 0.0, steer: 0.0}  # <-
  - {throttle: 0.5, brake: 0.0, steer: 0.3}  # <-
  - {throttle: 0.0, brake: 1.0, steer: 0.0}  # <-
"""
    low = [0.0 if name in ("throttle", "brake") else -1.0 for name in layout]
    bounding = "unscale" if head in UNSCALED else "clip"
    return f"""
# What the action's dimensions are, and the bounds of the action space in training. `bounding` is how the network's
# output gets there: clip, or unscale from its own range (-1 to 1; 0 to 1 for beta).
action:
  layout: [{", ".join(layout)}]
  low: {low}  # <-
  high: {[1.0] * len(layout)}  # <-
  bounding: {bounding}
  # full_scale: {[1.0] * len(layout)}  # the value of each that means full throttle, brake or lock
"""
