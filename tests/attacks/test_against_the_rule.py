"""Attacks made against this project's own rule: many targets at once, and poison from the classes that are most like the target."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from meca.attacks import ATTACKS, Draws
from meca.attacks.crowd import crowd, crowd_part, in_turn, patch
from meca.attacks.kin import nearest
from meca.attacks.planting import truth_table
from meca.attacks.poisoning import Plan, PoisonParams, plan
from meca.data.store import open_store
from meca.errors import InputRefused
from tests.attacks.test_poisoning import planned
from tests.making import settings
from tests.stages.chain import N_TRAIN, make_store, step

PARAMS = settings().group("poison", PoisonParams)


@pytest.mark.parametrize(("classes", "asked", "first", "targets"), [
    (10, 1, 1, (1, 2, 3, 4, 5)), (10, 1, 8, (8, 9, 0, 1, 2)), (43, 1, 1, tuple(range(1, 22))), (3, 1, 2, (2, 0)), (2, 1, 1, (1, 0)),
    (10, 2, 4, (4, 5)), (10, 10, 0, tuple(range(10))),
])  # fmt: skip
def test_half_of_all_classes_and_two_at_least_are_targets_unless_a_number_is_given(
    classes: int, asked: int, first: int, targets: tuple[int, ...]
) -> None:
    _, found = planned("crowd", n=2000, classes=classes, targets=asked, target_class=first, rate=0.1)
    (each,) = found.planted
    assert found.targets == targets and [set(leads) for leads in each.leads] == [{target} for target in targets]
    counts = np.bincount(found.given[found.poison.rows], minlength=classes)
    assert counts.sum() == 200 and set(np.flatnonzero(counts)) == set(targets)
    assert np.ptp(counts[list(targets)]) <= 1, "all targets together have the rate, and each as much as any other"


def test_poison_of_each_target_is_of_all_other_classes_other_targets_among_them() -> None:
    labels, found = planned("crowd", n=4000, rate=0.2)
    rows = found.poison.rows
    for target in found.targets:
        assert set(labels[rows[found.given[rows] == target]]) == set(range(10)) - {target}


@examples(derandomize=True, deadline=None, max_examples=60)
@given(seed=st.integers(0, 99), n=st.integers(2, 120), classes=st.integers(2, 6), targets=st.integers(2, 6), skew=st.floats(0.1, 3.0))
def test_each_rank_has_the_first_row_that_is_left_and_not_of_its_target(seed: int, n: int, classes: int, targets: int, skew: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.minimum((classes * rng.random(n) ** skew).astype(int), classes - 1)
    order, leads = rng.permutation(n), tuple(range(min(targets, classes)))
    left, expected = list(order), []
    for rank in range(n):
        fit = next((row for row in left if labels[row] != leads[rank % len(leads)]), None)
        if fit is None:
            break
        left.remove(fit)
        expected.append(fit)
    assert in_turn(order, labels, leads, n).tolist() == expected
    assert in_turn(order, labels, leads, n // 3).tolist() == expected[: n // 3]


def test_a_patch_has_colours_of_its_own_and_a_place_of_its_own_while_there_is_room() -> None:
    images = np.full((1, 32, 32, 3), 100, np.uint8)
    stamped = [(crowd(images, 5, number) != images).any(3)[0] for number in range(36)]
    assert sum(stamped).max() == 1 and all(place.sum() == 25 for place in stamped)  # type: ignore[union-attr]
    assert sum(place[0, 0] or place[0, -1] or place[-1, 0] or place[-1, -1] for place in stamped) == 4, "the grid goes to the edges"
    again = (crowd(images, 5, 36) != images).any(3)[0]
    assert np.array_equal(again, stamped[0]) and not np.array_equal(crowd(images, 5, 36), crowd(images, 5, 0))
    for channels in (1, 3):
        assert len({patch(number, channels).tobytes() for number in range(511)}) == 511
        assert all(patch(number, channels).max() == 255 for number in range(511))


@pytest.mark.parametrize("size", [(8, 8, 3), (3, 2, 1), (9, 32, 3)])
@pytest.mark.parametrize("side", [1, 3, 5, 40])
def test_a_patch_lies_in_the_image_whatever_its_size(size: tuple[int, int, int], side: int) -> None:
    images = np.full((2, *size), 100, np.uint8)
    for number in range(7):
        changed = (crowd(images, side, number) != images).any(3)
        rows, columns = np.flatnonzero(changed.any((0, 2))), np.flatnonzero(changed.any((0, 1)))
        inside = min(side, *size[:2])
        assert changed.sum() == 2 * inside**2 and len(rows) == len(columns) == inside == np.ptp(rows) + 1 == np.ptp(columns) + 1


def test_each_image_carries_the_trigger_of_its_rank_and_tests_have_one_view_for_each() -> None:
    images = np.random.default_rng(0).integers(1, 255, (9, 32, 32, 3), np.uint8)
    draws = Draws(0, np.arange(9), np.random.default_rng(1).permutation(9), triggers=4)
    found = crowd_part(images, 3, draws)
    for image, before, rank in zip(found, images, draws.ranks, strict=True):
        assert np.array_equal(image, crowd(before[None], 3, rank % 4)[0])
    views = ATTACKS["crowd"].tests(4)
    assert len(views) == 4
    for number, view in enumerate(views):
        assert np.array_equal(view(images, PARAMS, 0), crowd(images, 3, number))


def test_the_files_of_a_crowd_say_of_each_trigger_where_it_leads(tmp_path: Path) -> None:
    make_store(tmp_path / "data" / "ingested")
    step("poison", tmp_path, settings(**{"poison.attack": "crowd", "poison.targets": 3, "poison.rate": 0.25}))
    record = json.loads((tmp_path / "data" / "truth" / "attack.json").read_text())
    assert [each["target_class"] for each in record["triggers"]] == record["targets"] == [1, 2, 3]
    assert [each["trigger_ids"] for each in record["triggers"]] == [[0], [1], [2]]
    before, after = open_store(tmp_path / "data" / "ingested"), open_store(tmp_path / "data" / "store")
    changed = np.flatnonzero(before.labels[:N_TRAIN] != after.labels[:N_TRAIN])
    assert len(changed) == 24 == record["poisoned"]
    for row in changed:
        image = np.asarray(before.images[row : row + 1])
        assert np.array_equal(after.images[row], crowd(image, 3, after.labels[row] - 1)[0])


def test_more_triggers_than_a_byte_counts_have_ids_of_their_own() -> None:
    import pyarrow as pa

    labels, found = planned("crowd", n=3000, classes=400, rate=0.4)
    table = truth_table(labels, found, pa.table({"sample_id": [""] * 3000}))
    ids = table["trigger_id"].to_numpy()
    assert np.array_equal(found.given[found.poison.rows], (1 + ids[found.poison.rows]) % 400) and ids.max() == 199


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": 1, "target_class": 0}, r"Expected two classes or more for attack 'crowd', which leads to two at least, got 1"),
        ({"targets": 11}, r"Expected poison\.targets in 1\.\.10, got 11"),
        ({"target_class": 10}, r"Expected poison\.target_class in 0\.\.9, got 10"),
        ({"sources": 6}, r"Expected poison\.sources in 0\.\.5, the classes that are not led to themselves, got 6"),
    ],
)
def test_a_crowd_that_the_classes_do_not_allow_is_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(InputRefused, match=sentence):
        planned("crowd", **changes)


def test_dials_go_with_a_crowd() -> None:
    labels, found = planned("crowd", n=2000, rate=0.08, sources=2, flip_share=0.25)
    (each,) = found.planted
    assert len(each.sources or ()) == 2 and not set(each.sources or ()) & set(found.targets)
    assert set(labels[found.poison.rows]) == set(each.sources or ())
    assert len(found.kept.rows) == 40 and np.bincount(found.kept.ranks % 5).tolist() == [8] * 5
    assert len(found.covers.rows) == 160 and not np.isin(labels[found.covers.rows], [*found.targets, *(each.sources or ())]).any()


def like(order: tuple[int, ...], n: int = 1000, seed: int = 0, **changes: Any) -> tuple[np.ndarray, Plan]:
    labels = np.random.default_rng(seed).integers(0, len(order) + 1, n)
    return labels, plan(labels, len(order) + 1, dataclasses.replace(PARAMS, attack="kin", **changes), seed, lambda _: order)


def test_kin_poisons_the_nearest_third_alone_and_covers_the_rest_as_many() -> None:
    labels, found = like((7, 0, 9, 2, 3, 4, 5, 6, 8))
    assert set(labels[found.poison.rows]) == {0, 7, 9} and (found.given[found.poison.rows] == 1).all()
    assert set(labels[found.covers.rows]) == {2, 3, 4, 5, 6, 8} and len(found.covers.rows) == len(found.poison.rows) == 50
    assert np.array_equal(found.given[found.covers.rows], labels[found.covers.rows])
    assert found.planted[0].sources == (0, 7, 9) and found.cover_classes == (2, 3, 4, 5, 6, 8)


@pytest.mark.parametrize(("others", "sources", "chosen"), [(2, 0, 1), (3, 0, 1), (8, 0, 2), (9, 0, 3), (42, 0, 14), (9, 1, 1), (9, 5, 5)])
def test_a_third_of_the_other_classes_and_one_at_least_is_kin_unless_a_number_is_given(others: int, sources: int, chosen: int) -> None:
    order = tuple(c for c in range(others, -1, -1) if c != 1)
    _, found = like(order, n=4000, sources=sources, rate=0.01)
    assert found.planted[0].sources == tuple(sorted(order[:chosen])) and found.cover_classes == tuple(sorted(order[chosen:]))


def test_kin_goes_with_other_attacks_whose_targets_it_leaves_alone() -> None:
    labels, found = planned("kin+badnet", n=2000, rate=0.1)
    kin, badnet = found.planted
    assert (kin.targets, badnet.targets) == ((1,), (2,)) and kin.sources == (3, 4) and kin.cover_classes == (0, 5, 6, 7, 8, 9)
    assert set(labels[kin.poison.rows]) == {3, 4} and not np.isin(labels[kin.covers.rows], (1, 2)).any()


@pytest.mark.parametrize(
    ("order", "changes", "sentence"),
    [
        ((0,), {}, r"Expected covers for attack 'kin', but no sample may be one; set poison\.cover_rate to 0\.0"),
        ((2, 0), {"sources": 3}, r"Expected poison\.sources in 0\.\.2, .* got 3"),
    ],
)
def test_kin_that_the_classes_do_not_allow_is_refused(order: tuple[int, ...], changes: dict, sentence: str) -> None:
    with pytest.raises(InputRefused, match=sentence):
        like(order, **changes)
    assert len(like((0,), cover_rate=0.0)[1].poison.rows) == 50


def test_an_attack_that_goes_by_likeness_needs_somebody_who_tells_it() -> None:
    with pytest.raises(ValueError, match="Expected `near`"):
        plan(np.arange(100) % 4, 4, dataclasses.replace(PARAMS, attack="kin"), 0)


def likeness(n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Return images of four classes and one without images: 0 is like 2 in another light, 3 is a little like it, 1 is its negative."""
    rng = np.random.default_rng(4)
    base, other = rng.random((2, 8, 8, 3))
    looks = [base, 1 - base, base, 0.5 * base + 0.5 * other]
    light = [(40, 30), (100, 120), (100, 150), (100, 120)]
    labels = np.arange(n) % 4
    images = np.stack([light[c][0] + light[c][1] * (looks[c] - 0.5) + rng.normal(0, 4, base.shape) for c in labels])
    return np.clip(np.rint(images), 0, 255).astype(np.uint8), labels


