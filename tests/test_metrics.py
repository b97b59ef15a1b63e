"""The measures: hand-worked cases, published intervals, and an independent count of the AUROC."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from meca.metrics import ATTACK_KEYS, BINS, ROC_AT, accuracy, attack_figures, attack_success, auroc, detection, separation, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high", "digits"),
    [(0, 910, 0.0, 0.42, 2), (6, 910, 0.30, 1.43, 2), (0, 9000, 0.0, 0.043, 3), (45, 9000, 0.37, 0.67, 2)],
)
def test_wilson_gives_the_intervals_of_the_reference(k: int, n: int, low: float, high: float, digits: int) -> None:
    assert tuple(round(100 * end, digits) for end in wilson(k, n)) == (low, high)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (3, 7), (45, 9000), (27_000, 27_000)])
def test_wilson_is_the_interval_of_95_percent_to_the_last_digits(k: int, n: int) -> None:
    from scipy.stats import binomtest

    assert wilson(k, n) == pytest.approx(tuple(binomtest(k, n).proportion_ci(0.95, "wilson")), rel=1e-12, abs=1e-15)


@examples(derandomize=True, deadline=None)
@given(n=st.integers(1, 10_000), share=st.floats(0, 1))
def test_an_interval_contains_its_share_and_stays_within_bounds(n: int, share: float) -> None:
    k = round(share * n)
    low, high = wilson(k, n)
    assert 0 <= low <= k / n + 1e-12 and k / n <= high + 1e-12 and high <= 1
    mirrored = wilson(n - k, n)
    assert math.isclose(low, 1 - mirrored[1], abs_tol=1e-12) and math.isclose(high, 1 - mirrored[0], abs_tol=1e-12)


def test_no_trial_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_accuracy_by_hand() -> None:
    found = accuracy(np.array([0, 0, 1, 2, 1, 0]), np.array([0, 0, 0, 1, 1, 1]), 4)
    assert (found["acc"], found["correct"], found["n"]) == (0.5, 3, 6)
    assert found["recall"] == [2 / 3, 1 / 3, None, None]
    assert found["confusion"] == [[2, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@examples(derandomize=True, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 100))
def test_recalls_weighted_by_class_size_give_the_accuracy(seed: int, n: int) -> None:
    labels, predicted = np.random.default_rng(seed).integers(0, 5, (2, n))
    found = accuracy(predicted, labels, 5)
    weighted = sum((r or 0.0) * (labels == c).sum() for c, r in enumerate(found["recall"])) / n
    assert found["acc"] == pytest.approx(weighted) == pytest.approx(float((labels == predicted).mean()))
    assert np.sum(found["confusion"]) == n


def test_attack_success_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    triggered = np.array([1, 0, 1, 1, 1, 2])
    clean = np.array([0, 1, 1, 1, 2, 0])
    found = attack_success(triggered, clean, labels, 1)
    assert (found["asr"], found["asr_k"], found["asr_n"], found["ra"], found["base_rate"]) == (0.5, 2, 4, 0.5, 0.25)
    assert found["asr_interval"] == list(wilson(2, 4))


def test_images_of_the_target_class_count_nowhere_in_the_attack() -> None:
    rng = np.random.default_rng(0)
    labels, triggered, clean, other = rng.integers(0, 3, (4, 60))
    mine = labels == 2
    assert mine.any()
    changed = [np.where(mine, other, values) for values in (triggered, clean)]
    assert attack_success(triggered, clean, labels, 2) == attack_success(*changed, labels, 2)


def test_a_model_that_always_answers_the_target_has_full_success_and_no_robust_accuracy() -> None:
    labels = np.arange(30) % 3
    always = np.full(30, 1)
    found = attack_success(always, always, labels, 1)
    assert (found["asr"], found["ra"], found["base_rate"], found["asr_n"]) == (1.0, 0.0, 1.0, 20)


def test_a_test_set_of_the_target_class_alone_has_no_attack_to_measure() -> None:
    ones = np.ones(5, dtype=np.int64)
    found = attack_success(ones, ones, ones, 1)
    assert (found["asr"], found["asr_n"], found["asr_interval"]) == (0.0, 0, [0.0, 1.0])


def test_detection_by_hand_and_covers_are_no_false_alarms() -> None:
    poisoned = np.array([1, 1, 1, 0, 0, 0, 0], dtype=bool)
    covers = np.array([0, 0, 0, 1, 1, 0, 0], dtype=bool)
    flagged = np.array([1, 0, 0, 1, 1, 1, 0], dtype=bool)
    suspicion = np.array([0.9, 0.5, 0.3, 0.8, 0.95, 0.6, 0.2])
    labels = np.array([1, 1, 0, 0, 0, 1, 0])
    assert detection(flagged, suspicion, poisoned, covers, labels, 1) == {
        "tpr": 1 / 3, "fpr": 0.5, "fpr_flagged": 0.5, "auroc": 4 / 6, "auroc_target": 0.5, "poisoned": 3, "poison_left": 2, "flagged": 4,
        "covers": 2, "covers_flagged": 2, "noise": 0, "noise_flagged": 0,
    }  # fmt: skip


def test_where_one_kind_is_missing_its_rates_are_missing() -> None:
    nothing, everything = np.zeros(4, dtype=bool), np.ones(4, dtype=bool)
    labels, suspicion = np.zeros(4, dtype=np.int64), np.arange(4.0)
    without_poison = detection(nothing, suspicion, nothing, nothing, labels, 0)
    assert (without_poison["tpr"], without_poison["fpr"], without_poison["auroc"], without_poison["auroc_target"]) == (None, 0.0, None, None)
    all_poison = detection(everything, suspicion, everything, nothing, labels, 0)
    assert (all_poison["tpr"], all_poison["fpr"], all_poison["auroc"]) == (1.0, None, None)


@examples(derandomize=True, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 60), more=st.integers(0, 40))
def test_classes_without_a_flag_dilute_the_false_alarms_of_all_and_not_those_inside_of_flagged_ones(seed: int, n: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    flagged, poisoned, covers = rng.random(n) < 0.2, rng.random(n) < 0.3, rng.random(n) < 0.1
    labels, suspicion = rng.integers(0, 4, n), rng.random(n)
    found = detection(flagged, suspicion, poisoned, covers & ~poisoned, labels, 1)
    mine = [not p and not c for p, c in zip(poisoned, covers, strict=True)]
    inside = [bool(f) for f, label, clean in zip(flagged, labels, mine, strict=True) if clean and label in set(labels[flagged])]
    assert found["fpr_flagged"] == (pytest.approx(sum(inside) / len(inside)) if inside else None)
    if not flagged.any():
        assert found["fpr_flagged"] is None
    none = np.zeros(more, dtype=bool)
    wider = detection(*(np.append(each, none) for each in (flagged, suspicion, poisoned, covers & ~poisoned)), np.append(labels, none + 9), 1)
    assert wider["fpr_flagged"] == found["fpr_flagged"]
    assert found["fpr"] is None or wider["fpr"] <= found["fpr"] <= (found["fpr_flagged"] or 0.0)


@examples(derandomize=True, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(2, 60))
def test_the_auroc_is_the_share_of_rightly_ordered_pairs(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    score, positive, among = rng.integers(0, 8, n) / 8, rng.random(n) < 0.4, rng.random(n) < 0.8
    highs, lows = score[positive & among], score[~positive & among]
    found = auroc(score, positive, among)
    if len(highs) == 0 or len(lows) == 0:
        assert found is None
    else:
        pairs = [1.0 if h > low else 0.5 if h == low else 0.0 for h in highs for low in lows]
        assert found == pytest.approx(sum(pairs) / len(pairs))


def test_the_measures_leave_their_inputs_as_they_were() -> None:
    rng = np.random.default_rng(0)
    integers, flags, score = rng.integers(0, 3, (3, 40)), rng.random((3, 40)) < 0.5, rng.random(40)
    for array in (integers, flags, score):
        array.flags.writeable = False  # a write would raise
    accuracy(integers[0], integers[1], 3)
    attack_success(integers[0], integers[1], integers[2], 1)
    detection(flags[0], score, flags[1], flags[2] & ~flags[1], integers[0], 1)


def test_all_to_all_counts_every_image_and_its_own_next_class() -> None:
    labels = np.array([0, 1, 2, 2])
    found = attack_figures([np.array([1, 2, 0, 2])], np.array([0, 2, 2, 2]), labels, 3, [])
    assert (found["asr_k"], found["asr_n"], found["ra"], found["base_rate"]) == (3, 4, 0.25, 0.25)
    assert set(ATTACK_KEYS) <= set(found) and found["target_recall"] is None


def test_a_source_specific_attack_is_measured_on_its_source_on_all_and_on_the_rest() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, 3])
    triggered, clean = np.array([1, 1, 1, 0, 1, 2, 3]), np.array([0, 1, 1, 2, 2, 2, 3])
    found = attack_figures([triggered], clean, labels, 4, [1], source=0)
    assert (found["asr"], found["asr_k"], found["asr_n"], found["base_rate"]) == (1.0, 2, 2, 0.5)
    assert (found["asr_all_k"], found["asr_all_n"]) == (3, 5) and found["asr_all"] == 0.6
    assert (found["asr_leak_k"], found["asr_leak_n"], found["asr_leak_interval"]) == (1, 3, list(wilson(1, 3)))
    assert (found["target_recall"], found["predicted_target"]) == (0.5, 2)


def test_of_two_triggers_each_leaves_out_its_own_class_and_the_larger_is_the_headline() -> None:
    labels, clean = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 3])
    found = attack_figures([np.array([1, 1, 1, 3]), np.array([2, 0, 2, 3])], clean, labels, 4, [1, 2])
    assert [(each["target_class"], each["asr_k"], each["asr_n"]) for each in found["per_trigger"]] == [(1, 2, 3), (2, 1, 3)]
    assert found["asr"] == 2 / 3 and found["asr_k"] == 2 and "target_class" not in found
    turned = attack_figures([np.array([2, 0, 2, 3]), np.array([1, 1, 1, 3])], clean, labels, 4, [2, 1])
    assert turned["asr"] == 2 / 3


def test_a_trigger_that_leads_classes_to_different_ones_is_measured_by_the_class_of_each_image() -> None:
    labels, clean = np.array([0, 1, 2, 3]), np.array([0, 1, 1, 3])
    found = attack_figures([np.array([1, 2, 1, 3])], clean, labels, 4, [[1, 2, 1, 2]])
    assert (found["asr_k"], found["asr_n"], found["ra"], found["base_rate"]) == (3, 4, 0.25, 0.25)
    assert found["target_recall"] is None and found["predicted_target"] is None
    own = attack_figures([np.array([1, 1, 1, 1])], clean, labels, 4, [[1, 1, 2, 1]])
    assert (own["asr_k"], own["asr_n"]) == (2, 2), "an image that its own class is the target of is left out"
    assert attack_figures([labels], clean, labels, 4, [[1, 2, 3, 0]]) == attack_figures([labels], clean, labels, 4, [])


def test_several_source_classes_are_measured_together_and_each_trigger_among_its_own() -> None:
    labels = np.array([0, 0, 1, 2, 3])
    triggered, other, clean = np.array([1, 0, 1, 1, 3]), np.array([2, 2, 2, 2, 2]), labels
    found = attack_figures([triggered], clean, labels, 4, [1], [(0, 2)])
    assert (found["asr_k"], found["asr_n"], found["asr_all_k"], found["asr_all_n"]) == (2, 3, 2, 4)
    assert (found["asr_leak_k"], found["asr_leak_n"]) == (0, 1)
    both = attack_figures([triggered, other], clean, labels, 4, [1, 2], [(0, 2), None], ["tact", "badnet"])
    assert [(each["attack"], each["asr_k"], each["asr_n"]) for each in both["per_trigger"]] == [("tact", 2, 3), ("badnet", 4, 4)]
    assert both["asr"] == 1.0 and "asr_all" not in both and "attack" not in both


def test_one_trigger_and_one_target_is_attack_success_and_what_became_of_the_class() -> None:
    labels, triggered, clean = np.random.default_rng(0).integers(0, 3, (3, 50))
    found = attack_figures([triggered], clean, labels, 3, [2])
    assert found == attack_success(triggered, clean, labels, 2) | {
        "target_recall": accuracy(clean, labels, 3)["recall"][2], "predicted_target": int((clean == 2).sum()),
    }  # fmt: skip


def test_a_wrong_label_is_neither_poison_nor_a_false_alarm() -> None:
    poisoned, covers, noise = (np.array(mask, dtype=bool) for mask in ([1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]))
    flagged = np.array([1, 0, 1, 0, 1, 0], dtype=bool)
    suspicion = np.array([0.8, 0.9, 0.95, 0.1, 0.5, 0.3])
    found = detection(flagged, suspicion, poisoned, covers, np.array([1, 0, 1, 0, 1, 2]), [1], noise)
    assert (found["tpr"], found["fpr"], found["auroc"], found["auroc_target"]) == (1.0, 0.5, 1.0, 1.0)
    assert (found["noise"], found["noise_flagged"], found["covers"], found["covers_flagged"], found["flagged"]) == (2, 1, 1, 0, 3)


def test_without_one_target_there_is_no_auroc_inside_it() -> None:
    poisoned, nothing = np.array([True, False, False]), np.zeros(3, dtype=bool)
    labels, suspicion = np.array([0, 1, 0]), np.array([0.9, 0.1, 0.2])
    assert detection(nothing, suspicion, poisoned, nothing, labels, [])["auroc_target"] is None
    assert detection(nothing, suspicion, poisoned, nothing, labels, [0, 1])["auroc_target"] == 1.0


@examples(derandomize=True, deadline=None)
@given(n=st.integers(2, 60), seed=st.integers(0, 1000), levels=st.sampled_from([1, 2, 8, 64]))
def test_separation_is_what_counting_every_threshold_gives(n: int, seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    suspicion, kind = rng.integers(0, levels, n) / levels, rng.integers(0, 3, n)  # many ties
    poisoned, clean = kind == 1, kind == 0
    found = separation(suspicion, poisoned, clean)
    for name, rows in (("poison", poisoned), ("clean", clean)):
        assert found[name] == [sum(min(int(x * BINS), BINS - 1) == i for x in suspicion[rows]) for i in range(BINS)]
    if not poisoned.any() or not clean.any():
        assert found["roc"] is None
        return
    for rate, tpr in zip(ROC_AT, found["roc"], strict=True):
        allowed = [t for t in [*suspicion, 2.0] if (suspicion[clean] >= t).mean() <= rate]
        assert tpr == max((suspicion[poisoned] >= t).mean() for t in allowed)


def test_a_perfect_suspicion_finds_all_without_a_false_alarm_and_a_useless_one_nothing() -> None:
    poisoned = np.arange(100) < 10
    perfect = separation(poisoned * 1.0, poisoned, ~poisoned)
    assert perfect["roc"] == [1.0] * len(ROC_AT) and perfect["poison"][-1] == 10 and perfect["clean"][0] == 90
    useless = separation(np.full(100, 0.5), poisoned, ~poisoned)
    assert useless["roc"] == [0.0] * (len(ROC_AT) - 1) + [1.0]
