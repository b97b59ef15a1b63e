"""The dials that go with many attacks: source classes, targets, labels that stay true, several attacks at once; and what does not go together."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from meca.attacks import ATTACKS, Draws
from meca.attacks.planting import in_light, signed
from meca.attacks.poisoning import Plan, PoisonParams, plan
from meca.errors import InputRefused, UsageError
from tests.making import settings

PARAMS = settings().group("poison", PoisonParams)
DIRTY = [name for name, attack in ATTACKS.items() if attack.given == "target" and attack.carriers == "non_target"]
ONE_TARGET = [name for name in DIRTY if len(ATTACKS[name].views) == 1]
DIALS = [
    {"attack": "badnet", "sources": 3}, {"attack": "wanet", "sources": 1}, {"attack": "two_targets", "sources": 2}, {"attack": "blend", "targets": 3},
    {"attack": "adaptive_patch", "targets": 10, "sources": 2}, {"attack": "four_patches", "flip_share": 0.3},
    {"attack": "all_to_all", "flip_share": 0.5},
    {"attack": "badnet+blend+sig"}, {"attack": "badnet+tact+adaptive_blend", "flip_share": 0.2}, {"attack": "blend+wanet", "sources": 4},
]  # fmt: skip
every_dial = pytest.mark.parametrize("dials", DIALS, ids=str)


def planned(attack: str, seed: int = 0, n: int = 1000, classes: int = 10, **changes: Any) -> tuple[np.ndarray, Plan]:
    labels = np.random.default_rng(seed + 50).integers(0, classes, n)
    return labels, plan(labels, classes, dataclasses.replace(PARAMS, attack=attack, **changes), seed)


@every_dial
@pytest.mark.parametrize("seed", range(2))
def test_no_sample_has_two_roles_and_only_poison_and_noise_change_labels(dials: dict, seed: int) -> None:
    labels, found = planned(**dials, seed=seed, rate=0.03, label_noise=0.1)
    roles = [chosen.rows for each in found.planted for chosen in (each.poison, each.kept, each.covers)] + [found.noise.rows]
    together = np.concatenate(roles)
    assert len(set(together)) == len(together)
    rest = np.setdiff1d(np.arange(len(labels)), [*found.poison.rows, *found.noise.rows])
    assert np.array_equal(found.given[rest], labels[rest])
    assert len(found.poison.rows) + len(found.kept.rows) == 30, "the rate counts all that carry what poison carries"
    for each in found.planted:
        assert np.array_equal(found.given[each.poison.rows], each.led(labels, each.poison))
        if not ATTACKS[each.name].clean_label:
            assert (found.given[each.poison.rows] != labels[each.poison.rows]).all()
        if each.name != "two_targets":
            assert (each.led(labels, each.covers) != labels[each.covers.rows]).all(), "no cover teaches the trigger"


@every_dial
def test_poison_at_a_lower_rate_is_part_of_poison_at_a_higher_one_with_the_same_trigger(dials: dict) -> None:
    low, high = (planned(**dials, rate=rate)[1] for rate in (0.02, 0.04))
    for few, many in zip(low.planted, high.planted, strict=True):
        for name in ("poison", "kept"):
            ranks = dict(zip(getattr(many, name).rows, getattr(many, name).ranks, strict=True))
            some = getattr(few, name)
            assert [ranks[row] for row in some.rows] == list(some.ranks)
        assert (few.first, few.sources, few.leads) == (many.first, many.sources, many.leads)


@every_dial
def test_a_plan_is_that_of_its_seed(dials: dict) -> None:
    (_, one), (_, same) = planned(**dials), planned(**dials)
    labels = np.random.default_rng(50).integers(0, 10, 1000)
    other = plan(labels, 10, dataclasses.replace(PARAMS, **dials), 1)
    assert np.array_equal(one.given, same.given) and not np.array_equal(one.given, other.given)


@pytest.mark.parametrize("attack", ["tact", "adaptive_blend", "adaptive_patch", "four_patches", "wanet", "fragile_dots"])
def test_covers_can_be_as_many_as_poison(attack: str) -> None:
    _, found = planned(attack, rate=0.04, cover_rate=0.04)
    assert len(found.poison.rows) == len(found.covers.rows) == 40


def test_the_authors_setting_of_four_patches_is_its_table() -> None:
    _, found = planned("four_patches", n=10_000, rate=0.003)
    assert (len(found.poison.rows), len(found.covers.rows)) == (30, 60)


@pytest.mark.parametrize("attack", DIRTY)
@pytest.mark.parametrize("sources", [1, 3, 8])
def test_poison_is_of_so_many_source_classes_and_covers_are_of_the_others(attack: str, sources: int) -> None:
    if attack == "two_targets" and sources == 8:
        sources = 7  # of eight that are no target, so that one is left for covers
    labels, found = planned(attack, rate=0.04, sources=sources, cover_rate=0.03)
    (each,) = found.planted
    chosen = each.sources or ()
    assert len(chosen) == sources and not set(chosen) & set(found.targets)
    assert set(labels[found.poison.rows]) == set(chosen)
    others = set(range(10)) - set(chosen) - set(found.targets)
    assert set(labels[found.covers.rows]) <= others and set(found.cover_classes or ()) == others
    assert len(found.covers.rows) == 30 and each.cover == ATTACKS[attack].planted


def test_source_classes_are_drawn_by_the_seed_and_few_are_among_many() -> None:
    few, many = (set(planned("badnet", sources=number)[1].planted[0].sources or ()) for number in (2, 5))
    assert few < many and len({planned("badnet", seed=seed, sources=3)[1].planted[0].sources for seed in range(8)}) > 3


def test_with_sources_covers_are_as_many_as_poison_where_the_table_has_none_and_a_class_is_left() -> None:
    assert len(planned("badnet", rate=0.04, sources=3)[1].covers.rows) == 40
    assert len(planned("badnet", rate=0.04, sources=9)[1].covers.rows) == 0
    assert len(planned("adaptive_blend", rate=0.04, sources=3)[1].covers.rows) == 10
    with pytest.raises(InputRefused, match=r"no sample may be one; set poison\.cover_rate to 0\.0"):
        planned("badnet", rate=0.04, sources=9, cover_rate=0.01)


@pytest.mark.parametrize("attack", ONE_TARGET)
@pytest.mark.parametrize(("targets", "first"), [(2, 1), (5, 8), (10, 3)])
def test_the_target_depends_on_the_class_of_the_image(attack: str, targets: int, first: int) -> None:
    labels, found = planned(attack, rate=0.2, targets=targets, target_class=first)
    rows = found.poison.rows
    assert np.array_equal(found.given[rows], (first + labels[rows] % targets) % 10)
    assert found.targets == tuple((first + step) % 10 for step in range(targets)) == tuple(dict.fromkeys(found.targets))
    able = {c for c in range(10) if (first + c % targets) % 10 != c}
    assert set(labels[rows]) == able, "an image whose class it leads to is no carrier"


def test_as_many_targets_as_classes_are_all_to_all() -> None:
    (_, one), (_, other) = planned("badnet", targets=10), planned("all_to_all")
    assert np.array_equal(one.given, other.given) and one.planted[0].leads == other.planted[0].leads


@examples(derandomize=True, deadline=None, max_examples=40)
@given(share=st.floats(0.0, 0.95), rate=st.floats(0.02, 0.4), attack=st.sampled_from(["badnet", "adaptive_patch", "two_targets"]))
def test_so_large_a_share_of_every_part_keeps_its_label(share: float, rate: float, attack: str) -> None:
    labels, found = planned(attack, n=300, rate=rate, flip_share=share, cap=1.0)
    parts = ATTACKS[attack].parts
    ranks = np.concatenate([found.poison.ranks, found.kept.ranks])
    assert sorted(ranks) == list(range(math.floor(300 * rate + 1e-9)))
    for part in range(parts):
        carried = (ranks % parts == part).sum()
        assert (found.kept.ranks % parts == part).sum() == math.floor(carried * share + 1e-9)
    assert np.array_equal(found.given[found.kept.rows], labels[found.kept.rows]) and not found.poison.capped and not found.kept.capped


def test_a_share_that_keeps_its_label_moves_no_row() -> None:
    (_, plain), (_, shared) = planned("blend"), planned("blend", flip_share=0.4)
    assert np.array_equal(plain.poison.rows, np.union1d(shared.poison.rows, shared.kept.rows))


def test_attacks_at_once_share_the_rate_and_lead_to_a_class_each() -> None:
    labels, found = planned("badnet+blend+sig", rate=0.05, target_class=8)
    assert [each.name for each in found.planted] == ["badnet", "blend", "sig"] and found.targets == (8, 9, 0)
    assert [len(each.poison.rows) for each in found.planted] == [17, 17, 16] and [each.first for each in found.planted] == [0, 1, 2]
    for each, target in zip(found.planted, found.targets, strict=True):
        assert (found.given[each.poison.rows] == target).all()
        own = labels[each.poison.rows]
        assert (own == target).all() if each.name == "sig" else not np.isin(own, found.targets).any()
    assert found.poison.requested == 50 == len(found.poison.rows) and (np.diff(found.poison.rows) > 0).all()


def test_attacks_at_once_number_their_parts_one_after_the_other_and_have_covers_of_their_own() -> None:
    labels, found = planned("adaptive_patch+badnet+tact", rate=0.06, cover_rate=0.04)
    assert [each.first for each in found.planted] == [0, 4, 5]
    assert [len(each.covers.rows) for each in found.planted] == [20, 0, 20]
    assert not np.isin(labels[found.covers.rows], found.targets).any()
    usual = planned("adaptive_patch+badnet+fragile_dots+wanet", rate=0.04)[1]
    assert [each.covers.requested for each in usual.planted] == [10, 0, 10, 50]


@pytest.mark.parametrize(
    ("attack", "changes", "sentence"),
    [
        ("sig", {"sources": 2}, r"poison\.sources to be 0 with attack 'sig', which keeps the labels of its poison, got 2"),
        ("all_to_all", {"sources": 2}, r"poison\.sources to be 0 with attack 'all_to_all', which leads every class to the next, got 2"),
        ("tact", {"sources": 2}, r"poison\.sources to be 0 with attack 'tact', which has a source class of its own"),
        ("sig", {"targets": 2}, r"poison\.targets to be 1 with attack 'sig'"),
        ("all_to_all", {"targets": 2}, r"poison\.targets to be 1 with attack 'all_to_all'"),
        ("tact", {"targets": 2}, r"poison\.targets to be 1 with attack 'tact'"),
        ("two_targets", {"targets": 2}, r"poison\.targets to be 1 with attack 'two_targets', which has two triggers"),
        ("badnet+blend", {"targets": 2}, r"poison\.targets to be 1 with attack 'badnet', which is planted together with others"),
        ("kin", {"targets": 2}, r"poison\.targets to be 1 with attack 'kin', which takes its images from the classes that are most like one target"),
        ("sig", {"flip_share": 0.1}, r"poison\.flip_share to be 0\.0 with attack 'sig', which keeps the labels of its poison, got 0\.1"),
        ("badnet+sig", {"flip_share": 0.1}, r"poison\.flip_share to be 0\.0 with attack 'sig'"),
        ("badnet+two_targets", {}, r"to have one target class each, got 'two_targets'"),
        ("crowd+badnet", {}, r"to have one target class each, got 'crowd'"),
        ("all_to_all+badnet", {}, r"to have one target class each, got 'all_to_all'"),
        ("badnet+badnet", {}, r"expected the attacks in poison\.attack to differ, got 'badnet\+badnet'"),
        ("badnet+none", {}, r"expected poison\.attack to be one of badnet, .*got 'none'"),
        ("badnet+blent", {}, r"got 'blent'; did you mean 'blend'\?"),
        ("badnet+", {}, r"expected poison\.attack to be one of badnet, .*got ''"),
        ("badnet", {"sources": -1}, r"expected poison\.sources to be a number of classes, .*got -1"),
        ("badnet", {"targets": 0}, r"expected poison\.targets to be 1 or more, got 0"),
        ("badnet", {"flip_share": 1.0}, r"expected poison\.flip_share to be in \[0, 1\), got 1\.0"),
        ("blend", {"test_alpha": 0.0}, r"expected poison\.test_alpha to be in \(0, 1\], or -1\.0 for blend_alpha, got 0\.0"),
        ("blend", {"test_alpha": 1.5}, r"expected poison\.test_alpha .*got 1\.5"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(attack: str, changes: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        dataclasses.replace(PARAMS, attack=attack, **changes)


@pytest.mark.parametrize(
    ("attack", "classes", "changes", "sentence"),
    [
        ("badnet", 10, {"sources": 10}, r"Expected poison\.sources in 0\.\.9, the classes that are not led to themselves, got 10"),
        ("two_targets", 10, {"sources": 9}, r"Expected poison\.sources in 0\.\.8, .*got 9"),
        ("badnet", 4, {"targets": 5}, r"Expected poison\.targets in 1\.\.4, got 5"),
        ("badnet+blend+wanet", 2, {}, r"Expected at most 2 attacks at once, one for each class, got 3"),
        ("badnet+blend", 2, {}, r"Expected samples to poison with attack 'badnet', but the pool of carriers has 0 .* plant fewer at once"),
        ("tact+badnet", 10, {"source_class": 2}, r"Expected poison\.source_class to differ from poison\.target_class, got 2"),
        ("badnet", 3, {"targets": 3, "target_class": 0}, r"the pool of carriers has 0"),
    ],
)
def test_classes_that_there_are_not_enough_of_are_refused(attack: str, classes: int, changes: dict, sentence: str) -> None:
    with pytest.raises(InputRefused, match=sentence):
        planned(attack, classes=classes, **changes)


def test_dials_say_nothing_where_nothing_is_planted() -> None:
    labels, found = planned("none", sources=3, targets=4, flip_share=0.5)
    assert found.planted == () and np.array_equal(found.given, labels) and len(found.poison.rows) == len(found.covers.rows) == 0


def test_a_trigger_of_random_sign_is_added_or_taken_away_and_never_lost() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(60, 190, (60, 6, 5, 3), np.uint8)
    images[:5] = 0
    moved = images.astype(int) + rng.integers(1, 40, images.shape)
    planted, before, draws = moved.astype(np.uint8), images.copy(), Draws(0, np.arange(60) * 7, np.arange(60))
    found = signed(images, planted, draws).astype(int)
    plus = (found == planted).all((1, 2, 3))
    assert np.array_equal(found[~plus], 2 * images[~plus].astype(int) - planted[~plus])
    assert plus[:5].all(), "from black nothing can be taken away"
    assert 15 < plus[5:].sum() < 40
    assert np.array_equal(images, before) and np.array_equal(found, signed(images, planted, draws))
    part = Draws(0, draws.rows[[9, 3]], draws.ranks[[9, 3]])
    assert np.array_equal(found[[9, 3]], signed(images[[9, 3]], planted[[9, 3]], part)), "by row, not by place"
    assert len(signed(images[:0], planted[:0], Draws(0, draws.rows[:0], draws.ranks[:0]))) == 0


def test_an_image_in_another_light_has_that_mean_and_deviation() -> None:
    images = np.random.default_rng(0).integers(40, 200, (4, 16, 16, 3), np.uint8)
    images[3] = 77  # without contrast
    light = np.array([[120.0, 30.0], [90.0, 20.0], [150.0, 10.0], [100.0, 50.0]])
    found = in_light(images, light)
    assert found.dtype == np.uint8
    for image, before, (mean, deviation) in zip(found[:3].astype(float), images, light, strict=False):
        assert image.mean() == pytest.approx(mean, abs=0.1) and image.std() == pytest.approx(deviation, abs=0.1)
        expected = mean + deviation * (before.astype(float) - before.mean()) / before.std()
        assert np.abs(image - expected).max() <= 0.5 + 1e-9
    assert (found[3] == 100).all()