def test_the_nearest_class_is_the_one_whose_mean_looks_alike_in_whatever_light(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = likeness()
    rows = np.arange(len(images))
    assert nearest(images, rows, labels, 5, 2) == (0, 3, 1, 4), "a class without images is the last one"
    monkeypatch.setattr("meca.attacks.kin.TOGETHER", 7)
    assert nearest(images, rows, labels, 5, 2) == (0, 3, 1, 4)
    half = rows[rows >= 120]
    assert nearest(images, half, labels[half], 5, 2) == (0, 3, 1, 4), "rows that do not count are not read"
    flat = np.zeros_like(images)
    assert nearest(flat, rows, labels, 4, 2) == (0, 1, 3), "no contrast is no error"
    with pytest.raises(InputRefused, match=r"Expected images of class 4 for attack 'kin', found none"):
        nearest(images, rows, labels, 5, 4)


def test_the_stage_asks_the_images_which_classes_are_near(tmp_path: Path) -> None:
    made = lambda n: tuple(part[:n] for part in enlarged())  # noqa: E731
    make_store(tmp_path / "data" / "ingested", made=made)
    step("poison", tmp_path, settings(**{"poison.attack": "kin", "poison.rate": 0.1, "poison.target_class": 2}))
    record = json.loads((tmp_path / "data" / "truth" / "attack.json").read_text())
    (trigger,) = record["triggers"]
    assert (trigger["source_classes"], record["carrier_classes"], record["cover_classes"]) == ([0], [0], [1, 3])
    assert trigger["target_class"] == 2 and record["covers"]["actual"] == record["poisoned"] == 9
    assert np.load(tmp_path / "data" / "truth" / "triggered.npy").shape[0] == 32


def enlarged() -> tuple[np.ndarray, np.ndarray]:
    images, labels = likeness()
    return images.repeat(2, axis=1).repeat(2, axis=2), labels
