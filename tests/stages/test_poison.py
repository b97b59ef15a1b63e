"""Stage poison: the promised samples change, and no other bit; the truth says which."""

import json
from pathlib import Path

import numpy as np
import pytest

from meca.attacks import ATTACKS, planting
from meca.attacks.poisoning import PoisonParams
from meca.data.store import open_store, pixel_id, read_parquet
from meca.errors import InputRefused, UsageError
from meca.files import sha256_tree
from meca.report.console import attack_lines
from tests.making import NAMES, ingest, make_folder
from tests.stages.chain import N_TEST, N_TRAIN, easy, make_store, quick, step

every_attack = pytest.mark.parametrize("attack", ATTACKS)


def poisoned(folder: Path, attack: str, **changes) -> dict:
    if not (folder / "data" / "ingested").exists():
        make_store(folder / "data" / "ingested")
    step("poison", folder, quick(attack=attack, **changes))
    return json.loads((folder / "data" / "truth" / "attack.json").read_text())


def marks(folder: Path) -> tuple[np.ndarray, ...]:
    """Return which rows are poison, covers and noise."""
    table = read_parquet(folder / "data" / "truth" / "truth.parquet")
    return tuple(table[name].to_numpy(zero_copy_only=False) for name in ("is_poisoned", "is_cover", "is_noise"))


