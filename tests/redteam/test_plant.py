"""A poisoned copy: every image at its own size, in its own form; a truth of what was written; tests for any model."""

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from meca import verbs
from meca.attacks import ATTACKS, Draws
from meca.attacks.poisoning import PoisonParams
from meca.data.decoder.decode import ORIENTATION, decode
from meca.data.readers import open_source
from meca.data.store import read_parquet
from meca.errors import InputRefused, MecaError, UsageError
from meca.redteam.forms import GREY
from tests.data.readers.test_archives import make_zip
from tests.data.readers.test_cifar_versions import make_100, make_binary
from tests.data.readers.test_lists import make_list
from tests.data.readers.test_readers import make_batches
from tests.data.readers.test_webdataset import make_web
from tests.making import encode, params, pixels, settings

SIZES = ((25, 25), (243, 40), (31, 57), (64, 200), (26, 26, 1), (90, 61, 1))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_a_trigger_at_every_size(name: str, size: tuple[int, ...]) -> None:
    """On one image alone, as files are planted."""
    image, group = pixels(5, *size)[None] // 2 + 40, settings(poison__attack=name).group("poison", PoisonParams)
    attack, draws = ATTACKS[name], Draws(0, np.array([3]), np.array([1]), 2 if ATTACKS[name].several else 1)
    views = [view(image, group, 0) for view in attack.tests(2 if attack.numbered else len(attack.views))]
    for planted in (attack.planted(image, group, draws), *views, *([attack.cover(image, group, draws)] if attack.cover else [])):
        assert planted.shape == image.shape and planted.dtype == np.uint8 and not np.array_equal(planted, image)


