"""The goals of the campaign say of every limit what its rows say: nothing weak counts, nothing is met on too few runs, nothing unknown is a pass."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import render
from benchmarks.quality import campaign_tables, goals
from benchmarks.quality.measures import by_unit, clean_cost, uniform
from benchmarks.quality.seeds import headline
from benchmarks.rows import PROVENANCE
from meca.files import canonical_json
from tasks.benchmark.rows import read_rows

ORIGIN = {
    "command": "python -m x",
    "commit": "abc",
    "date": "2026-12-01",
    "hardware": "cpu, 1 of 2 cores",
    "torch": "2",
    "seconds": 61.0,
    "dirty": False,
}
SETS = ("cifar10-6k", "fashion-mnist-6k", "gtsrb-5k", "cifar100-8k")


def alone(seed: int, name: str = "cifar10-6k", **more: object) -> dict:
    return {
        "experiment": f"{name}, detection alone", "dataset": name.rpartition("-")[0], "n_train": 6000, "attack": "none", "preset": "default",
        "seed": seed, "until": "split", "verdict": "no_evidence", "flagged_share": 0.0, "cost": 1.5, "p_values": [0.1, 0.6, None], **ORIGIN, **more,
    }  # fmt: skip


def whole(attack: str, seed: int = 101, name: str = "cifar10-6k", **more: object) -> dict:
    return {
        "experiment": name, "dataset": name.rpartition("-")[0], "n_train": 6000, "n_test": 1000, "network": "compact", "stem": "s2d",
        "attack": attack, "preset": "default", "seed": seed, "until": None, "verdict": "poisoned", "poison_rate": 0.05, "poison_share": 0.34,
        "tpr": 0.98, "fpr": 0.01, "fpr_flagged": 0.04, "auroc": 0.99, "acc": 0.75, "asr_k": 30, "asr_n": 1000, "no_defence_acc": 0.76,
        "no_defence_asr": 0.9, "oracle_acc": 0.76, "oracle_asr": 0.025, "recall": [0.7, 0.8], "oracle_recall": [0.75, 0.79], "equal_passes": True,
        "removed": 10, "evidence": None, **ORIGIN, **more,
    }  # fmt: skip


def hundred(**more: object) -> list[dict]:
    rng = np.random.default_rng(0)
    return [alone(101 + i % 20, SETS[i // 20 % 4] + "?" * (i >= 80), p_values=rng.random(3).tolist(), **more) for i in range(100)]


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """More names, so that a hundred rows differ as those of the campaign do."""
    monkeypatch.setattr(goals, "CAMPAIGN", {**goals.CAMPAIGN, **{f"{name}?, detection alone": () for name in SETS}})


def of(what: str, detection: list[dict] = [], quality: list[dict] = []) -> goals.Aim:  # noqa: B006 - never changed
    (found,) = [each for each in goals.aims(detection, quality) if each.what.startswith(what)]
    return found


def every_seed(attack: str, **more: object) -> list[dict]:
    return [whole(attack, seed, name, **more) for name in SETS for seed in (101, 102, 103)]


def test_a_hundred_clean_runs_are_needed_to_say_that_false_alarms_are_rare() -> None:
    rows = hundred()
    called = [{**row, "verdict": "poisoned"} if i < 2 else row for i, row in enumerate(rows)]
    assert of("called poisoned", called).met is True and of("called poisoned", [*called[:99]]).word == "open, fewer than 100 runs"
    three = [{**row, "verdict": "poisoned"} if i < 3 else row for i, row in enumerate(rows)]
    assert of("called poisoned", three).met is False and of("called poisoned", three[:5]).met is False, "a miss is a miss"
    assert (of("runs", rows).value, of("runs", rows).met, of("runs", rows[:99]).met) == (100, True, False)


@pytest.mark.parametrize(("share", "met"), [(0.0, True), (0.01, True), (0.0101, False)])
def test_no_clean_run_may_lose_more_than_a_hundredth_whatever_its_verdict(share: float, met: bool) -> None:
    rows = [*hundred()[:99], alone(120, flagged_share=share, verdict="inconclusive")]
    assert of("more than 1 % of the samples flagged", rows).met is met


def test_p_values_are_held_against_the_uniform_distribution_of_all_classes() -> None:
    even = [{**row, "p_values": [(3 * i + j + 0.5) / 300 for j in range(3)]} for i, row in enumerate(hundred())]
    small = [{**row, "p_values": [p / 4 if p else p for p in row["p_values"]]} for row in hundred()]
    assert uniform(even)["n"] == 300 and uniform(even)["statistic"] == pytest.approx(0.5 / 300) and uniform(even)["p"] > 0.999
    assert uniform(even)["below"] == 0.05 and uniform(small)["statistic"] > 0.7 and uniform(small)["p"] < 1e-9
    assert (of("p-values", even).met, of("p-values", small).met) == (True, False)
    old = [{**row, "p_values": None} for row in hundred()]
    assert uniform(old) == {"n": 0, "statistic": None, "p": None, "below": None} and of("p-values", old).word == "not recorded"
    assert of("p-values", [*even, old[0]]).word == "open, not recorded in 1"
    assert uniform([alone(101, p_values=[None, 0.5])])["n"] == 1


def test_a_network_that_is_taken_over_from_detection_is_counted_once() -> None:
    assert clean_cost(alone(101, taken_over=True)) == 1.5 and clean_cost(alone(101, taken_over=False)) == 2.5
    assert clean_cost({"cost": 2.5, "until": None, "taken_over": True}) == 2.5, "what the whole pipeline trains is in its count"


def test_a_clean_set_costs_its_detection_and_one_training_after_it() -> None:
    rows = hundred()
    assert clean_cost(rows[0]) == 2.5 and clean_cost({"cost": 2.5, "until": None}) == 2.5 and clean_cost(alone(101, cost=None)) is None
    assert of("cost", rows).met is True and of("cost", [*rows, alone(101, cost=2.6)]).met is False
    assert of("cost", [*rows, alone(101, cost=None)]).word == "open, not recorded in 1"


def test_a_mean_is_over_sets_and_seeds_of_the_means_over_attacks_and_so_is_its_interval() -> None:
    rows = [whole("badnet", 101, tpr=0.9), whole("blend", 101, tpr=1.0), whole("badnet", 102, tpr=1.0), whole("badnet", 101, "gtsrb-5k", tpr=0.99)]
    assert by_unit(rows, lambda row: row["tpr"]) == pytest.approx([0.95, 1.0, 0.99])
    found = of("poison found", [], rows)
    assert found.value == pytest.approx(98.0) and found.runs == 4 and found.units == 3 and found.met is True
    half = 4.302653 * np.std([95, 100, 99], ddof=1) / 3**0.5
    assert found.interval == pytest.approx((98 - half, 98 + half), abs=1e-4)
    assert of("poison found", [], rows[:1]).interval is None


def test_each_limit_is_held_against_its_own_figure() -> None:
    rows = every_seed("badnet") + every_seed("blend")
    expected = {
        "poison not found": 0, "poison found": 98, "false alarms inside": 4, "ASR above": 0.5, "ACC below": 1.0, "recall that a class": 5.0,
    }  # fmt: skip
    for what, value in expected.items():
        assert of(what, [], rows).value == pytest.approx(value) and of(what, [], rows).met is True, what
    for what, more in (
        ("poison not found", {"tpr": 0.4}),
        ("poison not found", {"verdict": "inconclusive"}),
        ("poison not found", {"verdict": "weak", "tpr": 0.0}),
        ("recall that a class", {"recall": [0.66, 0.8]}),
    ):
        assert of(what, [], [*rows, whole("sig", **more)]).met is False, (what, more)
    worst = [each.value for each in goals.aims([], [*rows, whole("sig", asr_k=70, acc=0.7)]) if each.what == "the same, worst run"]
    assert worst == pytest.approx([4.5, 6.0])


def test_what_is_said_of_less_than_two_points_is_open_on_fewer_than_five_sets() -> None:
    rows = every_seed("badnet")
    assert of("ASR above", [], rows[:4]).word == "open, fewer than 5 sets" and of("ASR above", [], rows[:5]).met is True
    assert of("poison found", [], rows[:2]).met is True, "that is no difference of points"


def test_an_oracle_with_fewer_passes_says_nothing() -> None:
    rows = [*every_seed("badnet"), whole("blend", equal_passes=None, acc=0.1)]
    assert of("ACC below", [], rows).value == pytest.approx(1.0) and of("ACC below", [], rows).word == "open, not recorded in 1"


def test_an_attack_that_does_not_work_on_a_set_counts_there_nowhere_and_stands_apart() -> None:
    rows = [*every_seed("badnet"), whole("wanet", no_defence_asr=0.1, tpr=0.0, verdict="no_evidence"), whole("wanet", 101, "gtsrb-5k")]
    rows += [whole("blend", no_defence_asr=None, tpr=0.0, verdict="no_evidence"), whole("none", no_defence_asr=None, tpr=None, verdict="no_evidence")]
    assert of("poison not found", [], rows).met is True and of("poison not found", [], rows).runs == 13
    text = campaign_tables.section([], rows)
    usual, apart = text.split("### Attacks that do not work without a defence")
    assert "| gtsrb-5k | wanet | 1 |" in usual and "| cifar10-6k | wanet |" not in usual
    assert "| cifar10-6k | wanet | 34.0 % | 5.00 % | 1 | 10.0 % | 1 no evidence | 0.0 |" in apart and "| gtsrb-5k | wanet |" not in apart


def test_poison_that_is_most_of_its_class_is_found_or_the_test_is_called_weak() -> None:
    name, weak = "gtsrb-5k, 91 % of its class", {"verdict": "weak", "tpr": 0.0}
    good = [whole("badnet", 101, name), whole("badnet", 102, name, **weak)]
    for more, quiet, lost in (({}, True, True), ({"verdict": "no_evidence", "tpr": 0.0}, False, False), ({"verdict": "inconclusive"}, True, False)):
        rows = [*good, whole("badnet", 103, name, **more)]
        assert (of("called free of evidence", [], rows).met, of("neither found nor", [], rows).met) == (quiet, lost)
    assert not of("poison not found", [], good).runs, "they are no attacks at 5 %"
    text = campaign_tables.section([], [{**row, "poison_share": 0.91, "poison_rate": 0.0546} for row in good])
    assert f"| {name} | badnet | 91.0 % | 5.46 % | 2 | 90.0 % | 1 poisoned, 1 weak | 2 of 2 |" in text
    assert "### Attacks at 5 %" not in text and "### 1 % and less" not in text


def test_clean_sets_have_a_line_each_with_their_verdicts_and_the_test() -> None:
    rows = [alone(101), alone(102, verdict="poisoned", flagged_share=0.025, cost=2.5), alone(101, "digits", p_values=None)]
    text = campaign_tables.section(rows, [])
    p = uniform(rows[:2])
    line = f"| cifar10-6k, detection alone | 2 | 1 no evidence, 1 poisoned | 1 | 2.50 % | 4 | 0.0 % | {p['statistic']:.3f} | {p['p']:.3g} |"
    assert line in text and "| 3.00 (-3.35 to 9.35) |" in text
    assert "| digits, detection alone | 1 | 1 no evidence | 0 | 0.00 % | 0 | – | – | – | 2.50 |" in text
    assert "`python -m benchmarks.quality --campaign --only 'cifar10-6k, detection alone'`" in text and "cpu, 1 of 2 cores" in text


def test_both_stand_in_the_results_where_there_are_rows_and_nowhere_without(tmp_path: Path) -> None:
    assert goals.campaign([], []) == "" == campaign_tables.section([], [])
    assert goals.campaign([alone(101, "shapes-x")], [whole("badnet", name="other")]) == ""
    kinds = {"detection": [alone(101), alone(101, verdict="poisoned"), alone(102, dirty=True, verdict="poisoned")], "quality": [whole("badnet")]}
    for kind, rows in kinds.items():
        (tmp_path / f"{kind}.jsonl").write_text("".join(canonical_json(row, indent=None) for row in rows))
    (tmp_path / "detection.jsonl").write_text((tmp_path / "detection.jsonl").read_text() + canonical_json(alone(103, status="failed"), indent=None))
    rows = render.read(tmp_path)
    assert [(row["seed"], row["verdict"]) for row in rows["detection"]] == [(101, "poisoned"), (102, "poisoned")], (
        "the newest of each, and no failed one"
    )
    text = render.render(rows)
    assert (
        text.index("## Goals of the campaign") < text.index("## The campaign\n")
        and goals.campaign(headline(rows["detection"]), rows["quality"]) in text
    )
    assert "| clean sets | called poisoned | ≤ 2 runs | 1 runs | – | 1 | open, fewer than 100 runs |" in text
    assert "| attacks at 5 % | ASR above the oracle's, mean | ≤ 1 points | 0.5 points | – | 1 | open, fewer than 5 sets |" in text
    assert set(PROVENANCE) <= {*ORIGIN, "seed"} and len(read_rows(tmp_path / "detection.jsonl")) == 4
