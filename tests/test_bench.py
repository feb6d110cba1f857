"""What the benchmark makes of figures: statistics, goals, comparison, report, exit status. Nothing is measured here."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.bench.comparison import Change, compare
from benchmarks.bench.figures import estimate
from benchmarks.bench.histograms import Histogram
from benchmarks.bench.plan import Plan, quick_plan
from benchmarks.bench.report import render
from benchmarks.bench.results import Participant, Results, load_results
from benchmarks.bench.slo import Objective, judge, load_objectives
from benchmarks.bench.statistics import median_interval, pooled_percentile, pooled_ratio, ratio_of_rounds
from carla_policy_tools.cli import app
from tests.made_up_results import constant, everything, results_of, rounds_of, slice_of, start_of

GOAL = Objective(source="test", name="P50", figure="p50_ms@closed-1", of="ours", against="other", at_most=0.5)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


# Statistics


def test_a_histogram_has_the_nearest_rank_percentiles() -> None:
    histogram = Histogram.of_seconds(number / 1e3 for number in range(1, 101))
    assert [histogram.percentile_ms(percent) for percent in (50, 99, 99.9, 100)] == [50, 99, 100, 100]
    assert math.isnan(Histogram().percentile_ms(50))


def test_pooled_histograms_are_those_of_all_requests() -> None:
    slow, fast = constant(100.0, 1), constant(1.0, 99)
    pooled = Histogram.pooled([slow, fast])
    assert len(pooled) == 100
    assert (pooled.percentile_ms(99), pooled.percentile_ms(99.5)) == (1.0, 100.0)


def test_the_interval_of_a_median_is_of_order_statistics() -> None:
    found = median_interval([float(number) for number in (9, 1, 8, 2, 7, 3, 6, 4, 5, 10)])
    assert (found.value, found.low, found.high) == (5.5, 2.0, 9.0)
    assert found.confidence == pytest.approx(1 - 2 * 11 / 1024)


def test_few_rounds_reach_no_more_confidence_than_they_have() -> None:
    found = median_interval([1.0, 2.0, 4.0])
    assert (found.value, found.low, found.high, found.confidence) == (2.0, 1.0, 4.0, 0.75)
    assert median_interval([3.0]).confidence == 0.0


def test_the_interval_of_a_median_holds_as_often_as_it_says() -> None:
    chance = random.Random(1)
    samples = ([chance.expovariate(1.0) for _ in range(9)] for _ in range(2000))
    intervals = [median_interval(sample) for sample in samples]
    share = sum(one.low <= math.log(2) <= one.high for one in intervals) / len(intervals)
    assert share == pytest.approx(intervals[0].confidence, abs=0.02)


def test_ratios_are_taken_within_rounds() -> None:
    """Round 1 was ten times slower for both: the medians of each alone would say something else."""
    found = ratio_of_rounds({0: 1.0, 1: 20.0, 2: 3.0}, {0: 2.0, 1: 40.0, 2: 4.0, 3: 1.0})
    assert (found.value, found.rounds) == (0.5, 3)


def test_a_high_percentile_is_of_all_rounds_together() -> None:
    histograms = {number: constant(1.0, 995) for number in range(4)} | {4: constant(50.0, 20)}
    assert pooled_percentile(histograms, 99).value == 1.0
    assert pooled_percentile(histograms, 99.9).value == 50.0


def test_a_pooled_ratio_is_reproducible_and_encloses_its_value() -> None:
    chance = random.Random(2)
    one, other = (
        {number: Histogram.of_seconds(chance.expovariate(rate) for _ in range(200)) for number in range(6)}
        for rate in (100, 200)
    )
    found = pooled_ratio(one, other, 99)
    assert found == pooled_ratio(one, other, 99)
    assert found.low <= found.value <= found.high
    assert found.value > 1


# Figures


def test_slices_with_a_failure_are_no_figures() -> None:
    slices = [slice_of("ours", 0), slice_of("ours", 1, failed=1, latencies=constant(9.0))]
    results = results_of(slices)
    found = estimate(results, "p50_ms@closed-1", "ours")
    assert found is not None
    assert (found.value, found.rounds) == (1.0, 1)
    assert len(results.invalid) == 1


def test_what_was_not_measured_has_no_figure() -> None:
    assert estimate(results_of([slice_of("ours")]), "p50_ms@closed-64", "ours") is None
    assert estimate(results_of([slice_of("ours")]), "p99_ms@closed-1", "ours", "other") is None
    assert estimate(results_of(), "p99_ms@start-1", "ours") is None


def test_a_figure_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="p42_ms@closed-1: there is no such figure"):
        estimate(results_of([slice_of("ours")]), "p42_ms@closed-1", "ours")


@pytest.mark.parametrize(
    ("figure", "of", "expected"),
    [
        ("cpu_us@closed-1", "ours-realtime", 499.0),
        ("frontend_cpu_us@closed-64", "ours-realtime", 399.0),
        ("worker_cpu_us@closed-64", "ours-realtime", 99.8),
        ("per_second@closed-64", "ours-throughput", 1002.5),
        ("pss_mib@run", "fastapi-2", 200.0),
        ("ready_s@start-1", "ours-realtime", 1.2),
        ("first_answer_s@start-2", "ours-realtime", 1.3),
        ("rows_per_second@bulk-1024", "ours-json", 204800.0),
        ("p99_ms@start-1", "fastapi-2", 1.0),
    ],
)
def test_figures_are_found_by_name(figure: str, of: str, expected: float) -> None:
    found = estimate(everything(), figure, of)
    assert found is not None
    assert found.value == pytest.approx(expected, rel=2e-3)


# Goals


@pytest.mark.parametrize(
    ("ours", "outcome", "certain"),
    [([1.0] * 6, "met", True), ([2.0] * 6, "missed", True), ([0.5, 0.5, 0.6, 0.6, 3.0, 0.5], "met", False)],
)
def test_a_goal_is_judged_by_its_value_and_certain_by_its_interval(
    ours: list[float], outcome: str, certain: bool
) -> None:
    (verdict,) = judge(results_of([*rounds_of("ours", ours), *rounds_of("other", [2.0] * 6)]), [GOAL])
    assert (verdict.outcome, verdict.certain) == (outcome, certain)


def test_a_goal_that_was_not_measured_is_neither_met_nor_missed() -> None:
    (verdict,) = judge(results_of(rounds_of("ours", [1.0])), [GOAL])
    assert verdict.outcome == "not measured"


def test_the_shipped_goals_are_those_of_the_requirements_and_of_the_design() -> None:
    verdicts = judge(everything(), load_objectives())
    assert {verdict.objective.source for verdict in verdicts} == {"PRD", "design"}
    assert [verdict.objective.name for verdict in verdicts if verdict.outcome == "not measured"] == []


@pytest.mark.parametrize(
    "line", ["{source: a, name: b, figure: p50_ms@client, of: c}", "{source: a, name: b, figure: f, of: c, at_most: x}"]
)
def test_a_goal_without_a_limit_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "slo.yaml").write_text(f"- {line}\n")
    with pytest.raises(ValueError, match=r"slo\.yaml: 0"):
        load_objectives(tmp_path / "slo.yaml")


# Comparison with a baseline


def pair(ours: float, reference: float) -> Results:
    """Ours and FastAPI, six rounds each."""
    return results_of([*rounds_of("ours-realtime", [ours] * 6), *rounds_of("fastapi-2", [reference] * 6)])


def change(before: Results, now: Results, **options: bool) -> Change:
    (found,) = (one for one in compare(before, now, **options) if one.figure == "p50_ms@closed-1")
    return found


def test_a_slower_machine_is_no_regression() -> None:
    found = change(pair(1.0, 2.0), pair(10.0, 20.0))
    assert found.percent == pytest.approx(0)
    assert not found.is_worse(10)


def test_a_figure_that_is_worse_than_its_neighbours_is_a_regression() -> None:
    found = change(pair(1.0, 2.0), pair(1.2, 2.0))
    assert found.percent == pytest.approx(20)
    assert found.is_worse(10)
    assert not found.is_worse(25)


def test_absolute_figures_are_compared_when_asked_for() -> None:
    assert change(pair(1.0, 2.0), pair(10.0, 20.0), absolute=True).is_worse(10)


def test_fewer_requests_a_second_are_worse() -> None:
    before, now = (
        results_of(
            [
                slice_of(name, number, connections=64, requests=requests if name == "ours-realtime" else 1000)
                for name in ("ours-realtime", "fastapi-2")
                for number in range(6)
            ]
        )
        for requests in (2000, 1000)
    )
    (found,) = (one for one in compare(before, now) if one.figure == "per_second@closed-64")
    assert found.percent == pytest.approx(100)


def test_what_rounds_differ_by_anyway_is_no_regression() -> None:
    noisy = results_of(
        [*rounds_of("ours-realtime", [0.5, 1.3, 0.6, 1.4, 1.3, 1.35]), *rounds_of("fastapi-2", [2.0] * 6)]
    )
    found = change(pair(1.0, 2.0), noisy)
    assert found.percent > 10
    assert not found.is_worse(10)


# Report


def test_the_report_needs_nothing_but_itself() -> None:
    page = render(everything(), judge(everything(), load_objectives()), compare(everything(), everything()))
    loaded = re.findall(r"""(?:src|href)\s*=\s*["'](?!#)([^"']*)""", page)
    assert loaded == []
    assert "@import" not in page
    assert "<script" not in page
    assert page.count("<svg") == 7


def test_the_report_says_what_was_measured_and_how_it_ended() -> None:
    results = everything()
    page = render(results, judge(results, load_objectives()))
    for text in (
        "a processor",
        "Requests of many rows",
        "Fresh starts",
        "Versions and workers",
        "0123456789ab",
        "wrk: not installed",
        "<h2>Goals</h2>",
        "<h2>Limits</h2>",
    ):
        assert text in page
    for participant in results.participants:
        assert participant.name in page


def test_the_report_shows_who_was_refused_and_what_was_invalid() -> None:
    refused = Participant(name="liar", title="<a liar>", refused="expected [0.1], got [0.2]")
    page = render(results_of([slice_of("ours", failed=3)], participants=[refused]), [])
    assert "not measured: expected [0.1], got [0.2]" in page
    assert "&lt;a liar&gt;" in page
    assert "ours, closed, round 0: 3 of 1003" in page


def test_a_report_of_a_single_section_is_possible() -> None:
    page = render(results_of(starts=[start_of("ours-realtime")]), [])
    assert "Fresh starts" in page
    assert "<svg" not in page


# The command


@pytest.fixture
def goals(tmp_path: Path) -> list[str]:
    path = tmp_path / "slo.yaml"
    path.write_text(
        "- {source: t, name: n, figure: p50_ms@closed-1, of: ours-realtime, against: fastapi-2, at_most: 0.6}\n"
    )
    return ["--slo", str(path), "--output", str(tmp_path / "out"), "--baseline", str(tmp_path / "baseline.json")]


def written(results: Results, path: Path) -> str:
    path.write_text(results.model_dump_json())
    return str(path)


def test_results_read_back_are_the_same(tmp_path: Path) -> None:
    assert load_results(Path(written(everything(), tmp_path / "results.json"))) == everything()


def test_the_exit_status_says_whether_all_goals_are_met(goals: list[str], tmp_path: Path) -> None:
    good = invoke("--show", written(pair(1.0, 2.0), tmp_path / "good.json"), *goals, "--json")
    assert good.exit_code == 0
    assert json.loads(good.stdout)["problems"] == []
    assert (tmp_path / "out" / "report.html").is_file()
    bad = invoke("--show", written(pair(1.5, 2.0), tmp_path / "bad.json"), *goals, "--json")
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)["problems"] == ["ours-realtime, n: 0.75, expected ≤ 0.6 x fastapi-2"]


