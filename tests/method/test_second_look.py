"""The second look: a class that holds many other classes is found, all else is left as it was."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from meca.method.clusters import Pairs
from meca.method.second_look import CommonFlipRates, Foreign, Pair, SecondLookParams, SecondQuestions, foreign_content, second_look

from meca.method.relabel import RelabelParams
from meca.method.split import Decision, Labelling, SplitParams
from tests.making import settings

CLASSES, SIZE, PLANTED = 8, 100, 30
LABELS = np.repeat(np.arange(CLASSES), SIZE)
# Numbers of their own: those of params.yaml are tuned.
PARAMS = dataclasses.replace(
    settings().group("second_look", SecondLookParams),
    rounds=3, trusted=0.5, kept=0.6, margin_weight=0.5, confidence=0.7, min_foreign=0.1, over_median=1.5, min_spread=0.9, min_classes=6,
    suspects=0.1, min_suspects=5, min_carried=0.2, cluster=0.3, min_paired=0.25,
)  # fmt: skip
CAPS = dataclasses.replace(settings().group("split", SplitParams), cap_flagged=0.3, cap_left=0.4)
FIRST = Decision("no_evidence", "nothing", np.zeros(len(LABELS), bool), np.zeros(len(LABELS)), None, [], [])


def planted(
    seed: int, labels: np.ndarray = LABELS, target: int = 2, content: tuple[int, ...] = (0, 1, 3, 4, 5, 6, 7)
) -> tuple[np.ndarray, np.ndarray]:
    """Return what each sample shows, and margins that tell the planted ones of `target` from others only in tendency."""
    rng = np.random.default_rng(seed)
    shows = labels.copy()
    chosen = rng.choice(np.flatnonzero(labels == target), PLANTED, replace=False)
    shows[chosen] = rng.choice(content, PLANTED)
    return shows, rng.normal(0, 1, len(labels)) + 1.5 * (shows != labels)


class Network:
    """Sees what an image shows unless it was trained on that sample: then it sees the label."""

    def __init__(self, shows: np.ndarray, labels: np.ndarray = LABELS, sure: float = 0.9) -> None:
        self.shows, self.labels, self.sure, self.kept = shows, labels, sure, []

    def __call__(self, number: int, keep: np.ndarray) -> np.ndarray:
        assert number == len(self.kept)
        self.kept.append(keep)
        seen = np.full((len(self.labels), CLASSES), (1 - self.sure) / (CLASSES - 1))
        seen[np.arange(len(self.labels)), np.where(keep, self.labels, self.shows)] = self.sure
        return seen


def nothing_in_common(suspects: np.ndarray, trusted: np.ndarray, content: np.ndarray) -> np.ndarray:
    return np.zeros(CLASSES)


def no_pairs() -> Pairs:
    return Pairs(np.zeros(len(LABELS), bool), np.zeros(len(LABELS)), np.zeros(CLASSES))


def asks(network: Network) -> SecondQuestions:
    return SecondQuestions(network, nothing_in_common, no_pairs)


def look(
    network: Network,
    margin: np.ndarray,
    labels: np.ndarray = LABELS,
    split: SplitParams = CAPS,
    rates: CommonFlipRates = nothing_in_common,
    pair: Pair = no_pairs,
    **changes: Any,
) -> Decision:
    return second_look(
        FIRST, margin, Labelling(labels, CLASSES), dataclasses.replace(PARAMS, **changes), split, SecondQuestions(network, rates, pair)
    )


@pytest.mark.parametrize("seed", range(3))
def test_samples_of_many_other_classes_are_driven_out_of_the_trusted_part_and_flagged(seed: int) -> None:
    shows, margin = planted(seed)
    network = Network(shows)
    found = look(network, margin)
    wrong = shows != LABELS
    assert [int((kept & wrong).sum()) for kept in network.kept][1:] < [int((network.kept[0] & wrong).sum())] * 2
    assert (found.verdict, found.target_class, found.code) == ("poisoned", 2, "foreign-content")
    assert found.flagged[wrong].mean() >= 0.9 and not found.flagged[LABELS != 2].any()
    assert int(found.flagged.sum()) == SIZE - int(PARAMS.kept * SIZE)
    assert found.suspicion[found.flagged].min() > found.suspicion[~found.flagged].max() and found.suspicion.max() <= 1
    assert found.proofs == {2: "foreign-content"}, "a clean model may confirm them"
    assert [f.label for f in found.foreign if f.proven] == [2] and "the 40 samples" in found.reason


def test_each_round_trusts_its_share_of_every_class_and_the_first_goes_by_the_margin() -> None:
    shows, margin = planted(0)
    network = Network(shows)
    look(network, margin)
    assert len(network.kept) == PARAMS.rounds
    for kept in network.kept:
        assert np.bincount(LABELS[kept]).tolist() == [SIZE // 2] * CLASSES
    for c in range(CLASSES):
        mine = LABELS == c
        assert margin[mine & network.kept[0]].max() <= margin[mine & ~network.kept[0]].min()


def test_content_of_one_neighbour_is_left_alone() -> None:
    shows, margin = planted(0, content=(5,))
    found = look(Network(shows), margin)
    assert (found.verdict, found.reason, found.flagged.any(), found.proofs) == ("no_evidence", "nothing", False, {})
    assert found.foreign[2].share > 0.2 and found.foreign[2].spread == 0


def test_wrong_labels_in_all_classes_alike_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    shows = np.where(rng.random(len(LABELS)) < 0.3, rng.integers(0, CLASSES, len(LABELS)), LABELS)
    found = look(Network(shows), rng.normal(0, 1, len(LABELS)))
    assert not found.flagged.any() and min(f.share for f in found.foreign) > 0.1
    assert look(Network(shows), rng.normal(0, 1, len(LABELS)), over_median=0.5).flagged.any(), "the median alone held it"


def test_what_a_network_says_without_confidence_does_not_count() -> None:
    shows, margin = planted(0)
    assert not look(Network(shows, sure=PARAMS.confidence), margin).flagged.any()
    assert look(Network(shows, sure=PARAMS.confidence + 0.01), margin).flagged.any()


def test_no_rounds_ask_no_network() -> None:
    shows, margin = planted(0)
    network = Network(shows)
    assert look(network, margin, rounds=0) is FIRST and network.kept == []


def test_with_few_classes_foreign_content_is_not_asked_but_a_common_feature_is() -> None:
    shows, margin = planted(0)
    assert not look(Network(shows), margin, min_classes=CLASSES + 1).flagged.any()
    found = look(Network(shows), margin, rates=lambda *_: np.eye(CLASSES)[2], min_classes=CLASSES + 1)
    assert found.verdict == "poisoned" and found.target_class == 2


def test_a_common_feature_of_the_least_trusted_samples_is_asked_about_where_no_content_is_foreign() -> None:
    rng = np.random.default_rng(0)
    asked: list[tuple[np.ndarray, ...]] = []

    def rates(suspects: np.ndarray, trusted: np.ndarray, content: np.ndarray) -> np.ndarray:
        asked.append((suspects, trusted, content))
        return np.array([0.1, 0.0, 0.0, 0.0, PARAMS.min_carried, 0.19, 0.0, 0.0])

    network = Network(LABELS)
    found = look(network, rng.normal(0, 1, len(LABELS)), rates=rates)
    assert (found.verdict, found.target_class, found.code) == ("poisoned", 4, "common-feature")
    assert found.proofs == {4: "common-feature"}, "a clean model's word clears none of them"
    assert "flips 20% of other images to it" in found.reason and "the 40 samples" in found.reason
    assert np.bincount(LABELS[found.flagged], minlength=CLASSES).tolist() == [0, 0, 0, 0, 40, 0, 0, 0]
    ((suspects, trusted, content),) = asked
    assert np.bincount(LABELS[suspects]).tolist() == [10] * CLASSES and np.bincount(LABELS[trusted]).tolist() == [60] * CLASSES
    assert not (suspects & trusted).any() and np.array_equal(content, LABELS)
    assert found.suspicion[suspects & (LABELS == 4)].min() >= found.suspicion.max() - 0.1
    assert [f.carried for f in found.foreign] == [0.1, 0.0, 0.0, 0.0, 0.2, 0.19, 0.0, 0.0]
    quiet = look(Network(LABELS), rng.normal(0, 1, len(LABELS)), rates=lambda *_: np.full(CLASSES, PARAMS.min_carried - 0.01))
    assert (quiet.verdict, quiet.flagged.any()) == ("no_evidence", False)


def pairs(*flip_rates: float) -> tuple[Pair, np.ndarray]:
    """Return an answer in which the first tenth of every class is its smaller cluster, of classes 4 and 6 the first 11 and 9, and those samples."""
    small = np.arange(len(LABELS)) % SIZE < SIZE // 10 + np.array([0, 0, 0, 0, 1, 0, -1, 0])[LABELS]
    return lambda: Pairs(small, np.where(small, np.linspace(0.1, 1, len(LABELS)), -1.0), np.array(flip_rates)), small


def test_small_clusters_that_turn_one_class_to_another_are_poison_where_half_of_all_classes_have_them() -> None:
    pair, small = pairs(0.5, 0.3, 0.4, 0.125, 0.12, 0.6, 0.0, 0.3)
    found = look(Network(LABELS), np.random.default_rng(0).normal(0, 1, len(LABELS)), pair=pair)
    assert (found.verdict, found.target_class, found.code) == ("poisoned", 5, "paired-cluster")
    assert np.array_equal(found.flagged, small & (LABELS != 4)), "that of class 4 flips too little and is larger, that of class 6 is as small"
    assert "up to 60%" in found.reason and "the 69 samples of the clusters of 7 classes" in found.reason
    assert [f.paired for f in found.foreign] == [0.5, 0.3, 0.4, 0.125, 0.12, 0.6, 0.0, 0.3] and [f.label for f in found.foreign if not f.proven] == [
        4
    ]
    assert found.suspicion[found.flagged].min() > 0.5 > 0.4 >= found.suspicion[~found.flagged].max() and found.suspicion.min() >= 0
    assert found.proofs == {f.label: "paired-cluster" for f in found.foreign if f.proven}
    assert found.suspicion.max() > settings().group("relabel_finetune", RelabelParams).remove_above, "the heart of a cluster is removed at any rate"


def test_clusters_of_fewer_classes_are_kinds_of_pictures() -> None:
    pair, _ = pairs(1.0, 1.0, 1.0, 0.0, 0.24, 0.25, 0.0, 0.0)  # median 0.12
    found = look(Network(LABELS), np.random.default_rng(0).normal(0, 1, len(LABELS)), pair=pair)
    assert (found.verdict, found.flagged.any()) == ("no_evidence", False) and [f.paired for f in found.foreign][:3] == [1.0, 1.0, 1.0]


def test_a_class_without_samples_says_nothing_about_the_others() -> None:
    pair, small = pairs(0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0)
    there = ~np.isin(LABELS, [2, 3, 7])
    labels = LABELS[there]

    def fewer() -> Pairs:
        found = pair()
        return Pairs(found.small[there], found.nearer[there], found.flip_rates)

    found = look(Network(labels, labels), np.random.default_rng(0).normal(0, 1, len(labels)), labels, pair=fewer)
    assert np.array_equal(found.flagged, small[there] & (labels != 4)) and [f.label for f in found.foreign if f.proven] == [0, 1, 5, 6]


def test_clusters_are_asked_last_and_not_of_few_classes() -> None:
    def never(*_: np.ndarray) -> Pairs:
        raise AssertionError

    shows, margin = planted(0)
    assert look(Network(shows), margin, pair=never).code == "foreign-content"
    assert look(Network(LABELS), margin, rates=lambda *_: np.eye(CLASSES)[3], pair=never).code == "common-feature"
    assert look(Network(LABELS), margin, pair=never, min_classes=CLASSES + 1).verdict == "no_evidence"


def test_clusters_beyond_a_cap_are_held_for_a_person() -> None:
    pair, small = pairs(*[0.5] * CLASSES)
    found = look(Network(LABELS), np.random.default_rng(0).normal(0, 1, len(LABELS)), split=dataclasses.replace(CAPS, cap_flagged=0.09), pair=pair)
    assert found.verdict == "inconclusive" and "flagged" in found.reason and np.array_equal(found.flagged, small)


def test_of_a_small_class_more_is_asked_about_and_of_a_smaller_one_nothing() -> None:
    labels = np.repeat(np.arange(CLASSES), [24, 25, 40, 100, 100, 100, 100, 100])
    asked: list[np.ndarray] = []
    margin = np.random.default_rng(0).normal(0, 1, len(labels))
    look(Network(labels, labels), margin, labels, rates=lambda suspects, *_: asked.append(suspects) or np.zeros(CLASSES))
    assert np.bincount(labels[asked[0]], minlength=CLASSES).tolist() == [0, 5, 5, 10, 10, 10, 10, 10]


def test_what_foreign_content_proves_needs_no_common_feature() -> None:
    shows, margin = planted(0)

    def never(*_: np.ndarray) -> np.ndarray:
        raise AssertionError

    assert look(Network(shows), margin, rates=never).verdict == "poisoned"


def test_only_trusted_samples_that_look_like_their_class_are_compared_with() -> None:
    shows, margin = planted(0, content=(5,))
    asked: list[np.ndarray] = []
    look(Network(shows), margin, rates=lambda suspects, trusted, content: asked.append(trusted & (content != LABELS)) or np.zeros(CLASSES))
    assert not asked[0].any()


def test_a_cap_that_is_reached_makes_it_inconclusive() -> None:
    shows, margin = planted(0)
    found = look(Network(shows), margin, split=dataclasses.replace(CAPS, cap_left=0.9))
    assert found.verdict == "inconclusive" and "what is left of class 2" in found.reason and found.flagged.any()


def test_the_share_and_the_spread_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3])
    called = np.array([0, 1, 2, 3, 1, 0, 2, 2, 3])
    seen = np.full((9, 5), 0.0375)
    seen[np.arange(9), called] = 0.85
    params = dataclasses.replace(PARAMS, min_foreign=0.5, over_median=0.0, min_classes=2)
    found = foreign_content(seen, labels, 5, params)
    assert found[0] == Foreign(0, 0.75, pytest.approx(1.0), True)
    assert found[1] == Foreign(1, 0.5, 0.0, False)
    assert found[2] == Foreign(2, 0.0, 0.0, False) and found[4] == Foreign(4, 0.0, 0.0, False), "a class without samples"


def test_an_empty_set_and_an_absent_class_are_survived() -> None:
    nothing = np.zeros(0)
    first = dataclasses.replace(FIRST, flagged=nothing.astype(bool))
    assert second_look(first, nothing, Labelling(nothing.astype(np.int64), CLASSES), PARAMS, CAPS, asks(Network(nothing, nothing))) is first
    labels = LABELS[LABELS != 5]
    shows, margin = planted(1, labels, content=(0, 1, 3, 4, 6, 7))
    assert second_look(FIRST, margin, Labelling(labels, CLASSES), PARAMS, CAPS, asks(Network(shows, labels))).target_class == 2


@pytest.mark.parametrize("wrong", [{"rounds": -1}, {"trusted": 0.0}, {"trusted": 1.0}, {"cluster": 0.6}])
def test_impossible_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected (rounds|trusted|cluster)"):
        dataclasses.replace(PARAMS, **wrong)
