"""`split`: two clusters of which one has a trigger are found, all else is not, and no answer is better than a wrong one."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from meca.method.split import (
    Decision,
    FlipRate,
    Labelling,
    Questions,
    Rescore,
    SplitParams,
    Unseen,
    by_misclassification,
    by_two_clusters,
    caps_of,
    evidence,
)
from tests.making import settings

# The laws hold for numbers of their own: those of params.yaml are tuned.
PARAMS = dataclasses.replace(
    settings().group("split", SplitParams),
    max_valley=0.12, min_separation=3.0, min_range=7.0, far_range=16.0, min_flips=0.4, doubt_flips=0.2,
    strong_flips=0.6, doubt_strong_flips=0.5, min_foreign=0.8, min_foreign_spread=0.8, spread=2.5,
    end=0.05, end_flips=0.7, end_over_median=1.5, min_end=10,
    cap_flagged=0.3, cap_left=0.4,
)  # fmt: skip
CLASSES, SIZE, PLANTED = 4, 200, 30
LABELS = np.repeat(np.arange(CLASSES), SIZE)


def clusters(planted: dict[int, int], seed: int = 0, apart: float = 30.0) -> tuple[np.ndarray, np.ndarray]:
    """Return margins, and which samples are of a second cluster: `planted` has their number by class."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(-10, 2, len(LABELS))
    second = np.zeros(len(LABELS), dtype=bool)
    for c, n in planted.items():
        second[rng.choice(np.flatnonzero(LABELS == c), n, replace=False)] = True
    return margins + apart * second, second


def flips_by(triggered: np.ndarray, share: float = 1.0) -> FlipRate:
    """Return what adds a difference to other images: it flips them if the first cluster has the trigger and the second has not."""
    return lambda label, first, second: share if triggered[first].mean() > 0.5 and triggered[second].mean() < 0.2 else 0.0


def always(share: float) -> FlipRate:
    return lambda label, first, second: share


def at_home(left_out: list[np.ndarray]) -> list[np.ndarray]:
    """See in every sample the class of its label."""
    return [LABELS.copy() for _ in left_out]


def upper_tenth(ranks: np.ndarray) -> np.ndarray:
    """Call a tenth of every class suspect."""
    return ranks - 0.9


def decide(
    margins: np.ndarray,
    flips: FlipRate,
    other: np.ndarray | None = None,
    labels: np.ndarray = LABELS,
    unseen: Unseen = at_home,
    rescore: Rescore = upper_tenth,
    **changes: Any,
) -> Decision:
    sides = {"low": margins, "high": clusters({}, seed=9)[0] if other is None else other}
    return by_two_clusters(sides, Labelling(labels, CLASSES), dataclasses.replace(PARAMS, **changes), Questions(flips, unseen, rescore))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("side", ["low", "high"])
def test_the_cluster_with_a_trigger_is_found_on_either_side_and_at_either_end(side: str, upper: bool, seed: int) -> None:
    margins, second = clusters({1: PLANTED}, seed)
    margins, plain = margins if upper else -margins, clusters({}, seed + 50)[0]
    found = decide(*((margins, flips_by(second), plain) if side == "low" else (plain, flips_by(second), margins)))
    assert (found.verdict, found.target_class) == ("poisoned", 1)
    assert found.flagged[second].all()
    assert found.flagged[~second].sum() <= 0.05 * SIZE and not found.flagged[LABELS != 1].any()
    assert "100%" in found.reason and found.proofs == {1: "difference"}


