"""The table of the goals says of every limit what the rows say, and nothing more."""

import pytest

from benchmarks import render
from benchmarks.quality import goals
from benchmarks.quality.seeds import headline


def run(attack: str, seed: int, **more: object) -> dict:
    return {
        "dataset": "cifar10", "experiment": "cifar10-10k", "fpr_flagged": 0.05, "equal_passes": True,
        "attack": attack, "preset": "default", "seed": seed, "n_train": 1000, "removed": 10, "verdict": "poisoned",
        "acc": 0.75, "no_defence_acc": 0.76, "oracle_acc": 0.77, "asr_k": 30, "asr_n": 1000, "no_defence_asr": 0.9, "oracle_asr": 0.01,
        "recall": [0.7, 0.8], "oracle_recall": [0.75, 0.79], "tpr": 0.98, "fpr": 0.02, "auroc": 0.99,
        "stage_seconds": {"partition": 10, "enhance": 20, "split": 30, "train_clean": 20, "relabel_finetune": 10, "evaluate": 900}, **more,
    }  # fmt: skip


def of(rows: list[dict], what: str, data: str = "cifar10-10k") -> goals.Goal:
    (found,) = [goal for goal in goals.goals(rows) if goal.data == data and goal.what == what]
    return found


def test_each_limit_is_held_against_its_own_figure():
    rows = [run("badnet", 1), run("none", 1, acc=0.74, removed=5, asr_k=None, asr_n=None, no_defence_asr=None, oracle_asr=None)]
    expected = {
        "attacks that work without a defence": 1, "of these, attacks with 3 seeds": 0, "ASR above the oracle's, mean": 2,
        "ACC below the oracle's, mean": 2, "recall that a class loses, worst class of all runs": 5, "poison found (TPR), mean": 98,
        "false alarms (FPR), mean": 2, "false alarms inside flagged classes, mean": 5,
        "AUROC, mean": 0.99, "no attack: ACC below a plain training, worst": 2, "no attack: removed, worst": 0.5,
        "cost in plain trainings, worst run": 4.5, "runs without an answer (inconclusive)": 0,
    }  # fmt: skip
    for what, value in expected.items():
        assert of(rows, what).value == pytest.approx(value), what
    assert [of(rows, what).met for what in ("ASR above the oracle's, mean", "ACC below the oracle's, mean", "AUROC, mean")] == [False, True, True]


def test_a_run_without_an_answer_is_no_pass():
    nothing = {"verdict": "inconclusive", "removed": 0}
    rows = [run("none", 1, asr_k=None, asr_n=None, no_defence_asr=None, oracle_asr=None, no_defence_acc=None, **nothing)]
    assert (of(rows, "no attack: removed, worst").value, of(rows, "no attack: removed, worst").met) == (100, False)
    assert of(rows, "runs without an answer (inconclusive)").met is False
    assert of([run("badnet", 1), run("badnet", 2, **nothing)], "runs without an answer (inconclusive)").met is False


def test_means_weigh_attacks_alike_and_the_worst_run_counts():
    rows = [run("badnet", 1, asr_k=10), run("badnet", 2, asr_k=30), run("badnet", 3, asr_k=20), run("blend", 1, asr_k=70)]
    assert of(rows, "ASR above the oracle's, mean").value == pytest.approx(3.5)
    worst = [goal for goal in goals.goals(rows) if goal.data == "cifar10-10k" and goal.what == "the same, worst run"]
    assert [goal.value for goal in worst] == pytest.approx([6, 2]) and [goal.met for goal in worst] == [False, True]
    assert of(rows, "of these, attacks with 3 seeds").value == 1


def test_an_attack_that_does_not_work_and_another_preset_prove_nothing():
    rows = [run("badnet", 1), run("wanet", 1, asr_k=1000, no_defence_asr=0.1), run("blend", 1, asr_k=1000, preset="paper")]
    assert of(rows, "ASR above the oracle's, mean").value == pytest.approx(2) and of(rows, "ASR above the oracle's, mean").runs == 1