def test_an_invalid_slice_fails_the_run(goals: list[str], tmp_path: Path) -> None:
    spoilt = [*pair(1.0, 2.0).slices, slice_of("fastapi-2", 9, failed=1)]
    run = invoke("--show", written(results_of(spoilt), tmp_path / "spoilt.json"), *goals)
    assert run.exit_code == 1
    assert "FAILED wrong or missing answers: fastapi-2, closed, round 9: 1 of 1001" in run.stdout


def test_a_regression_against_the_saved_baseline_fails_the_run(goals: list[str], tmp_path: Path) -> None:
    before, now = written(pair(1.0, 2.0), tmp_path / "a.json"), written(pair(1.15, 2.0), tmp_path / "b.json")
    assert invoke("--show", before, *goals, "--save-baseline").exit_code == 0
    assert invoke("--show", before, *goals, "--compare-baseline").exit_code == 0
    worse = invoke("--show", now, *goals, "--compare-baseline")
    assert worse.exit_code == 1
    assert "15.0 % worse than the baseline" in worse.stdout
    assert invoke("--show", now, *goals, "--compare-baseline", "--threshold", "20").exit_code == 0


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"format": 2}')
    with pytest.raises(ValueError, match=r"other\.json: not the results of a benchmark"):
        load_results(path)


