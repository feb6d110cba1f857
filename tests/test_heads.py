"""Action heads: densities as torch's, samples that a seed fixes and a distribution explains, NaN for what is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import TypeAdapter
from torch.distributions import Beta, Categorical, Normal, TanhTransform, TransformedDistribution

from carla_policy.golden import FloatArray
from carla_policy.heads import GaussianHead, Head, make_head
from carla_policy.specs import HeadSpec

EPSILON = 0.3
CONTINUOUS = ("gaussian", "squashed_gaussian", "beta")
DISCRETE = ("categorical", "epsilon_greedy")
STOCHASTIC = (*CONTINUOUS, *DISCRETE)
EVERY = ("deterministic", *STOCHASTIC)
ROW = {
    "deterministic": {"action": [0.25, -0.5]},
    "gaussian": {"mean": [0.4, -1.5], "log_std": [-0.7, 0.4]},
    "squashed_gaussian": {"mean": [0.4, -1.5], "log_std": [-0.7, 0.4]},
    "beta": {"alpha": [0.6, 4.0], "beta": [2.5, 1.3]},
    "categorical": {"logits": [0.3, -1.2, 1.0, 0.0, -0.4]},
    "epsilon_greedy": {"q_values": [0.3, -1.2, 1.0, 0.0, -0.4]},
}
SEEDS = st.integers(0, 2**64 - 1)
SHAPES = st.floats(0.0625, 50, width=32)
ELEMENTS = {"alpha": SHAPES, "beta": SHAPES, "log_std": st.floats(-4, 2, width=32)}


def head(kind: str, **options: Any) -> Head:
    epsilon = {"epsilon": EPSILON} if kind == "epsilon_greedy" else {}
    return make_head(TypeAdapter(HeadSpec).validate_python({"type": kind, **epsilon, **options}))


def repeated(kind: str, rows: int) -> dict[str, Any]:
    return {name: np.tile(np.array(values, np.float32), (rows, 1)) for name, values in ROW[kind].items()}


def drawn(data: st.DataObject, kind: str, rows: int = 3) -> dict[str, Any]:
    """Any parameters of `kind`, of two dimensions or five choices."""
    width = 5 if kind in DISCRETE else 2
    strategies = {name: ELEMENTS.get(name, st.floats(-4, 4, width=32)) for name in ROW[kind]}
    return {name: data.draw(arrays(np.float32, (rows, width), elements=some)) for name, some in strategies.items()}


def reference(kind: str, parameters: dict[str, Any], actions: Any) -> Any:
    """The log-density of torch in float64; of epsilon-greedy, its definition."""
    first, *rest = (torch.from_numpy(values.astype(np.float64)) for values in parameters.values())
    values = torch.from_numpy(actions.astype(np.float64))
    if kind == "epsilon_greedy":
        greedy = (values[:, 0] == first.argmax(1)).double()
        return torch.log(EPSILON / first.shape[1] + (1 - EPSILON) * greedy).numpy()
    if kind == "categorical":
        return Categorical(logits=first).log_prob(values[:, 0]).numpy()  # type: ignore[no-untyped-call]
    exact: Any = Beta(first, rest[0]) if kind == "beta" else Normal(first, rest[0].exp())
    if kind == "squashed_gaussian":
        exact = TransformedDistribution(exact, [TanhTransform()])  # type: ignore[no-untyped-call]
    return exact.log_prob(values).sum(1).numpy()


RANGES = {"gaussian": (-8.0, 8.0), "squashed_gaussian": (-0.9990234375, 0.9990234375), "beta": (2.0**-14, 0.9990234375)}


def any_actions(kind: str) -> Any:
    if kind in DISCRETE:
        return arrays(np.float32, (3, 1), elements=st.integers(0, 4).map(float))
    return arrays(np.float32, (3, 2), elements=st.floats(*RANGES[kind], width=32))


@pytest.mark.parametrize("kind", STOCHASTIC)
@given(data=st.data())
def test_log_prob_is_that_of_torch_in_float64(kind: str, data: st.DataObject) -> None:
    parameters, actions = drawn(data, kind), data.draw(any_actions(kind))
    got = head(kind).log_prob(parameters, actions)
    np.testing.assert_allclose(got, reference(kind, parameters, actions), rtol=1e-9, atol=1e-9)


def test_a_point_has_log_prob_zero_and_everything_else_none() -> None:
    parameters = {"action": np.zeros((2, 2), np.float32)}
    actions = np.array([[0.0, 0.0], [0.0, 1e-3]], np.float32)
    assert head("deterministic").log_prob(parameters, actions).tolist() == [0.0, -np.inf]


def test_squashed_mode_is_the_squashed_mean_and_one_counts_as_the_last_number_before() -> None:
    parameters = {"mean": np.array([[0.5], [12.0]], np.float32), "log_std": np.zeros((2, 1), np.float32)}
    assert head("squashed_gaussian").mode(parameters).tolist() == [[np.float32(np.tanh(0.5))], [1.0]]
    last = np.nextafter(np.float32(1), np.float32(0))
    full, before = (
        head("squashed_gaussian").log_prob(parameters, np.full((2, 1), end, np.float32)) for end in (1, last)
    )
    assert np.isfinite(full).all()
    assert full.tobytes() == before.tobytes()


@pytest.mark.parametrize("kind", ["gaussian", "squashed_gaussian"])
@given(data=st.data(), seed=SEEDS)
def test_scale_given_as_std_is_its_logarithm_s_exponential(kind: str, data: st.DataObject, seed: int) -> None:
    parameters, actions = drawn(data, kind), data.draw(any_actions(kind))
    other = {"mean": parameters["mean"], "std": np.exp(parameters["log_std"].astype(np.float64))}
    assert head(kind, scale="std").parameter_names == ("mean", "std")
    for method, argument in (("sample", seed), ("log_prob", actions)):
        expected = getattr(head(kind), method)(parameters, argument)
        assert getattr(head(kind, scale="std"), method)(other, argument).tobytes() == expected.tobytes()
    assert head(kind, scale="std").mode(other).tobytes() == head(kind).mode(parameters).tobytes()


@pytest.mark.parametrize("kind", [*DISCRETE, "gaussian", "beta"])
@given(data=st.data())
def test_mode_has_the_highest_density(kind: str, data: st.DataObject) -> None:
    parameters, actions = drawn(data, kind), data.draw(any_actions(kind))
    if kind == "beta":
        parameters = {name: values + np.float32(1.0625) for name, values in parameters.items()}
    assert (
        head(kind).log_prob(parameters, head(kind).mode(parameters)) >= head(kind).log_prob(parameters, actions) - 1e-9
    ).all()


def test_mode_of_a_beta_is_its_inner_peak_or_the_end_where_it_leans_or_its_mean() -> None:
    alpha = np.array([3, 1, 0.5, 2, 2.0, 1, 0.5, 0.25], np.float32)[:, None]
    beta = np.array([2, 2, 2.0, 1, 0.5, 1, 0.5, 0.75], np.float32)[:, None]
    mode = np.array([2 / 3, 0, 0, 1, 1, 0.5, 0.5, 0.25], np.float32)[:, None]
    assert head("beta").mode({"alpha": alpha, "beta": beta}).tolist() == mode.tolist()


@pytest.mark.parametrize("kind", STOCHASTIC)
@given(data=st.data(), seed=SEEDS, other=SEEDS, shorter=st.integers(1, 23))
def test_a_seed_fixes_the_sample_and_a_shorter_request_is_a_prefix(
    kind: str, data: st.DataObject, seed: int, other: int, shorter: int
) -> None:
    assume(seed != other)
    parameters = drawn(data, kind, rows=24)
    chooser = head(kind, epsilon=1.0) if kind == "epsilon_greedy" else head(kind)
    sample = chooser.sample(parameters, seed)
    assert chooser.sample(parameters, seed).tobytes() == sample.tobytes()
    prefix = chooser.sample({name: values[:shorter] for name, values in parameters.items()}, seed)
    assert prefix.tobytes() == sample[:shorter].tobytes()
    same = repeated(kind, 24) if kind != "categorical" else {"logits": np.zeros((24, 5), np.float32)}
    assert chooser.sample(same, other).tobytes() != chooser.sample(same, seed).tobytes()
    assert len(np.unique(chooser.sample(same, seed), axis=0)) > 1


@pytest.mark.parametrize("kind", EVERY)
@given(data=st.data(), seed=SEEDS, row=st.integers(0, 5))
def test_what_a_row_gets_does_not_depend_on_its_mates(kind: str, data: st.DataObject, seed: int, row: int) -> None:
    mine, others = repeated(kind, 6), repeated(kind, 6)
    for name, values in drawn(data, kind, rows=6).items():
        others[name] = np.where(np.arange(6)[:, None] == row, mine[name], values)
    assert head(kind).sample(others, seed)[row].tobytes() == head(kind).sample(mine, seed)[row].tobytes()
    assert head(kind).mode(others)[row].tobytes() == head(kind).mode(repeated(kind, 1)).tobytes()


@pytest.mark.parametrize("kind", STOCHASTIC)
def test_samples_are_reproduced_offline_from_one_draw_of_philox(kind: str) -> None:
    first, *rest = (np.float64(np.float32(values)) for values in ROW[kind].values())
    generator = np.random.Generator(np.random.Philox(2**63 + 5))
    if kind == "beta":
        expected = scipy.special.betaincinv(first, rest[0], generator.random((40, 2)))
    elif kind == "categorical":
        shares = np.cumsum(scipy.special.softmax(first))
        expected = np.searchsorted(shares, generator.random((40, 1)), side="right")
    elif kind == "epsilon_greedy":
        explore, what = generator.random((40, 2)).T[:, :, None]
        expected = np.where(explore < EPSILON, np.floor(what * 5), 2)
    else:
        expected = first + np.exp(rest[0]) * generator.standard_normal((40, 2))
        expected = np.tanh(expected) if kind == "squashed_gaussian" else expected
    assert head(kind).sample(repeated(kind, 40), 2**63 + 5).tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize("across", ["rows", "seeds"])
@pytest.mark.parametrize("kind", STOCHASTIC)
def test_samples_follow_the_distribution(kind: str, across: str) -> None:
    rows, seeds = (6000, 1) if across == "rows" else (1, 1500)
    samples = np.concatenate([head(kind).sample(repeated(kind, rows), seed) for seed in range(seeds)])
    if kind in DISCRETE:
        shares = np.exp(reference(kind, repeated(kind, 5), np.arange(5, dtype=np.float32)[:, None]))
        counts = np.bincount(samples[:, 0].astype(int), minlength=5)
        assert scipy.stats.chisquare(counts, shares / shares.sum() * len(samples)).pvalue > 1e-3
        return
    first, second = (np.array(values, np.float64) for values in ROW[kind].values())
    exact = scipy.stats.beta(first, second) if kind == "beta" else scipy.stats.norm(first, np.exp(second))
    levels = exact.cdf(np.arctanh(np.float64(samples)) if kind == "squashed_gaussian" else samples)
    assert min(scipy.stats.kstest(level, "uniform").pvalue for level in levels.T) > 1e-3
    assert scipy.stats.spearmanr(*levels.T).pvalue > 1e-3


NO_NUMBER, NO_SCALE = [np.nan, np.inf, -np.inf], [np.nan, np.inf, 0.0, -0.5]
NO_LOGARITHM = [*NO_NUMBER, 800.0, -800.0]
NO_DISTRIBUTION: list[tuple[str, str, list[float]]] = [("categorical", "logits", NO_NUMBER)]
NO_DISTRIBUTION += [("epsilon_greedy", "q_values", NO_NUMBER), ("beta", "alpha", NO_SCALE), ("beta", "beta", NO_SCALE)]
for gaussian in CONTINUOUS[:2]:
    NO_DISTRIBUTION += [(gaussian, "mean", NO_NUMBER), (gaussian, "log_std", NO_LOGARITHM), (gaussian, "std", NO_SCALE)]


@pytest.mark.parametrize(("kind", "parameter", "values"), NO_DISTRIBUTION)
def test_a_row_that_is_no_distribution_is_nan_and_leaves_the_others_alone(
    kind: str, parameter: str, values: list[float]
) -> None:
    options = {"scale": parameter} if parameter == "std" else {}
    valid = {name.replace("log_std", parameter) if options else name: abs(v) for name, v in repeated(kind, 5).items()}
    chooser, others = head(kind, **options), np.arange(5) != 3
    some = np.full((5, 1 if kind in DISCRETE else 2), 0.5 if kind in CONTINUOUS else 1.0, np.float32)
    calls = [lambda p: chooser.mode(p), lambda p: chooser.sample(p, 3), lambda p: chooser.log_prob(p, some)[:, None]]
    for value in values:
        broken = {name: array.copy() for name, array in valid.items()}
        broken[parameter][3, 1] = value
        for call in calls[: 2 if value == -np.inf and kind == "categorical" else 3]:
            got, expected = call(broken), call(valid)
            assert np.isfinite(expected).all()
            assert np.isnan(got[3]).all()
            assert got[others].tobytes() == expected[others].tobytes()


MEANS = st.sampled_from([0.0, -0.0, 1.5, -700.0, 3e38, np.inf, np.nan])
SCALES = st.sampled_from([0.0, -1.0, 699.0, 700.0, 710.0, -740.0, -750.0, np.inf, np.nan])


@given(
    means=arrays(np.float32, (3, 2), elements=MEANS),
    scales=arrays(np.float32, (3, 2), elements=SCALES),
    scale=st.sampled_from(("log_std", "std")),
)
def test_the_short_way_to_a_gaussian_s_mode_has_the_bits_of_the_long_one(
    means: FloatArray, scales: FloatArray, scale: str
) -> None:
    gaussian, parameters = GaussianHead(scale), {"mean": means, scale: scales}
    shorter = gaussian.mode(parameters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GaussianHead, "_is_surely_valid", lambda *_: False)
        assert shorter.tobytes() == gaussian.mode(parameters).tobytes()


def test_row_without_a_distribution_has_no_log_probability_and_costs_its_mates_nothing() -> None:
    scores = np.array([[np.nan, 0.0], [0.0, 1.0]], np.float32)
    for discrete in map(head, DISCRETE):
        parameters = {discrete.parameter_names[0]: scores}
        likely = discrete.log_prob(parameters, discrete.mode(parameters))
        assert np.isnan(likely).tolist() == [True, False]


def test_beta_s_log_probability_at_the_end_of_its_range_is_exact() -> None:
    one, two = np.ones((1, 1), np.float32), np.full((1, 1), 2.0, np.float32)
    zero = np.zeros((1, 1), np.float32)
    assert head("beta").log_prob({"alpha": one, "beta": two}, zero) == pytest.approx(np.log(2))
    assert head("beta").log_prob({"alpha": two, "beta": one}, one) == pytest.approx(np.log(2))