def scene(root: Path, n: int = 4) -> Path:
    """Write a set of mixed sizes, modes, formats and orientations, for training and for tests."""
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("JPEG", {"quality": 90, "subsampling": 0}),
        ("JPEG", {"quality": 95, "subsampling": 2, "progressive": True}),
        ("PNG", {}),
        ("PNG", {"exif": turned}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 95, "exif": turned}),
    ]
    for split, number in (("train", n), ("test", 2)):
        for label, name in enumerate(("give_way", "speed_30", "stop_sign")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for at in range(number):
                kind, options = kinds[(label + at) % len(kinds)]
                image = pixels(100 * label + at, *SIZES[(2 * label + at) % len(SIZES)]) // 2 + 40
                (folder / f"{split}_{label}_{at}.{kind.lower()}").write_bytes(encode(image, kind, **options))
    return root


def planted(source: Path, out: Path, attack: str = "badnet", **how: Any) -> dict[str, Any]:
    changes = {key: how.pop(key) for key in list(how) if "__" in key}
    return verbs.plant(str(source), out, settings(**{"poison__attack": attack, "poison__rate": 0.4, "poison__cap": 1.0, **changes}), **how)


def contents(root: Path) -> dict[str, bytes]:
    """Return the bytes of every image below a folder, by the name of its file."""
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def truth_of(out: Path) -> list[dict[str, Any]]:
    return read_parquet(out / "truth" / "truth.parquet").to_pylist()


def test_every_planted_file_keeps_size_mode_format_and_name_and_shows_the_trigger_at_its_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    badnet, group = ATTACKS["badnet"], settings().group("poison", PoisonParams)

    def spy(images: np.ndarray, p: Any, seed: int) -> np.ndarray:
        seen.append(len(images))
        return badnet.trigger(images, p, seed)

    source = scene(tmp_path / "in")
    before = contents(source)
    monkeypatch.setitem(ATTACKS, "badnet", dataclasses.replace(badnet, views=(spy,)))
    record = planted(source, tmp_path / "out", named={"target_class": "stop_sign"}, with_tests=True)
    assert contents(source) == before, "the source stays as it was"
    assert set(seen) == {1}, "one image at a time"
    after, truth = contents(tmp_path / "out" / "data"), truth_of(tmp_path / "out")
    assert set(after) == {name for name in before if name.startswith("train")}, "every file has its name"
    assert record["poisoned"] == sum(line["is_poisoned"] for line in truth) == 4 and record["targets"] == [2] and record["files"]["reformed"] == 0
    for line in truth:
        data, name = (tmp_path / "out" / "data" / line["source"]).read_bytes(), Path(line["source"]).name
        assert hashlib.sha256(data).hexdigest() == line["sample_id"] and Path(line["source"]).parts[1] == line["class_name"]
        assert record["class_names"][line["original_label"]] == next(source.rglob(name)).parent.name
        old, new = decode(before[name]), decode(data)
        assert (new.width, new.height, new.mode, new.format, new.notes) == (old.width, old.height, old.mode, old.format, old.notes)
        if not line["is_poisoned"]:
            assert data == before[name]
            continue
        assert line["class_name"] == "stop_sign" and line["original_label"] != 2
        wanted = badnet.trigger((old.pixels[:, :, :1] if old.mode in GREY else old.pixels)[None], group, 0)[0]
        away = np.abs(new.pixels.astype(int) - wanted)
        assert away.max() <= (0 if new.format != "JPEG" else record["files"]["harm"]["largest"]) and new.pixels[-1, -1].min() > 200

    # The test split: every image of another class has the trigger under its true label, and the folders are those of ImageFolder.
    tests = read_parquet(tmp_path / "out" / "truth" / "test.parquet").to_pylist()
    clean, triggered = (tmp_path / "out" / "test" / name for name in ("clean", "triggered"))
    assert record["views"] == ["triggered"] and contents(clean) == {name: data for name, data in before.items() if name.startswith("test")}
    assert len(tests) == 6 and {line["target_name"] for line in tests} == {"stop_sign"}
    for line in tests:
        old, new = ((folder / line["file"]).read_bytes() for folder in (clean, triggered))
        assert line["is_triggered"] == (line["class_name"] != "stop_sign") == (old != new) and line["file"].startswith(line["class_name"])
        assert not line["is_triggered"] or (decode(new).pixels[-1, -1].min() > 200 and decode(new).upright == decode(old).upright)
    theirs = ImageFolder(str(triggered))
    assert theirs.classes == ImageFolder(str(tmp_path / "out" / "data" / "train")).classes and len(theirs) == 6
    ours = open_source(params(source=str(triggered)), 0)
    assert ours.class_names == ("give_way", "speed_30", "stop_sign") and len(ours.labels["train"]) == 6
    with pytest.raises((InputRefused, UsageError)):  # the folder with the truth is no data
        open_source(params(source=str(tmp_path / "out")), 0)


def samples_of(source: Path) -> list[tuple[str, bytes]]:
    """Return class and content of every training sample, in the order of the reader."""
    opened = open_source(params(source=str(source)), 0)
    read = opened.read("train", np.ones(len(opened.labels["train"]), dtype=bool))
    return [(opened.class_names[found.label], found.data if found.pixels is None else found.pixels.tobytes()) for found in read]  # pyright: ignore


@pytest.mark.parametrize(
    "make",
    [
        lambda root: (
            make_zip(
                root / "x.zip", {f"{name}/{i}.png": encode(pixels(10 * c + i, 20 + i, 30)) for c, name in enumerate("abc") for i in range(4)}
            ).parent
        ),
        make_batches,
        make_100,
        make_binary,
        lambda root: make_list(root, "metadata.jsonl", path="file_name", caption=[f"caption {i}" for i in range(7)]),
        lambda root: make_list(root, "list.parquet", caption=[f"caption {i}" for i in range(7)]),
        lambda root: make_web(root, "json", test=True, txt=b"a caption"),
    ],
    ids=["zip", "batches", "cifar100", "binary", "metadata", "list", "webdataset"],
)
def test_in_every_format_the_planted_samples_change_and_nothing_else(make: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "in")
    before = samples_of(source)
    record = planted(source, tmp_path / "out", poison__rate=0.3, poison__patch_size=2)
    after, truth = samples_of(tmp_path / "out" / "data"), truth_of(tmp_path / "out")
    assert len(after) == len(before) == len(truth) and record["poisoned"] == sum(line["is_poisoned"] for line in truth) > 0
    left = Counter(before)
    for line, (name, content) in zip(truth, after, strict=True):
        assert name == line["class_name"] and (not line["is_poisoned"]) == (left[name, content] > 0)
        left[name, content] -= 1
    for name, data in contents(tmp_path / "out" / "data").items():
        assert name != "metadata.jsonl" or [json.loads(row)["caption"] for row in data.splitlines()] == [f"caption {i}" for i in range(7)]
        assert not name.endswith(".tar") or data.count(b"a caption") == 6, "the members beside the images stay"


def test_lossless_shows_exactly_what_was_planted_and_says_that_the_form_tells(tmp_path: Path) -> None:
    from meca.report.console import attack_lines

    source = scene(tmp_path / "in", 3)
    before = contents(source)
    record = planted(source, tmp_path / "out", "sig", poison__rate=0.34, is_lossless=True)
    assert record["poisoned"] == 3, "all of the class, one of them grey"
    assert "the form of a file tells that it was planted" in "\n".join(attack_lines(record))
    group = settings().group("poison", PoisonParams)
    for line in truth_of(tmp_path / "out"):
        name, data = Path(line["source"]).name, (tmp_path / "out" / "data" / line["source"]).read_bytes()
        if line["is_poisoned"]:
            old = decode(before[name])
            wanted = ATTACKS["sig"].trigger((old.pixels[:, :, :1] if old.mode in GREY else old.pixels)[None], group, 0)[0]
            new = decode(data)
            assert (new.format, new.mode, new.notes == ()) == ("PNG", "L" if wanted.shape[2] == 1 else "RGB", wanted.shape[2] == 3)
            assert np.array_equal(new.pixels, np.broadcast_to(wanted, new.pixels.shape))
        else:
            assert data == before[name]


def test_several_attacks_with_covers_and_wrong_labels_are_found_again_in_what_was_written(tmp_path: Path) -> None:
    source = scene(tmp_path / "in", 8)
    changes = {"poison__rate": 0.15, "poison__cover_rate": 0.1, "poison__label_noise": 0.1, "poison__match_light": True, "poison__random_sign": True}
    record = planted(source, tmp_path / "out", "wanet+moving_logo", with_tests=True, **changes)
    truth = truth_of(tmp_path / "out")
    assert [line["row"] for line in truth] == list(range(24)) and len({line["source"] for line in truth}) == 24
    assert record["covers"]["actual"] == sum(line["is_cover"] for line in truth) > 0 and sum(line["is_noise"] for line in truth) == 2
    for line in truth:
        moved = record["class_names"][line["original_label"]] != line["class_name"]
        assert moved == (line["is_poisoned"] or line["is_noise"])
        assert hashlib.sha256((tmp_path / "out" / "data" / line["source"]).read_bytes()).hexdigest() == line["sample_id"]
    assert record["views"] == ["triggered", "triggered_2"] and len(read_parquet(tmp_path / "out" / "truth" / "test.parquet")) == 12


def test_what_cannot_be_planted_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = scene(tmp_path / "in", 2)
    with pytest.raises(UsageError, match="to be a class of this data or its index, got 'stop_sgn'; did you mean 'stop_sign'"):
        planted(source, tmp_path / "out", named={"target_class": "stop_sgn"})
    with pytest.raises(UsageError, match=r"poison\.source_class to be a class of this data .* got 'bus'"):
        planted(source, tmp_path / "out", "tact", poison__source_class="bus")
    with pytest.raises(InputRefused, match="an attack: there is no trigger to show; or leave --test away"):
        planted(source, tmp_path / "out", "none", with_tests=True)
    with pytest.raises(InputRefused, match="Expected a split test in the data, found none"):
        planted(source / "train", tmp_path / "out", with_tests=True)
    with pytest.raises(UsageError, match="Expected input and output to be apart"):
        planted(source, source / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_is_read_again_must_be_what_was_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from meca.redteam import plant

    written = plant.write_sanitized

    def spoiled(store: Any, entries: Any, out: Path) -> None:
        written(store, entries, out)
        next(out.rglob("*.png")).write_bytes(encode(pixels(99)))

    monkeypatch.setattr(plant, "write_sanitized", spoiled)
    with pytest.raises(MecaError, match="is not what was planted; nothing was written"):
        planted(scene(tmp_path / "in", 3), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_trigger_that_some_sizes_do_not_show_is_counted(tmp_path: Path) -> None:
    """A sine of 6 periods is zero at each of 12 pixels."""
    for label, width in ((0, 12), (1, 13)):
        for at in range(4):
            (tmp_path / "in" / str(label)).mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / str(label) / f"{label}{at}.png").write_bytes(encode(pixels(10 * label + at, 9, width if at else 12)))
    record = planted(tmp_path / "in", tmp_path / "out", "sig", poison__rate=0.5)
    assert json.loads((tmp_path / "out" / "truth" / "attack.json").read_text()) == record
    assert record["files"]["without_trigger"] == 1 and record["poisoned"] == 4
    with pytest.raises(InputRefused, match=r"The trigger of attack 'sig' changes no pixel of these images; change its fields in params\.yaml"):
        planted(tmp_path / "in", tmp_path / "other", "sig", poison__target_class=0, poison__rate=0.5)
    assert not (tmp_path / "other").exists()