def test_without_the_extra_the_command_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carla_policy_tools.benchmark_commands._NEEDED", ("jinja2", "no_such_package"))
    run = invoke("--quick")
    assert isinstance(run.exception, ValueError)
    assert str(run.exception) == "bench needs no_such_package: run `make bench`, or pip install -e '.[bench]'"


def test_drills_are_a_verb() -> None:
    run = CliRunner().invoke(app, ["drill", "--help"])
    assert run.exit_code == 0
    for drill in ("cycles", "flips", "soak", "health"):
        assert drill in run.stdout
    assert CliRunner().invoke(app, ["drill", "soak", "--requests", "0"]).exit_code == 2


@pytest.mark.parametrize(
    ("plot", "message"), [("soak.txt", "ends in .svg, .png, .pdf"), ("missing/soak.svg", "there is no directory")]
)
def test_what_cannot_be_drawn_is_refused_before_the_drill(tmp_path: Path, plot: str, message: str) -> None:
    run = CliRunner().invoke(app, ["drill", "soak", "--plot", str(tmp_path / plot)], env={"COLUMNS": "200"})
    assert run.exit_code == 2
    assert message in run.stderr


def test_other_verbs_do_not_import_what_only_the_benchmark_needs() -> None:
    code = "import sys, carla_policy_tools.cli; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    imported = {name.partition(".")[0] for name in run.stdout.split()}
    assert "carla_policy_tools" in imported
    assert imported & {"benchmarks", "psutil", "matplotlib", "jinja2", "fastapi", "numpy", "torch"} <= {"numpy"}


# The plan


def test_every_round_visits_all_contenders_in_an_order_of_its_own() -> None:
    names = list("abcdef")
    orders = [order for _, order in Plan().shuffled(names, 8)]
    assert all(sorted(order) == names for order in orders)
    assert len({tuple(order) for order in orders}) > 4
    assert orders == [order for _, order in Plan().shuffled(names, 8)]


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(ValueError, match="latency: no section; choose of starts, rounds"):
        quick_plan(sections=("latency",))