def test_the_cluster_with_most_samples_names_the_target_and_all_clusters_are_flagged() -> None:
    margins, second = clusters({0: 20, 3: 40})
    found = decide(margins, flips_by(second))
    assert (found.verdict, found.target_class) == ("poisoned", 3)
    assert found.flagged[second].all() and "2 classes" in found.reason and found.proofs == {0: "difference", 3: "difference"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", ["normal", "uniform", "wide", "constant"])
def test_one_cluster_is_no_evidence_whatever_its_width_unless_its_ends_flip_most_images(seed: int, shape: str) -> None:
    rng = np.random.default_rng(seed)
    draws = {"normal": rng.normal(0, 2, len(LABELS)), "uniform": rng.uniform(-20, 20, len(LABELS)), "wide": rng.normal(0, 50, len(LABELS))}
    margins = draws.get(shape, np.full(len(LABELS), 3.0))
    found = decide(margins, always(PARAMS.doubt_strong_flips - 0.01), -margins)
    assert (found.verdict, found.target_class, found.flagged.any()) == ("no_evidence", None, False)
    assert not any(e.apart for e in found.evidence)


@pytest.mark.parametrize("seed", range(3))
def test_a_trigger_whose_cluster_runs_into_the_other_is_found_by_what_it_flips(seed: int) -> None:
    margins, second = clusters({1: 2 * PLANTED}, seed, apart=5.0)
    for share, verdict in ((0.49, "no_evidence"), (PARAMS.doubt_strong_flips, "inconclusive"), (PARAMS.strong_flips, "poisoned")):
        found = decide(margins, lambda label, these, rest, share=share: share if second[these].mean() > second[rest].mean() else 0.0, margins)
        assert (found.verdict, found.flagged.any()) == (verdict, verdict == "poisoned")
        assert not any(e.apart for e in found.evidence)
    assert found.target_class == 1 and not found.flagged[LABELS != 1].any()
    assert found.flagged[second].mean() > 0.9 and found.flagged[~second & (LABELS == 1)].mean() < 0.25


def end_flips_by(triggered: np.ndarray, share: float, diluted: float = 0.0) -> FlipRate:
    """Return what adds a difference to other images: it flips `share` of them if nearly all of the first part have the trigger."""
    return lambda label, first, second: share if triggered[first].mean() > 0.9 and triggered[second].mean() < 0.2 else diluted


def rare(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return margins without a valley, and which samples are poison: `n` of class 1, at the end."""
    margins, poison = np.random.default_rng(seed).uniform(-10, 10, len(LABELS)), np.zeros(len(LABELS), dtype=bool)
    poison[np.flatnonzero(LABELS == 1)[:n]] = True
    margins[poison] = np.linspace(10.5, 12, n)
    return margins, poison


@pytest.mark.parametrize("upper", [True, False])
def test_rare_poison_at_an_end_is_found_and_the_second_scoring_draws_the_line(upper: bool) -> None:
    margins, poison = rare(20)
    orders: list[np.ndarray] = []

    def rescore(ranks: np.ndarray) -> np.ndarray:
        orders.append(ranks)
        return np.where(poison, 5.0, -5.0)

    found = decide(margins if upper else -margins, end_flips_by(poison, PARAMS.end_flips), rescore=rescore)
    assert (found.verdict, found.target_class) == ("poisoned", 1)
    assert np.array_equal(found.flagged, poison), "the line is drawn by the margins of the second scoring"
    (ranks,) = orders
    assert ranks[poison].min() >= 0.9 and ranks.min() == 0 and ranks.max() < 1, "the end that flips is the upper one"
    ends = {(e.side, e.mirrored): e.end for e in found.evidence if e.label == 1}
    assert found.proofs == {1: "end"}
    assert ends["low", not upper] == PARAMS.end_flips and not ends["low", upper] and ends["again", False] is None
    assert decide(margins, end_flips_by(poison, PARAMS.end_flips), end=0.0).verdict == "no_evidence", "nobody asks"


def test_an_end_that_flips_too_few_images_or_is_no_cluster_when_scored_again_flags_nothing() -> None:
    margins, poison = rare(20)

    def never(ranks: np.ndarray) -> np.ndarray:
        raise AssertionError("asked although no end flips enough")

    assert decide(margins, end_flips_by(poison, PARAMS.end_flips - 0.01), rescore=never).verdict == "no_evidence"
    flips = end_flips_by(poison, PARAMS.end_flips)
    for scores in (np.where(poison, -5.0, 5.0), np.full(len(LABELS), -1.0), np.full(len(LABELS), 1.0)):
        found = decide(margins, flips, rescore=lambda ranks, scores=scores: scores)
        assert (found.verdict, found.flagged.any()) == ("no_evidence", False)


@pytest.mark.parametrize(("share", "verdict"), [(0.7, "poisoned"), (0.69, "inconclusive"), (0.6, "inconclusive"), (0.59, "no_evidence")])
def test_what_is_called_suspect_when_scored_again_must_flip_as_many_as_an_end(share: float, verdict: str) -> None:
    margins, poison = rare(20)
    planted = end_flips_by(poison, 1.0)

    def flips(label: int, first: np.ndarray, second: np.ndarray) -> float:
        return planted(label, first, second) if len(first) == PARAMS.min_end else share if label == 1 and len(first) == 40 else 0.0

    wide = np.random.default_rng(5).normal(-5, 3, len(LABELS))  # one cluster, of which the upper part is called suspect
    wide[np.flatnonzero(LABELS == 1)] = np.linspace(-8, 2, SIZE)
    found = decide(margins, flips, rescore=lambda ranks: wide)
    assert (found.verdict, int(found.flagged.sum())) == (verdict, 40 * (verdict == "poisoned"))
    if verdict == "inconclusive":
        assert f"flips {share:.0%} of other images" in found.reason


def test_an_end_is_compared_with_the_lower_half_and_only_where_the_margins_are_wide() -> None:
    margins, poison = rare(20)
    sizes = []

    def flips(label: int, first: np.ndarray, second: np.ndarray) -> float:
        sizes.append((len(first), len(second)))
        return end_flips_by(poison, 1.0)(label, first, second)

    def mine(ranks: np.ndarray) -> np.ndarray:
        return np.where(poison, 5.0, -5.0)

    assert decide(margins, flips, rescore=mine).verdict == "poisoned"
    assert (PARAMS.min_end, SIZE // 2) in sizes and all(second == SIZE // 2 for first, second in sizes if first == PARAMS.min_end)
    narrow = np.where(LABELS == 1, margins * PARAMS.min_range / 100, margins)
    assert decide(narrow, flips, np.zeros(len(LABELS)), rescore=mine).verdict == "no_evidence"
    everything = decide(margins, lambda label, first, second: float(label == 1 and len(second) in (0, SIZE // 2)), rescore=lambda ranks: ranks + 1)
    assert (everything.verdict, everything.flagged.any()) == ("no_evidence", False), "a class that is suspect as a whole is none"


def test_of_two_planted_classes_neither_hides_the_other() -> None:
    margins, poison = rare(20)
    moved = np.roll(np.arange(len(LABELS)), SIZE)  # the same again in class 2
    margins, poison = np.where(LABELS == 2, margins[moved], margins), poison | poison[moved]
    planted = end_flips_by(poison, 0.8)
    found = decide(
        margins,
        lambda label, first, second: planted(label, first, second) if label in (1, 2) else 0.4 if len(first) == PARAMS.min_end else 0.0,
        rescore=lambda ranks: np.where(poison, 5.0, -5.0),
    )
    assert found.verdict == "poisoned" and np.array_equal(found.flagged, poison)


def test_an_end_must_flip_more_than_the_ends_of_the_other_classes() -> None:
    margins, poison = rare(20)

    def flips(others: float) -> FlipRate:
        planted = end_flips_by(poison, 0.8)
        return lambda label, first, second: planted(label, first, second) if label == 1 else others if len(first) == PARAMS.min_end else 0.0

    def rescore(ranks: np.ndarray) -> np.ndarray:
        return np.where(poison, 5.0, -5.0)

    assert decide(margins, flips(0.5), rescore=rescore).verdict == "poisoned"
    assert decide(margins, flips(0.55), rescore=rescore).verdict == "no_evidence"


@pytest.mark.parametrize(("half", "asked"), [(0.69, True), (0.7, False)])
def test_a_cluster_that_proves_its_class_half_heartedly_gives_way_to_its_end(half: float, asked: bool) -> None:
    margins, poison = rare(20)
    margins[np.flatnonzero(LABELS == 1)[20:80]] = 10.0  # clean samples in the upper cluster
    margins[np.flatnonzero(LABELS == 1)[80:]] -= 20
    planted, target = end_flips_by(poison, 1.0, diluted=half), LABELS == 1
    flips: FlipRate = lambda label, first, second: planted(label, first, second) if label == 1 and margins[first].mean() > 0 else 0.0  # noqa: E731
    found = decide(margins, flips, rescore=lambda ranks: np.where(poison, 5.0, -5.0))
    assert found.verdict == "poisoned" and found.flagged[poison].all()
    assert found.flagged[target].sum() == 20 if asked else found.flagged[target].sum() >= 80


def test_of_two_classes_the_one_that_clusters_prove_is_not_scored_again() -> None:
    margins, poison = rare(20)
    both, second = clusters({3: PLANTED}, 4)
    margins = np.where(LABELS == 3, both, margins)
    found = decide(margins, end_flips_by(poison | second, 1.0), rescore=lambda ranks: np.where(poison, 5.0, -5.0))
    assert found.verdict == "poisoned" and "2 classes" in found.reason
    assert found.flagged[poison].all() and found.flagged[second].all() and not found.flagged[np.isin(LABELS, (0, 2))].any()
    assert {e.side for e in found.evidence if e.label == 3} == {"low", "high"} and all(e.end is None for e in found.evidence if e.label == 3)


def test_the_end_of_a_small_class_is_not_asked_about() -> None:
    margins, poison = rare(9)
    keep = (LABELS != 1) | (np.cumsum(LABELS == 1) <= 49)  # ten samples would be more than a fifth of it
    found = decide(margins[keep], end_flips_by(poison[keep], 1.0), clusters({}, 9)[0][keep], LABELS[keep], lambda left: [LABELS[keep] for _ in left])
    assert all(e.end is None for e in found.evidence if e.label == 1) and any(e.end is not None for e in found.evidence)


def test_two_kinds_of_content_are_no_evidence() -> None:
    margins = clusters({1: 100})[0] * (PARAMS.far_range - 2) / 40
    found = decide(margins, always(0.0))
    assert (found.verdict, found.flagged.any()) == ("no_evidence", False)
    assert any(e.apart and e.flips == 0.0 for e in found.evidence), "the clusters were seen"


@pytest.mark.parametrize(
    ("planted", "classes", "share", "verdict"),
    [
        (80, (0, 2, 3), 1.0, "poisoned"),
        (80, (0, 2, 3), 0.7, "inconclusive"),  # many other classes, in too little of the cluster for a proof and too much for none
        (80, (0, 2, 3), 0.4, "no_evidence"),  # most of it looks like its own class,
        (80, (0, 2), 1.0, "inconclusive"),
        (80, (2,), 1.0, "no_evidence"),  # or like one neighbour
        (120, (2,), 1.0, "no_evidence"),  # the lower cluster was asked about, and looks like its own class
        (80, (0, 2, 3), 0.0, "no_evidence"),
    ],
)
def test_clusters_far_apart_are_inconclusive_unless_their_content_explains_them(
    planted: int, classes: tuple[int, ...], share: float, verdict: str
) -> None:
    margins, second = clusters({1: planted})
    found = decide(margins, always(0.0), unseen=sees(second, 0, classes, share))
    assert (found.verdict, found.flagged.any()) == (verdict, verdict == "poisoned")
    if verdict == "inconclusive":
        assert "class 1 holds two kinds of images" in found.reason and found.target_class is None


def test_clusters_far_apart_that_cannot_be_asked_about_are_inconclusive() -> None:
    margins, second = clusters({1: 100})
    one = LABELS == 1
    keep = np.sort(np.concatenate([np.flatnonzero(~one), np.flatnonzero(one & second)[:40], np.flatnonzero(one & ~second)[:40]]))
    found = decide(margins[keep], always(0.0), clusters({}, seed=9)[0][keep], LABELS[keep], unseen=lambda left_out: [LABELS[keep]] * len(left_out))
    assert (found.verdict, found.target_class, found.flagged.any()) == ("inconclusive", None, False)
    assert "class 1 holds two kinds of images" in found.reason


def test_a_difference_that_flips_half_enough_is_inconclusive() -> None:
    margins, second = clusters({1: PLANTED}, apart=14.0)
    for share, verdict in ((PARAMS.doubt_flips - 0.01, "no_evidence"), (PARAMS.doubt_flips, "inconclusive"), (PARAMS.min_flips, "poisoned")):
        found = decide(margins, flips_by(second, share), far_range=1e9)
        assert (found.verdict, found.flagged.any()) == (verdict, verdict == "poisoned")


@pytest.mark.parametrize("unproven", [dict(apart=14.0), dict(apart=30.0)])
def test_a_doubtful_class_beside_a_proven_one_is_kept_and_named(unproven: dict[str, float]) -> None:
    first, trigger = clusters({1: PLANTED})
    second, other = clusters({3: PLANTED}, 1, **unproven)
    margins = np.where(LABELS == 3, second, first)

    def flips(label: int, upper: np.ndarray, lower: np.ndarray) -> float:
        return flips_by(trigger)(label, upper, lower) if label == 1 else flips_by(other, PARAMS.doubt_flips)(label, upper, lower)

    found = decide(margins, flips)
    assert (found.verdict, found.target_class, found.doubtful) == ("poisoned", 1, (3,))
    assert found.flagged[trigger].all() and not found.flagged[LABELS == 3].any()
    assert decide(first, flips_by(trigger)).doubtful == ()


def test_of_two_classes_the_other_explains_no_cluster() -> None:
    labels = np.repeat(np.arange(2), 400)
    rng = np.random.default_rng(0)
    far = rng.choice(np.flatnonzero(labels == 1), 100, replace=False)
    margins = rng.normal(-10, 2, len(labels)) + 40 * np.isin(np.arange(len(labels)), far)

    def look(share: float) -> Unseen:
        seen = labels.copy()
        seen[far[: int(share * len(far))]] = 0
        return lambda left_out: [seen for _ in left_out]

    for share, verdict in ((1.0, "inconclusive"), (0.0, "no_evidence")):
        found = by_two_clusters(
            {"low": margins, "high": rng.normal(-10, 2, len(labels))}, Labelling(labels, 2), PARAMS, Questions(always(0.0), look(share), upper_tenth)
        )
        assert (found.verdict, found.flagged.any()) == (verdict, False), share


@pytest.mark.parametrize(("size", "verdict"), [(30, "poisoned"), (6, "no_evidence")])
def test_among_many_classes_a_cluster_is_spread_if_it_shows_as_many_as_it_can(size: int, verdict: str) -> None:
    classes, each = 60, 60
    labels = np.repeat(np.arange(classes), each)
    rng = np.random.default_rng(0)
    second = np.isin(np.arange(len(labels)), np.flatnonzero(labels == 1)[:size])
    margins = rng.normal(-10, 2, len(labels)) + 40 * second
    seen = labels.copy()
    seen[second] = rng.permutation(np.delete(np.arange(classes), 1))[:size]  # each looks like a class of its own
    plain = rng.normal(-10, 2, len(labels))
    found = by_two_clusters(
        {"low": margins, "high": plain},
        Labelling(labels, classes),
        PARAMS,
        Questions(always(0.0), lambda left_out: [seen for _ in left_out], upper_tenth),
    )
    assert found.verdict == verdict and (verdict != "poisoned" or np.array_equal(found.flagged, second))


def test_two_clusters_that_are_close_are_not_believed() -> None:
    margins = clusters({1: PLANTED})[0]
    assert not decide(margins * (PARAMS.min_range / 100), always(1.0), clusters({}, 9)[0] * 0).flagged.any()


@pytest.mark.parametrize("clearer", ["low", "high"])
def test_of_two_sides_that_prove_a_trigger_the_one_with_clusters_further_apart_draws_the_line(clearer: str) -> None:
    (near, first), (far, second) = clusters({1: PLANTED}, 0, apart=20.0), clusters({1: PLANTED}, 1, apart=60.0)
    sides = (far, near) if clearer == "low" else (near, far)
    found = decide(sides[0], lambda label, these, rest: float(len(these) < len(rest)), sides[1])
    assert found.flagged[second].all() and not found.flagged[first & ~second].all()


@pytest.mark.parametrize("purer", ["low", "high"])
def test_of_two_sides_that_prove_a_trigger_the_one_that_flips_more_draws_the_line_however_narrow(purer: str) -> None:
    (wide, blurred), (narrow, second) = clusters({1: PLANTED}, 0, apart=60.0), clusters({1: PLANTED}, 1, apart=20.0)
    sides = (narrow, wide) if purer == "low" else (wide, narrow)
    found = decide(sides[0], lambda label, these, rest: 0.9 * float(second[these].mean() > 0.5) or 0.6 * float(blurred[these].mean() > 0.5), sides[1])
    assert found.flagged[second].all() and not found.flagged[blurred & ~second].all()


@pytest.mark.parametrize("upper", [True, False])
def test_if_both_clusters_flip_other_images_the_one_that_flips_more_is_flagged(upper: bool) -> None:
    margins, second = clusters({1: 60})
    found = decide(margins, lambda label, first, rest: 0.9 if (second[first].mean() > 0.5) == upper else 0.5)
    assert found.flagged[second & (LABELS == 1)].all() == upper and found.flagged[LABELS == 1].mean() > 0.25


def test_only_two_parts_of_one_class_are_compared() -> None:
    asked = []

    def flips(label: int, first: np.ndarray, second: np.ndarray) -> float:
        asked.append(label)
        both = [*first, *second]
        assert len(both) == len(set(both)) and (LABELS[both] == label).all() and len(first) and len(second)
        return 0.0

    decide(clusters({1: PLANTED, 2: PLANTED})[0], flips)
    assert {1, 2} <= set(asked)


def sees(second: np.ndarray, seed: int, classes: tuple[int, ...], share: float = 1.0) -> Unseen:
    """Return what sees other classes in `share` of the second cluster where that was left out, and the given class in all else."""

    def look(left_out: list[np.ndarray]) -> list[np.ndarray]:
        rng, found = np.random.default_rng(seed), []
        for without in left_out:
            seen = LABELS.copy()
            foreign = without & second & (rng.random(len(LABELS)) < share)
            seen[foreign] = rng.choice(classes, int(foreign.sum()))
            found.append(seen)
        return found

    return look


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("upper", [True, False])
def test_a_cluster_that_belongs_to_many_other_classes_is_poison_though_no_difference_flips_any(upper: bool, seed: int) -> None:
    margins, second = clusters({1: PLANTED}, seed)
    found = decide(margins if upper else -margins, always(0.0), unseen=sees(second, seed, (0, 2, 3)))
    assert (found.verdict, found.target_class) == ("poisoned", 1)
    assert found.flagged[second].all() and found.flagged[~second].sum() <= 0.05 * SIZE
    assert "sees other classes in 100% of them" in found.reason and found.proofs == {1: "foreign-heap"}
    proof = next(e for e in found.evidence if e.foreign == 1.0)
    assert (proof.foreign_spread or 0) > PARAMS.min_foreign_spread and proof.mirrored != upper


@pytest.mark.parametrize(("planted", "known"), [(95, True), (105, False)])
def test_of_a_class_of_which_too_little_is_left_everything_is_foreign_and_that_proves_nothing(planted: int, known: bool) -> None:
    margins, second = clusters({1: planted})
    found = decide(margins, always(0.0), unseen=sees(second, 0, (0, 2, 3)), far_range=1e9)
    assert found.flagged.any() == known and any(e.foreign for e in found.evidence if not e.mirrored) == known


@pytest.mark.parametrize(("share", "verdict"), [(1.0, "poisoned"), (0.0, "no_evidence")])
def test_of_two_clusters_that_each_reach_over_half_of_the_class_the_purer_half_is_asked_about(share: float, verdict: str) -> None:
    margins, _ = clusters({})
    mine = np.flatnonzero(LABELS == 1)
    second = np.zeros(len(LABELS), dtype=bool)
    second[mine[:90]] = True
    rng = np.random.default_rng(0)
    margins[mine] = np.concatenate([rng.normal(15, 0.5, 90), np.linspace(-2, 2, 20), rng.normal(-15, 0.5, 90)])
    asked: list[int] = []

    def unseen(left_out: list[np.ndarray]) -> list[np.ndarray]:
        asked.extend(int(without.sum()) for without in left_out)
        return sees(second, 0, (0, 2, 3), share)(left_out)

    found = decide(margins, always(0.0), unseen=unseen)
    assert all(e.suspects > SIZE / 2 for e in found.evidence if e.apart) and asked == [SIZE / 2] * 2
    assert found.verdict == verdict


@pytest.mark.parametrize(("classes", "share"), [((2,), 1.0), ((0, 2, 3), 0.7)])
def test_a_second_kind_of_content_looks_like_one_neighbour_or_like_its_own_class(classes: tuple[int, ...], share: float) -> None:
    margins, second = clusters({1: 80}, apart=14.0)
    found = decide(margins, always(0.0), unseen=sees(second, 0, classes, share), far_range=1e9)
    assert (found.verdict, found.flagged.any()) == ("no_evidence", False)
    assert any(e.foreign for e in found.evidence)


def test_two_networks_serve_all_classes_and_none_is_trained_where_a_difference_explains_the_clusters() -> None:
    margins, second = clusters({1: PLANTED, 2: PLANTED})
    asked: list[list[np.ndarray]] = []

    def unseen(left_out: list[np.ndarray]) -> list[np.ndarray]:
        asked.append(left_out)
        return at_home(left_out)

    decide(margins, flips_by(second), unseen=unseen)
    assert asked == []
    decide(margins, lambda label, these, rest: flips_by(second)(label, these, rest) if label == 1 else 0.0, unseen=unseen, far_range=1e9)
    ((upper, lower),) = asked
    assert not (upper | lower)[LABELS != 2].any(), "class 1 is explained, 0 and 3 have no clusters"
    assert upper[second & (LABELS == 2)].all() and not lower.any(), "of class 2 without its lower cluster too little would be left"


def test_more_poison_than_is_believed_is_inconclusive() -> None:
    margins, second = clusters(dict.fromkeys(range(CLASSES), PLANTED))
    assert decide(margins, flips_by(second)).verdict == "poisoned"
    found = decide(margins, flips_by(second), cap_flagged=0.1)
    assert found.verdict == "inconclusive" and "flagged share of all samples is 0.1" in found.reason
    share = found.caps[0]
    assert share["name"] == "flagged share of all samples" and share["limit"] == 0.1 and not share["holds"]
    assert share["value"] == pytest.approx(second.mean(), abs=0.01)


def test_a_class_of_which_too_little_is_left_is_inconclusive() -> None:
    margins, second = clusters({2: 150})
    found = decide(margins, flips_by(second), cap_left=0.4)
    assert found.verdict == "inconclusive" and "what is left of class 2" in found.reason
    assert [cap["holds"] for cap in found.caps] == [True, False]
    assert found.caps[1]["value"] == pytest.approx(0.25, abs=0.03)


def test_where_most_classes_are_gone_nothing_is_left_of_them() -> None:
    labels = np.repeat(np.arange(5), 10)
    caps = caps_of(labels < 3, labels, 5, PARAMS)
    assert (caps[1]["value"], caps[1]["holds"]) == (0.0, False)
    assert caps_of(labels < 0, labels, 7, PARAMS)[1]["value"] == 1.0, "classes that never had a sample are not missed"


def test_small_classes_are_not_judged() -> None:
    labels = np.repeat(np.arange(CLASSES), [9, 0, 1, 200])
    margins = np.where(np.arange(len(labels)) % 3 == 0, 40.0, -40.0)
    margins[labels == 3] = np.random.default_rng(0).normal(0, 2, 200)
    found = decide(margins, always(1.0), -margins, labels)
    assert (found.verdict, found.flagged.any()) == ("no_evidence", False)
    assert [e.n for e in found.evidence if e.side == "low" and not e.mirrored] == [9, 0, 1, 200]
    assert all(e.threshold == np.inf and e.suspects == 0 for e in found.evidence if e.n < 10)


any_set = {"seed": st.integers(0, 9999), "n": st.integers(0, 150), "scale": st.sampled_from([0.0, 1.0, 10.0, 100.0])}


def drawn(seed: int, n: int, scale: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    shift = scale * 6 * (rng.random((2, n)) < rng.random())
    return dict(zip(("low", "high"), rng.normal(0, scale, (2, n)) + shift, strict=True)), labels


def any_flips(seed: int) -> FlipRate:
    return lambda label, first, second: float(np.random.default_rng([seed, label, len(first)]).random())


def any_unseen(seed: int) -> Unseen:
    return lambda left_out: [np.random.default_rng([seed, int(out.sum())]).integers(0, CLASSES, len(out)) for out in left_out]


@examples(derandomize=True, deadline=None, max_examples=100)
@given(**any_set)
def test_every_sample_has_one_verdict_and_no_class_goes_as_a_whole(seed: int, n: int, scale: float) -> None:
    margins, labels = drawn(seed, n, scale)
    found = by_two_clusters(margins, Labelling(labels, CLASSES), PARAMS, Questions(any_flips(seed), any_unseen(seed), upper_tenth))
    assert found.flagged.shape == found.suspicion.shape == (n,) and found.flagged.dtype == bool
    assert set(labels[found.flagged].tolist()) <= set(found.proofs), "a flag says how its class was proven"
    assert np.isfinite(found.suspicion).all() and ((found.suspicion >= 0) & (found.suspicion <= 1)).all()
    assert (found.verdict == "no_evidence") <= (not found.flagged.any())
    assert (found.verdict == "poisoned") <= (bool(found.flagged.any()) and all(cap["holds"] for cap in found.caps))
    assert found.verdict in ("no_evidence", "poisoned", "inconclusive") and found.reason
    for c in set(labels.tolist()):
        assert not found.flagged[labels == c].all()
    if found.flagged.any():
        assert found.suspicion[found.flagged].min() >= found.suspicion[~found.flagged].max()


@examples(derandomize=True, deadline=None)
@given(**any_set)
def test_the_order_of_samples_and_a_shift_of_all_margins_change_nothing(seed: int, n: int, scale: float) -> None:
    margins, labels = drawn(seed, n, scale)
    order, back = np.random.default_rng(seed).permutation(n), any_unseen(seed)
    found = by_two_clusters(margins, Labelling(labels, CLASSES), PARAMS, Questions(any_flips(seed), back, upper_tenth))
    shifted, moved_labels = {side: (m + 64)[order] for side, m in margins.items()}, labels[order]
    moved = by_two_clusters(
        shifted,
        Labelling(moved_labels, CLASSES),
        PARAMS,
        Questions(any_flips(seed), lambda left_out: [seen[order] for seen in back([out[np.argsort(order)] for out in left_out])], upper_tenth),
    )
    assert moved.verdict == found.verdict and np.array_equal(moved.flagged, found.flagged[order])


def test_the_evidence_of_a_class_by_hand() -> None:
    margin = np.concatenate([np.linspace(-1, 1, 90), np.full(10, 20.0)])
    found = evidence(margin, 3, "low", 2.5)
    assert (found.label, found.side, found.n, found.valley, found.suspects) == (3, "low", 100, 0.0, 10)
    assert found.separation > 20
    low, high = np.quantile(margin, [0.04, 0.96])
    assert found.range == pytest.approx(high - low)
    assert found.threshold == pytest.approx(2.5 * 0.68, abs=0.05)  # median 0, and 0.68 to the 16 % quantile of a uniform cluster


def test_the_separation_is_the_distance_of_two_normal_clusters_in_deviations_and_knows_no_scale() -> None:
    rng = np.random.default_rng(0)
    margin = np.concatenate([rng.normal(0, 1, 3000), rng.normal(5, 1, 1500)])
    assert evidence(margin, 0, "low", 2.5).separation == pytest.approx(5, rel=0.05)
    assert evidence(1000 * margin + 7, 0, "low", 2.5).separation == pytest.approx(evidence(-margin, 0, "low", 2.5).separation, rel=0.01)
    assert evidence(rng.normal(0, 1, 3000), 0, "low", 2.5).separation < 2.6
    assert evidence(np.full(50, 3.0), 0, "low", 2.5).separation == 0


def test_the_valley_of_a_uniform_cluster_is_a_fifth_of_its_range() -> None:
    assert evidence(np.linspace(0, 1, 10_000), 0, "low", 2.5).valley == pytest.approx(0.92 / 5, abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_by_the_papers_rule_a_perfect_model_flags_all_and_one_that_is_always_wrong_none(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, CLASSES, 60)
    confidence = np.random.default_rng(seed + 1).random(60)
    everything = by_misclassification(labels, confidence, labels, CLASSES)
    nothing = by_misclassification((labels + 1) % CLASSES, confidence, labels, CLASSES)
    assert everything.flagged.all() and everything.verdict == "poisoned"
    assert everything.target_class == np.bincount(labels).argmax()
    assert not nothing.flagged.any() and (nothing.verdict, nothing.target_class) == ("no_evidence", None)
    assert np.array_equal(everything.suspicion, confidence)


def test_by_the_papers_rule_the_flagged_are_those_that_keep_their_label() -> None:
    labels, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    found = by_misclassification(predicted, np.ones(5), labels, 3)
    assert found.flagged.tolist() == [True, False, True, True, False] and found.target_class == 1
    assert "3 of 5 samples" in found.reason and found.proofs == {0: "fitted-by-enhanced", 1: "fitted-by-enhanced"}


def test_no_evidence_on_a_set_that_the_early_network_fits_says_that_a_trigger_may_have_been_missed() -> None:
    sides = {"low": clusters({}, seed=1)[0], "high": clusters({}, seed=2)[0]}
    hard, easy = (
        by_two_clusters(sides, Labelling(LABELS, CLASSES), PARAMS, Questions(lambda *_: 0.0, at_home, upper_tenth), fitted) for fitted in (0.9, 1.0)
    )
    assert hard.verdict == easy.verdict == "no_evidence"
    assert "fits 100.0% of the samples" in easy.reason and "may have been missed" in easy.reason
    assert "missed" not in hard.reason
