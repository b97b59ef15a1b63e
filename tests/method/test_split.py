"""Detection as a whole on a small set: what is planted is found, a clean set has no evidence, and what says nothing of poison changes nothing."""

import dataclasses
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meca.method import split
from meca.method.localise import Seeds
from meca.method.split import UNFLAGGED, Decision, Found, by_misclassification, caps_of
from meca.models import build
from meca.training.seeds import generator
from tests.method.planted import CLASSES, FULL, PARAMS, SIZE, WIDTH, Planted, ask, clean, plant
from tests.method.tiny import description, recipe, same, train

BRIEF = dataclasses.replace(PARAMS, groups=2, recipe=recipe(epochs=1, batch_size=32), rounds=1, probe=8)


@cache
def patched() -> Planted:
    return plant(clean(), 1, 30)


def shares(found: Decision, made: Planted) -> tuple[float, float]:
    """Return the shares of the poison and of the rest that are flagged."""
    flagged, poison = found.flagged, made.poison.numpy()
    return float(flagged[poison].mean()), float(flagged[~poison].mean())


@cache
def found_in_patched() -> Found:
    return ask(patched())


def test_a_clean_set_has_no_evidence_and_one_network() -> None:
    found = ask(clean())
    decision = found.decision
    assert (decision.verdict, decision.target_class, decision.held, decision.proofs) == ("no_evidence", None, (), {})
    assert not decision.flagged.any() and decision.suspicion.min() >= 0 and decision.suspicion.max() <= UNFLAGGED
    assert found.kept is found.everything, "nothing is taken out, so what was trained on everything is the clean model"
    assert len(decision.rounds) == 1 and decision.rounds[0]["flagged"] == 0 and not any(each.proven for each in decision.evidence)
    assert "no class is proven to hold poison at a false discovery rate of 0.01 (smallest p" in decision.reason
    assert {name for each in decision.evidence for name in each.views} == {
        "content 0.8", "content 0.1", "flips all", "flips many", "flips one", "flips source",
    }  # fmt: skip


def test_a_planted_patch_is_proven_flagged_and_gone_afterwards() -> None:
    found, made = found_in_patched(), patched()
    decision, (hit, alarm) = found.decision, shares(found_in_patched().decision, patched())
    assert (decision.verdict, decision.target_class, decision.held) == ("poisoned", 1, ()) and hit > 0.9 and alarm < 0.02
    assert set(made.labels[torch.from_numpy(decision.flagged)].tolist()) == {1} == set(decision.proofs)
    assert [each.label for each in decision.evidence if each.proven] == [1] and decision.evidence[1].n == int((made.labels == 1).sum())
    assert decision.rounds[0]["proven"] == [1] and decision.rounds[-1]["proven"] == [], "nothing is left to be found"
    assert (decision.suspicion[decision.flagged] >= 0.5).all() and (decision.suspicion[~decision.flagged] <= UNFLAGGED).all()
    assert f"{int(decision.flagged.sum())} samples of one class are poisoned" in decision.reason


def test_the_last_network_is_that_of_train_clean_bit_for_bit() -> None:
    """It is trained on what is kept, from the draws of that stage: stage train_clean takes it over."""
    found, made = found_in_patched(), patched()
    assert found.kept is not None and not same(found.kept, found.everything)
    fresh = build(description(dataclasses.replace(description().network, width=WIDTH), SIZE, classes=CLASSES), generator(0, "train_clean", "init"))
    kept = torch.from_numpy(~found.decision.flagged)
    assert same(train(fresh, made.images, made.labels, kept, FULL, "train_clean"), found.kept)


def test_a_conspicuous_attack_hides_no_other_one() -> None:
    made = plant(patched(), 4, 25, corner=3)
    decision = ask(made).decision
    hit, alarm = shares(decision, made)
    assert decision.verdict == "poisoned" and set(decision.proofs) == {1, 4} and hit > 0.9 and alarm < 0.02
    assert "samples of 2 classes are poisoned" in decision.reason
    (other,) = (shares(decision, dataclasses.replace(made, poison=made.poison & (made.labels == 4))),)
    assert other[0] > 0.8, "the less conspicuous one, too"


