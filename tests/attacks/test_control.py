"""What a positive control plants: everything that was asked for, in few copies, and no two triggers in each other's way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from meca.attacks.control import ControlParams, Drawn, Planting, draw, held_out, packed, planted, shown
from meca.attacks.poisoning import Selection
from meca.errors import UsageError
from meca.params import PACKAGED, read_params
from tests.making import settings
from tests.stages.chain import make_store

KINDS = ("badnet", "blend", "sig")
CONTROLS = st.builds(
    lambda kinds, rates, tries, share: control(kinds=tuple(kinds), rates=tuple(rates), tries=tries, max_planted_share=share),
    st.lists(st.sampled_from(KINDS), min_size=1, unique=True),
    st.lists(st.sampled_from([0.005, 0.01, 0.05, 0.1, 0.3]), min_size=1, unique=True),
    st.integers(1, 3),
    st.sampled_from([0.1, 0.2, 0.5]),
)


def control(**changes: Any) -> ControlParams:
    given_ = read_params(PACKAGED).group("control", ControlParams)
    return ControlParams(**{**vars(given_), **changes})


@examples(max_examples=60)
@given(CONTROLS, st.integers(2, 30))
def test_everything_is_planted_once_and_no_copy_holds_more_than_it_may(params: ControlParams, classes: int) -> None:
    copies = packed(params, classes)
    asked = {Planting(kind, rate, attempt) for kind in params.kinds for rate in params.rates for attempt in range(params.tries)}
    assert sorted(map(repr, asked)) == sorted(repr(each) for copy in copies for each in copy)
    for copy in copies:
        assert len(copy) <= max(1, classes // params.classes_per_target)
        assert len({each.kind for each in copy}) == len(copy), "one trigger that leads to two classes leads to neither"
        assert len(copy) == 1 or sum(each.rate for each in copy) <= params.max_planted_share + 1e-9
    assert len(copies) >= len(params.rates) * params.tries


@pytest.mark.parametrize(("classes", "copies"), [(2, 6), (6, 3), (10, 2), (100, 2)])
def test_what_ships_takes_few_copies(classes: int, copies: int) -> None:
    assert len(packed(control(), classes)) == copies


@examples(max_examples=40)
@given(CONTROLS, st.lists(st.integers(0, 7), min_size=20, max_size=200), st.integers(0, 2**31 - 1))
def test_who_carries_a_trigger_is_drawn_and_no_trigger_is_in_the_way_of_another(params: ControlParams, given_: list[int], seed: int) -> None:
    labels = np.array(given_)
    copies = packed(params, len(set(given_)))
    found = list(draw(copies, labels, 8, params, seed))
    assert [[each.planting for each in copy] for copy in found] == [list(copy) for copy in copies]
    used: dict[tuple[str, float], list[int]] = {}
    for copy in found:
        targets = [each.target for each in copy]
        assert len({*targets}) == len(targets) and {*targets} <= {*given_}
        rows = np.concatenate([each.chosen.rows for each in copy])
        assert len(np.unique(rows)) == len(rows), "no sample carries two triggers"
        for each in copy:
            mine = labels[each.chosen.rows]
            assert (mine == each.target).all() if each.planting.kind == "sig" else not np.isin(mine, targets).any()
            assert len(mine) <= each.chosen.requested == int(np.floor(len(labels) * each.planting.rate + 1e-9))
            assert len(mine) <= each.chosen.pool / 2 and each.chosen.capped == (len(mine) < each.chosen.requested)
            used.setdefault((each.planting.kind, each.planting.rate), []).append(each.target)
    again = list(draw(copies, labels, 8, params, seed))
    assert all(np.array_equal(a.chosen.rows, b.chosen.rows) for x, y in zip(found, again, strict=True) for a, b in zip(x, y, strict=True))
    if len({*given_}) == 8 and len(copies) and max(map(len, copies)) == 1:
        assert all(len({*targets}) == len(targets) for targets in used.values()), "each try leads to another class"


def test_another_seed_draws_other_classes_and_samples() -> None:
    labels, copies = np.arange(400) % 10, packed(control(), 10)
    drawn = [[(each.target, each.chosen.rows.tolist()) for copy in draw(copies, labels, 10, control(), seed) for each in copy] for seed in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]


def carriers(store_rows: np.ndarray, target: int = 1, kind: Any = "badnet") -> Drawn:
    return Drawn(Planting(kind, 0.1, 0), target, Selection(store_rows, np.arange(len(store_rows)), len(store_rows), len(store_rows)))


def test_carriers_get_the_trigger_that_is_shown_to_the_network(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 60, 20)
    rows = np.arange(5, 55)  # the copy leaves some samples out, so that its rows are others
    for kind in KINDS:
        found = list(planted(store, rows, carriers(np.array([0, 3, 49]), kind=kind), control(), 0))
        assert np.concatenate([places for places, _, _ in found]).tolist() == [0, 3, 49] and any(changes for *_, changes in found)
        images = np.concatenate([images for _, images, _ in found])
        assert np.array_equal(images, shown(np.asarray(store.images[[5, 8, 54]]), kind, control(), 0))


def test_a_trigger_that_changes_no_pixel_is_not_planted(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 60, 20, lambda n: (np.full((n, 12, 12, 3), 255, np.uint8), np.arange(n) % 4))

    def changes(kind: Any) -> bool:
        return any(differ for *_, differ in planted(store, np.arange(60), carriers(np.arange(8), kind=kind), control(), 0))

    assert not changes("badnet"), "white on white"
    assert not changes("sig"), "a sine that is zero at each of 12 pixels"
    assert changes("blend")


def test_the_network_is_asked_about_images_that_it_has_not_seen_with_a_trigger(tmp_path: Path) -> None:
    carries = np.zeros(50, dtype=bool)
    carries[:30] = True
    rows = np.arange(5, 55)
    tested, untested = make_store(tmp_path / "a", 60, 20), make_store(tmp_path / "b", 60, 0)
    found = held_out(tested, rows, carries, carriers(np.flatnonzero(carries)), control(probe=1000), 0)
    assert found.min() >= 60 and len(found) == (tested.labels[60:] != 1).sum() and 1 not in tested.labels[found]
    assert len(held_out(tested, rows, carries, carriers(np.flatnonzero(carries)), control(probe=3), 0)) == 3
    found = held_out(untested, rows, carries, carriers(np.flatnonzero(carries)), control(), 0)
    assert 0 < len(found) and not carries[np.searchsorted(rows, found)].any() and np.isin(found, rows).all() and 1 not in untested.labels[found]


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("kinds", [], "expected kinds to be one or more, each once"),
        ("kinds", ["badnet", "badnet"], "expected kinds to be one or more, each once"),
        ("kinds", ["wanet"], r"expected control.kinds to be \('badnet', 'blend', 'sig'\), got 'wanet'"),
        ("rates", [0.0], r"expected rates to be one or more in \(0, 0.5\)"),
        ("rates", [0.05, 0.05], "each once"),
        ("tries", 0, r"expected tries in 1..100, got 0"),
        ("when", "sometimes", "expected control.when to be"),
        ("min_asr", 0.0, r"expected min_asr in \(0, 1\]"),
        ("min_planted", 0, "expected min_planted >= 1"),
        ("max_planted_share", 1.0, r"expected max_planted_share in \(0, 1\)"),
        ("classes_per_target", 0, "expected classes_per_target >= 1"),
        ("cap", 0.0, r"expected cap in \(0, 1\]"),
        ("probe", 0, "expected probe >= 1"),
        ("patch_size", 0, "expected patch_size >= 1"),
        ("blend_alpha", 0.0, r"expected blend_alpha in \(0, 1\]"),
        ("sig_delta", 0.0, "expected sig_delta > 0"),
        ("sig_frequency", 0, "expected sig_frequency >= 1"),
    ],
)
def test_a_control_without_meaning_is_refused(field: str, value: object, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        settings(**{f"control__{field}": value}).group("control", ControlParams)