@every_attack
def test_the_promised_samples_change_and_no_other_bit(attack: str, tmp_path: Path) -> None:
    record = poisoned(tmp_path, attack, poison__cover_rate=0.05)
    before, after = open_store(tmp_path / "data" / "ingested"), open_store(tmp_path / "data" / "store")
    is_poisoned, is_cover, is_noise = marks(tmp_path)
    truth = read_parquet(tmp_path / "data" / "truth" / "truth.parquet")
    assert is_cover.sum() == record["covers"]["actual"] == (4 if ATTACKS[attack].cover else 0) and not is_noise.any()
    changed = (before.images != after.images).any((1, 2, 3)) | (before.labels != after.labels)
    assert np.array_equal(changed[:N_TRAIN], is_poisoned | is_cover) and not (is_poisoned & is_cover).any()
    assert not changed[N_TRAIN:].any(), "test images stay as they are"
    assert is_poisoned.sum() == record["poisoned"] == min(record["requested"], record["pool"] // 2) and record["requested"] == 9
    assert record["poison_rate"] == record["poisoned"] / N_TRAIN and not record["capped"]
    assert np.array_equal(truth["original_label"].to_numpy(), before.labels[:N_TRAIN])
    assert np.array_equal(truth["row"].to_numpy(), np.arange(N_TRAIN))
    if ATTACKS[attack].plant is None:
        trigger = ATTACKS[attack].trigger(np.asarray(before.images[:N_TRAIN]), quick(attack=attack).group("poison", PoisonParams), 0)
        assert np.array_equal(after.images[:N_TRAIN][is_poisoned], trigger[is_poisoned])
    assert after.images.dtype == np.uint8 and after.images.shape == before.images.shape
    lines = zip(before.samples.to_pylist(), after.samples.to_pylist(), strict=True)
    for row, (old, new) in enumerate(lines):
        if not changed[row]:
            assert old == new
        else:
            assert (old["source"], old["split"], old["row"]) == (new["source"], new["split"], new["row"])
            assert new["sample_id"] == pixel_id(after.images[row])


@every_attack
def test_labels_change_for_poison_only_and_never_for_a_clean_label_attack(attack: str, tmp_path: Path) -> None:
    record = poisoned(tmp_path, attack, poison__cover_rate=0.05)
    before, after = (open_store(tmp_path / "data" / name).labels[:N_TRAIN] for name in ("ingested", "store"))
    poison, cover, _ = marks(tmp_path)
    trigger = read_parquet(tmp_path / "data" / "truth" / "truth.parquet")["trigger_id"].to_numpy()
    assert np.array_equal(before[~poison], after[~poison])
    if attack == "all_to_all":
        assert np.array_equal(after[poison], (before[poison] + 1) % 4) and record["target_class"] is None
    elif attack == "crowd":
        assert np.array_equal(after[poison], np.array([1, 2])[trigger[poison]]) and record["targets"] == [1, 2]
        assert sorted(np.bincount(trigger[poison])) == [4, 5] and (before[poison] != after[poison]).all()
    elif attack == "two_targets":
        assert np.array_equal(after[poison], np.array([1, 2])[trigger[poison]]) and record["targets"] == [1, 2]
        assert sorted(np.bincount(trigger[poison])) == [4, 5] and not np.isin(before[poison], [1, 2]).any()
    else:
        assert (after[poison] == 1).all() and not (before[cover] == 1).any()
    assert ((trigger >= 0) == (poison | cover)).all() and trigger.max() < max(ATTACKS[attack].parts, len(record["triggers"]))
    assert record["clean_label"] == ATTACKS[attack].clean_label == (attack == "sig")
    if attack == "tact":
        assert record["source_class"] == 0 and (before[poison] == 0).all() and record["cover_classes"] == [2, 3]
        assert np.isin(before[cover], [2, 3]).all()
    elif attack not in ("all_to_all", "crowd"):
        assert (before[poison] == 1).all() == ATTACKS[attack].clean_label


@every_attack
def test_the_triggered_test_images_are_all_of_them_by_the_same_trigger(attack: str, tmp_path: Path) -> None:
    record = poisoned(tmp_path, attack)
    store, params = open_store(tmp_path / "data" / "ingested"), quick(attack=attack).group("poison", PoisonParams)
    assert record["views"] == ["triggered.npy", "triggered_2.npy"][: len(record["triggers"])]
    for view, name in zip(ATTACKS[attack].tests(len(record["triggers"])), record["views"], strict=True):
        triggered = np.load(tmp_path / "data" / "truth" / name)
        assert triggered.shape == (N_TEST, 16, 16, 3)
        assert np.array_equal(triggered, view(np.asarray(store.images[store.test]), params, 0))


@every_attack
def test_poison_at_a_lower_rate_is_part_of_poison_at_a_higher_one(attack: str, tmp_path: Path) -> None:
    rows = []
    for rate in (0.03, 0.1):
        poisoned(tmp_path, attack, poison__rate=rate)
        truth = read_parquet(tmp_path / "data" / "truth" / "truth.parquet")
        rows.append(set(np.flatnonzero(truth["is_poisoned"].to_numpy(zero_copy_only=False))))
    assert rows[0] < rows[1]


def test_a_cap_that_bites_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from meca.progress import Progress

    make_store(tmp_path / "data" / "ingested")
    step("poison", tmp_path, quick(attack="sig", poison__rate=0.3), progress=Progress())
    record = json.loads((tmp_path / "data" / "truth" / "attack.json").read_text())
    assert (record["requested"], record["capped"], record["poisoned"]) == (28, True, record["pool"] // 2)
    assert f"capped: {record['poisoned']} of 28 samples, because the pool has {record['pool']}" in capsys.readouterr().err


def test_no_attack_is_no_change(tmp_path: Path) -> None:
    record = poisoned(tmp_path, "none")
    assert record == {"attack": "none"}
    assert sha256_tree(tmp_path / "data" / "ingested") == sha256_tree(tmp_path / "data" / "store")
    assert [path.name for path in (tmp_path / "data" / "truth").iterdir()] == ["attack.json"]


def test_a_trigger_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"trigger of attack 'sig' changes no pixel .* params\.yaml: \[poison\]"):
        poisoned(tmp_path, "sig", poison__sig_frequency=8)  # of 16 pixels


@pytest.mark.parametrize("changes", [{"patch_size": 0}, {"patch_size": -3}, {"sig_frequency": 0}, {"blend_alpha": 0.0}, {"blend_alpha": 1.5}])
def test_a_trigger_without_meaning_is_refused(changes: dict) -> None:
    (name,) = changes
    with pytest.raises(UsageError, match=rf"expected .*poison\.{name}"):
        quick(**{f"poison.{name}": changes[name]}).group("poison", PoisonParams)


@every_attack
def test_a_set_without_test_images_can_be_poisoned(attack: str, tmp_path: Path) -> None:
    make_store(tmp_path / "data" / "ingested", n_test=0)
    step("poison", tmp_path, quick(attack=attack))
    assert len(np.load(tmp_path / "data" / "truth" / "triggered.npy")) == 0


def test_encoded_images_stay_as_they_came_but_for_the_poison(tmp_path: Path) -> None:
    before = ingest(make_folder(tmp_path / "in", per_class=8), tmp_path / "data" / "ingested")
    record = poisoned(tmp_path, "badnet")
    after = open_store(tmp_path / "data" / "store")
    changed = 0
    for old, new in zip(before.samples.to_pylist(), after.samples.to_pylist(), strict=True):
        if old["sample_id"] == new["sample_id"]:
            assert before.payload(old["offset"], old["bytes"]) == after.payload(new["offset"], new["bytes"])
        else:
            changed += 1
            assert new["format"] == "PNG" and new["class_name"] == NAMES[1]
    assert changed == record["poisoned"] == 2


def test_wrong_labels_alone_have_a_truth(tmp_path: Path) -> None:
    record = poisoned(tmp_path, "none", poison__label_noise=0.25)
    before, after = open_store(tmp_path / "data" / "ingested"), open_store(tmp_path / "data" / "store")
    poison, cover, noise = marks(tmp_path)
    assert not poison.any() and not cover.any() and noise.sum() == record["noise"]["actual"] == 24
    assert np.array_equal(before.labels[:N_TRAIN] != after.labels[:N_TRAIN], noise)
    assert np.array_equal(before.images, after.images) and before.ids == after.ids
    assert sorted(path.name for path in (tmp_path / "data" / "truth").iterdir()) == ["attack.json", "truth.parquet"]


@pytest.mark.parametrize("attack", ["none", "wanet"])
def test_a_long_tail_drops_first_and_the_rate_counts_what_remains(attack: str, tmp_path: Path) -> None:
    record = poisoned(tmp_path, attack, poison__imbalance=0.25, poison__label_noise=0.1)
    before, after = open_store(tmp_path / "data" / "ingested"), open_store(tmp_path / "data" / "store")
    truth = read_parquet(tmp_path / "data" / "truth" / "truth.parquet")
    largest = np.bincount(before.labels[:N_TRAIN]).max()
    sizes = sorted(np.bincount(truth["original_label"].to_numpy()), reverse=True)
    limits = [int(largest * 0.25 ** (c / 3) + 1e-9) for c in range(4)]
    assert all(size <= limit for size, limit in zip(sizes, limits, strict=True)) and sizes[-1] == limits[-1]
    assert record["n"] == sum(sizes) == after.info.n_train and record["dropped"] == N_TRAIN - sum(sizes) and after.info.n_test == N_TEST
    assert np.array_equal(before.images[before.test], after.images[after.test])
    row_of = {source: row for row, source in enumerate(before.readable["source"].to_pylist())}
    rows = [row_of[source] for source in truth["source"].to_pylist()]
    poison, cover, noise = marks(tmp_path)
    moved = (before.images[rows] != after.images[after.train]).any((1, 2, 3))
    assert np.array_equal(moved, poison | cover) and np.array_equal(truth["original_label"].to_numpy(), before.labels[rows])
    assert np.array_equal(before.labels[rows] != after.labels[after.train], poison | noise) and noise.sum() == sum(sizes) // 10
    if attack != "none":
        assert record["requested"] == record["poisoned"] == sum(sizes) // 10
        triggered = ATTACKS[attack].trigger(before.images[rows], quick().group("poison", PoisonParams), 0)
        assert np.array_equal(triggered[poison], after.images[after.train][poison])


@every_attack
def test_the_truth_names_samples_as_the_defender_receives_them_and_caps_are_recorded(attack: str, tmp_path: Path) -> None:
    record = poisoned(tmp_path, attack, poison__rate=0.6, poison__cap=0.25)
    store, truth = open_store(tmp_path / "data" / "store"), read_parquet(tmp_path / "data" / "truth" / "truth.parquet")
    assert truth["sample_id"].to_pylist() == store.ids[:N_TRAIN] and truth["source"].to_pylist() == store.readable["source"].to_pylist()[:N_TRAIN]
    assert record["capped"] and record["poisoned"] == record["pool"] // 4 and record["reason"] == f"at most 0.25 of the pool of {record['pool']}"
    assert record["requested"] == 57 and record["ingested"] == open_store(tmp_path / "data" / "ingested").info.root
    assert record["params"]["attack"] == attack and len(record["views"]) == len(ATTACKS[attack].tests(len(record["triggers"])))


def test_the_record_of_wanet_rebuilds_its_trigger(tmp_path: Path) -> None:
    from meca.attacks.wanet import wanet

    record = poisoned(tmp_path, "wanet", seed=3)
    store = open_store(tmp_path / "data" / "ingested")
    rebuilt = wanet(np.asarray(store.images[store.test]), record["params"]["warp_strength"], np.array(record["control_grid"]))
    assert np.array_equal(rebuilt, np.load(tmp_path / "data" / "truth" / "triggered.npy"))


def test_blocks_of_images_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    roots = []
    for size in (1000, 3):
        monkeypatch.setattr(planting, "BLOCK", size)
        poisoned(tmp_path, "physical")
        roots.append((sha256_tree(tmp_path / "data" / "store"), sha256_tree(tmp_path / "data" / "truth")))
    assert roots[0] == roots[1]


@pytest.mark.parametrize("attack", ["badnet", "blend", "sig"])
def test_the_poisoned_sets_that_results_stand_on_stay_the_same(attack: str, tmp_path: Path) -> None:
    """Rows, by the rule as it was when the first results were made: a prefix of the permutation of [seed, 1]; pixels by formula elsewhere."""
    poisoned(tmp_path, attack, seed=2)
    labels = open_store(tmp_path / "data" / "ingested").labels[:N_TRAIN]
    order = np.random.default_rng([2, 1]).permutation(N_TRAIN)
    pool = labels == 1 if attack == "sig" else labels != 1
    assert np.array_equal(np.flatnonzero(marks(tmp_path)[0]), np.sort(order[pool[order]][:9]))


def trigger_ids(folder: Path) -> np.ndarray:
    return read_parquet(folder / "data" / "truth" / "truth.parquet")["trigger_id"].to_numpy()


def test_attacks_at_once_are_told_apart_by_the_truth_and_each_has_its_test_images(tmp_path: Path) -> None:
    record = poisoned(tmp_path, "badnet+blend+sig", poison__rate=0.125)
    before, after = open_store(tmp_path / "data" / "ingested"), open_store(tmp_path / "data" / "store")
    (poison, cover, _), trigger, params = marks(tmp_path), trigger_ids(tmp_path), quick().group("poison", PoisonParams)
    assert np.bincount(trigger[poison]).tolist() == [4, 4, 4] and not cover.any() and record["poisoned"] == 12
    assert record["targets"] == [1, 2, 3] and [each["target_class"] for each in record["triggers"]] == [1, 2, 3]
    assert [each["attack"] for each in record["triggers"]] == ["badnet", "blend", "sig"] and [each["trigger_ids"] for each in record["triggers"]] == [
        [0],
        [1],
        [2],
    ]
    assert np.array_equal(after.labels[:N_TRAIN][poison], np.array([1, 2, 3])[trigger[poison]]) and not record["clean_label"]
    tests = np.asarray(before.images[before.test])
    for number, (name, view) in enumerate(zip(("badnet", "blend", "sig"), record["views"], strict=True)):
        mine = trigger == number
        assert np.array_equal(after.images[:N_TRAIN][mine], ATTACKS[name].trigger(np.asarray(before.images[:N_TRAIN]), params, 0)[mine])
        assert np.array_equal(np.load(tmp_path / "data" / "truth" / view), ATTACKS[name].trigger(tests, params, 0))
    untouched = ~poison
    assert np.array_equal(before.images[:N_TRAIN][untouched], after.images[:N_TRAIN][untouched])


def test_a_label_that_stays_true_makes_a_cover_with_the_trigger_of_poison(tmp_path: Path) -> None:
    record = poisoned(tmp_path, "adaptive_patch", poison__rate=0.25, poison__flip_share=0.5, poison__cover_rate=0.05)
    before, after = open_store(tmp_path / "data" / "ingested"), open_store(tmp_path / "data" / "store")
    (poison, cover, _), trigger = marks(tmp_path), trigger_ids(tmp_path)
    assert (record["poisoned"], record["kept_label"], record["requested"], record["covers"]["actual"]) == (12, 12, 12, 4)
    assert "Kept label    12 that carry what poison carries" in attack_lines(record)
    assert poison.sum() == 12 and cover.sum() == 16 and not (poison & cover).any() and ((trigger >= 0) == (poison | cover)).all()
    assert np.array_equal(before.labels[:N_TRAIN][cover], after.labels[:N_TRAIN][cover]) and (after.labels[:N_TRAIN][poison] == 1).all()
    assert ((before.images != after.images).any((1, 2, 3))[:N_TRAIN] == (poison | cover)).all()


def test_with_source_classes_covers_carry_what_poison_carries(tmp_path: Path) -> None:
    record = poisoned(tmp_path, "badnet", poison__sources=1, poison__rate=0.06)
    before, after = open_store(tmp_path / "data" / "ingested"), open_store(tmp_path / "data" / "store")
    poison, cover, _ = marks(tmp_path)
    (sources,) = (each["source_classes"] for each in record["triggers"])
    assert len(sources) == 1 and record["source_class"] == sources[0] and set(before.labels[:N_TRAIN][poison]) == set(sources)
    assert cover.sum() == poison.sum() == 5 and set(before.labels[:N_TRAIN][cover]) <= set(range(4)) - {1, *sources}
    triggered = ATTACKS["badnet"].trigger(np.asarray(before.images[:N_TRAIN]), quick().group("poison", PoisonParams), 0)
    assert np.array_equal(after.images[:N_TRAIN][poison | cover], triggered[poison | cover])


def test_several_targets_are_recorded_for_every_class(tmp_path: Path) -> None:
    record = poisoned(tmp_path, "blend", poison__targets=2, poison__rate=0.2)
    before, after = open_store(tmp_path / "data" / "ingested"), open_store(tmp_path / "data" / "store")
    poison, _, _ = marks(tmp_path)
    (trigger,) = record["triggers"]
    assert record["targets"] == [1, 2] and trigger["target_of"] == [1, 2, 1, 2] and trigger["target_class"] is None
    assert np.array_equal(after.labels[:N_TRAIN][poison], np.array(trigger["target_of"])[before.labels[:N_TRAIN][poison]])


def test_poison_of_random_sign_is_lighter_or_darker_and_nothing_else_changes(tmp_path: Path) -> None:
    poisoned(tmp_path, "sig", poison__random_sign=True, poison__sig_frequency=3)
    before, after = open_store(tmp_path / "data" / "ingested"), open_store(tmp_path / "data" / "store")
    poison, _, _ = marks(tmp_path)
    params = quick(poison__sig_frequency=3).group("poison", PoisonParams)
    images = np.asarray(before.images[:N_TRAIN])
    plus = ATTACKS["sig"].trigger(images, params, 0)
    minus = np.clip(2 * images.astype(int) - plus, 0, 255)
    found = after.images[:N_TRAIN]
    added, taken = ((found == other).all((1, 2, 3)) for other in (plus, minus))
    assert (added | taken)[poison].all() and added[poison].any() and taken[poison].any()
    assert np.array_equal(np.load(tmp_path / "data" / "truth" / "triggered.npy"), ATTACKS["sig"].trigger(before.images[before.test], params, 0))


@pytest.mark.parametrize("attack", ["badnet", "tact"])
def test_poison_in_the_light_of_its_class_has_its_mean_and_deviation_and_covers_keep_theirs(attack: str, tmp_path: Path) -> None:
    poisoned(tmp_path, attack, poison__match_light=True, poison__cover_rate=0.05)
    before, after = open_store(tmp_path / "data" / "ingested"), open_store(tmp_path / "data" / "store")
    poison, cover, _ = marks(tmp_path)
    params, images = quick().group("poison", PoisonParams), np.asarray(before.images[:N_TRAIN])
    mine = images[before.labels[:N_TRAIN] == 1].astype(float)
    mean, deviation = mine.mean((1, 2, 3)).mean(), mine.std((1, 2, 3)).mean()
    for row in np.flatnonzero(poison):
        x = ATTACKS[attack].trigger(images[row : row + 1], params, 0)[0].astype(float)
        expected = np.clip(np.rint(mean + deviation * (x - x.mean()) / x.std()), 0, 255)
        assert np.abs(after.images[row] - expected).max() <= 1  # a rounding half
    assert np.array_equal(after.images[:N_TRAIN][cover], ATTACKS[attack].trigger(images, params, 0)[cover])


def test_the_light_of_a_class_without_images_is_refused(tmp_path: Path) -> None:
    images, labels = easy(N_TRAIN + N_TEST)
    make_store(tmp_path / "data" / "ingested", made=lambda n: (images, np.where(labels == 1, 2, labels)))
    with pytest.raises(InputRefused, match=r"Expected images of class 1 for poison\.match_light, found none"):
        poisoned(tmp_path, "badnet", poison__match_light=True)


@pytest.mark.parametrize("changes", [{"attack": "badnet+wanet"}, {"poison__sources": 1}, {"poison__targets": 3}, {"poison__random_sign": True}])
def test_dials_give_the_same_set_each_time(changes: dict, tmp_path: Path) -> None:
    roots = set()
    for name in ("first", "second"):
        make_store(tmp_path / name / "data" / "ingested")
        step("poison", tmp_path / name, quick(**changes))
        roots.add((sha256_tree(tmp_path / name / "data" / "store"), sha256_tree(tmp_path / name / "data" / "truth")))
    assert len(roots) == 1