def test_the_special_cases_have_their_own_rows():
    rows = [
        run("badnet", 1, experiment="cifar10-10k, 10 % wrong labels"),
        run("badnet", 1, experiment="cifar10-10k, 1 % poison", no_defence_asr=0.1),
        run("badnet", 2, experiment="digits"),
        run("blend", 2, experiment="digits", verdict="inconclusive", removed=0, asr_k=1000),
        run("blend", 3, experiment="digits", verdict="inconclusive", removed=1, asr_k=50),
    ]
    assert of(rows, "ACC below no defence, worst", "cifar10-10k, 10 % wrong labels").met is False
    assert of(rows, "badnet: ASR above the oracle's, worst", "cifar10-10k, 1 % poison").value == pytest.approx(2)
    assert of(rows, "badnet: ASR above the oracle's, worst", "cifar10-10k, 1 % poison").weak
    assert not of(rows, "badnet: ASR above the oracle's, worst", "fashion-mnist-20k, 1 % poison").runs
    assert of(rows, "blend: ASR above the oracle's, worst", "cifar10-10k, 1 % poison").met is None  # one attack says nothing of the other
    assert of(rows, "ASR above the oracle's, worst", "digits").value == pytest.approx(4)  # inconclusive is an answer only where nothing is removed


def test_the_section_says_met_missed_or_no_row():
    text = goals.section([run("badnet", 101)])
    assert "| cifar10-10k | ASR above the oracle's, mean | ≤ 1.5 points | 2.0 points | 1 | equal passes | **missed** |" in text
    assert "| cifar10-10k | AUROC, mean | ≥ 0.98 | 0.990 | 1 |  | met |" in text
    assert "| fashion-mnist-20k | AUROC, mean | ≥ 0.98 | – | 0 |  | no row |" in text
    rare = [run("badnet", 1, experiment="fashion-mnist-20k, 1 % poison"), run("badnet", 1, experiment="cifar10-10k, 1 % poison", no_defence_asr=0.1)]
    for name, word in (("fashion-mnist-20k", "met"), ("cifar10-10k", "met, weak attack")):
        line = f"| {name}, 1 % poison | badnet: ASR above the oracle's, worst | ≤ 5 points | 2.0 points | 1, looked at | equal passes | {word} |"
        assert line in goals.section(rare)
    noisy = run("badnet", 1, experiment="cifar10-10k, 10 % wrong labels", acc=0.77, no_defence_asr=0.1)
    assert goals.section([noisy]).count("weak attack") == 2 and "weak attack" not in goals.section([noisy | {"no_defence_asr": 0.9}])
    assert goals.section([run("badnet", 1, experiment="shapes")]) == ""


def test_what_is_said_of_less_than_two_points_is_open_on_fewer_than_five_seeds_of_an_attack():
    what, few = "ASR above the oracle's, mean", [run("badnet", seed, asr_k=11) for seed in range(101, 105)]
    assert (of(few, what).value, of(few, what).met, of(few, what).word) == (pytest.approx(0.1), None, "open, fewer than 5 seeds")
    enough = [*few, run("badnet", 105, asr_k=11)]
    assert of(enough, what).met is True and of(enough, what).word == "met"
    assert of([*enough, run("blend", 101, asr_k=11)], what).met is None, "every attack needs them"
    assert of([run("badnet", 101, asr_k=900)], what).met is False, "a miss is a miss"


def test_a_run_that_does_not_say_a_figure_leaves_its_goal_open():
    what = "no attack: ACC below a plain training, worst"
    quiet = [run("none", seed, acc=0.76, asr_k=None, asr_n=None, no_defence_asr=None, oracle_asr=None) for seed in range(101, 106)]
    assert of(quiet, what).met is True
    unknown = [*quiet, {**quiet[0], "seed": 106, "acc": 0.5, "no_defence_acc": None}]
    assert (of(unknown, what).met, of(unknown, what).word) == (None, "open, not recorded in 1")


def test_false_alarms_inside_of_flagged_classes_have_a_goal():
    what = "false alarms inside flagged classes, mean"
    assert of([run("badnet", 101, fpr_flagged=0.3), run("badnet", 102, fpr_flagged=0.1)], what).met is False
    assert of([run("badnet", 101, fpr_flagged=None), run("badnet", 102)], what).met is True, (
        "where nothing is flagged there is none, and that is known"
    )
    old = run("badnet", 1)
    del old["fpr_flagged"]
    assert (of([old], what).value, of([old], what).word) == (None, "not recorded")
    assert of([old, run("badnet", 2)], what).word == "open, not recorded in 1"


def test_a_goal_against_references_says_of_how_many_runs_they_had_equal_passes():
    old = run("badnet", 1)
    del old["equal_passes"]
    both = ([old], [old, run("badnet", 2)], [run("badnet", 2)])
    found = [of(rows, "ACC below the oracle's, mean").references for rows in both]
    assert found == ["not recorded", "equal passes in 1", "equal passes"] and of([old], "AUROC, mean").references == ""


def test_it_stands_in_the_results():
    rows = render.read(render.ROOT / "benchmarks" / "results")
    assert goals.section(headline(rows["quality"])) in render.render(rows) and "| cifar10-10k | ASR above the oracle's, mean |" in render.render(rows)