def test_a_proven_class_whose_poison_cannot_be_told_from_the_rest_is_not_green(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(session: object, network: object, data: object, seeds: dict[int, Seeds], recipe: object, name: str) -> dict[int, np.ndarray]:
        return {c: np.full(len(seed.rows), -1.0) for c, seed in seeds.items()}

    monkeypatch.setattr(split, "separate", nothing)
    found = ask(patched())
    assert (found.decision.verdict, found.kept) == ("inconclusive", None) and not found.decision.flagged.any()
    assert found.decision.reason == "class 1 is proven to hold poison, but none of its samples stands apart"


def reordered(made: Planted) -> Planted:
    order = torch.randperm(len(made.labels), generator=torch.Generator().manual_seed(5))
    return Planted(made.images[order], made.labels[order], made.poison[order])


def renumbered(made: Planted) -> Planted:
    return dataclasses.replace(made, labels=(made.labels * 3 + 2) % CLASSES)  # 1 becomes 5


def dimmed(made: Planted) -> Planted:
    return dataclasses.replace(made, images=(made.images.float() * 0.7 + 30).round().to(torch.uint8))


@pytest.mark.parametrize("change", [reordered, renumbered, dimmed])
def test_neither_the_order_of_samples_nor_the_numbers_of_classes_nor_the_light_of_all_changes_the_verdict(change: Callable) -> None:
    made = change(patched())
    decision = ask(made).decision
    hit, alarm = shares(decision, made)
    assert (decision.verdict, decision.target_class) == ("poisoned", 5 if change is renumbered else 1)
    assert hit > 0.9 and alarm < 0.02 and len(decision.proofs) == 1


def test_one_network_is_trained_where_it_is_asked_once_and_what_was_not_asked_again_is_no_clean_model() -> None:
    found = ask(patched(), dataclasses.replace(PARAMS, rounds=1))
    assert found.kept is None and len(found.decision.rounds) == 1 and found.decision.flagged.any()
    assert "after 1 rounds there was still something to be found" in found.decision.reason


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_empty_ones_and_single_samples_are_answered(classes: int) -> None:
    made = clean(30, classes)
    labels = made.labels.clone()
    labels[0] = classes + 1  # a class of one sample, and one before it that has none
    decision = ask(dataclasses.replace(made, labels=labels), BRIEF, recipe(epochs=1, batch_size=32), classes + 2).decision
    assert decision.verdict in ("no_evidence", "poisoned", "inconclusive") and len(decision.evidence) == classes + 2
    for each in decision.evidence[classes:]:
        assert (each.n, each.p, each.q, each.proven, each.views) == (each.label == classes + 1, 1.0, 1.0, False, {})
    assert "2 classes are too small to be asked" in decision.reason or decision.verdict != "no_evidence"


def test_with_a_rate_of_one_every_class_that_was_asked_is_proven_and_no_other() -> None:
    made = clean(21, 3)
    labels = torch.where((made.labels == 2) & (torch.arange(len(made.labels)) % 2 == 0), 1, made.labels)
    loose = dataclasses.replace(BRIEF, false_discovery=1.0, cap_flagged=1.0, cap_left=0.0)
    decision = ask(dataclasses.replace(made, labels=labels), loose, recipe(epochs=1, batch_size=32), 3).decision
    assert decision.rounds[0]["proven"] == [0, 1] and not decision.flagged[labels.numpy() == 2].any()


@settings(deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(0, 40), min_size=2, max_size=6), seed=st.integers(0, 9), share=st.floats(0, 1))
def test_a_class_is_held_only_if_it_loses_samples_and_too_little_is_left(sizes: list[int], seed: int, share: float) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    flagged = np.random.default_rng(seed).random(len(labels)) < share
    (whole, worst), held = caps_of(flagged, labels, len(sizes), PARAMS)
    lost = np.bincount(labels[flagged], minlength=len(sizes))
    assert all(lost[c] > 0 for c in held) and whole["holds"] == (whole["value"] <= PARAMS.cap_flagged)
    assert worst["holds"] or (held and int(worst["name"].split()[-1]) in held)
    if not flagged.any():
        assert held == () and worst["holds"]
    for c in range(len(sizes)):
        if sizes[c] and lost[c] == sizes[c]:
            assert c in held, "a class is never taken away as a whole"


def test_what_is_left_is_measured_by_the_class_and_by_the_median_of_what_others_keep() -> None:
    labels = np.repeat([0, 1, 2], [100, 30, 30])
    flagged = np.zeros(160, dtype=bool)
    flagged[:80] = True
    assert caps_of(flagged, labels, 3, PARAMS)[1] == (), "20 of 100 are left where others have 30: two thirds"
    flagged[:95] = True
    (_, cap), held = caps_of(flagged, labels, 3, PARAMS)
    assert held == (0,) and cap["name"] == "what is left of class 0" and cap["value"] == pytest.approx(5 / 30) and not cap["holds"]


def test_by_the_papers_rule_what_keeps_its_label_is_poison() -> None:
    labels, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    confidence = np.array([0.9, 0.1, 0.8, 0.7, 0.2])
    found = by_misclassification(predicted, confidence, labels, 3)
    assert (found.verdict, found.target_class, found.caps, found.held) == ("poisoned", 1, [], ())
    assert found.flagged.tolist() == [True, False, True, True, False] and found.suspicion is confidence
    assert found.proofs == {0: "fitted-by-enhanced", 1: "fitted-by-enhanced"}
    nothing = by_misclassification(1 - labels, confidence, labels, 3)
    assert (nothing.verdict, nothing.target_class, nothing.proofs) == ("no_evidence", None, {})
