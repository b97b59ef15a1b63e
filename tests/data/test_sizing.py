"""At which size images are stored: chosen from the data within a budget of pixels, the same everywhere, and told with its reason."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from meca.data.ingest import read_source
from meca.data.judged import of_store
from meca.data.readers import IngestParams
from meca.data.sizing import FEWEST, LADDER, SAMPLED, choose, drawn
from meca.data.store import open_store
from meca.params import PACKAGED, read_params
from tests.making import encode, ingest, params, pixels, real_data

BUDGET = 20_000_000


def of(sides: Sequence[int], samples: int, budget: int = BUDGET) -> tuple[int, str]:
    """Return what is chosen for square images, and why."""
    sizes = np.array(sides, np.int64)
    found = choose(sizes, sizes, samples, budget)
    assert found.side is not None and found.side[0] == found.side[1] and found.chosen == "auto"
    return found.side[0], found.reason


@pytest.mark.parametrize(
    ("sides", "samples", "side", "reason"),
    [
        ([8], 1797, 32, "The median of the longer sides is 8 pixels, and 32 is the smallest size for that."),
        ([28], 60_000, 32, "The median of the longer sides is 28 pixels, and 32 is the smallest size for that."),
        ([32], 50_000, 32, "The median of the longer sides is 32 pixels, and 32 is the smallest size for that."),
        ([33], 600, 48, "The median of the longer sides is 33 pixels, and 48 is the smallest size for that."),
        ([16, 16, 100], 600, 32, "The median of the longer sides is 16 pixels, and 32 is the smallest size for that."),
        ([224], 600, 160, "The median of the longer sides is 224 pixels; ingest.budget (20,000,000 pixels) allows 160 for 600 training images."),
        ([224], 2000, 96, "The median of the longer sides is 224 pixels; ingest.budget (20,000,000 pixels) allows 96 for 2,000 training images."),
        (
            [64], 100_000, 32,
            "The median of the longer sides is 64 pixels; 32 is the smallest size, although ingest.budget (20,000,000 pixels) allows less for "
            "100,000 training images.",
        ),
        ([], 12, 32, "No image can be read, so 32 is as good as any size."),
    ],
)  # fmt: skip
def test_the_size_is_that_of_the_images_as_far_as_the_budget_goes(sides: list[int], samples: int, side: int, reason: str) -> None:
    assert of(sides, samples) == (side, reason)
    assert read_params(PACKAGED).group("ingest", IngestParams).budget == BUDGET


def test_beyond_the_ladder_its_end_is_chosen() -> None:
    assert of([4000], 10, 10**12) == (512, "The median of the longer sides is 4000 pixels; 512 is the largest size that auto chooses.")


@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), min_size=1, max_size=50), st.integers(1, 10**6), st.integers(1, 10**9))
def test_no_choice_is_beyond_the_budget_or_the_images(sizes: list[tuple[int, int]], samples: int, budget: int) -> None:
    heights, widths = np.array(sizes, np.int64).T
    side = (choose(heights, widths, samples, budget).side or (0, 0))[0]
    longer = np.maximum(heights, widths)
    assert side in LADDER
    assert side == LADDER[0] or max(samples, FEWEST) * side**2 <= budget
    smaller = [rung for rung in LADDER if rung < side]
    assert not smaller or (longer > smaller[-1]).mean() >= 0.5, "a smaller size would have done for most"
    assert choose(widths, heights, samples, budget).side == (side, side), "turned images are as large"


def test_of_many_images_some_are_looked_at_and_which_is_drawn_with_the_seed() -> None:
    assert drawn(SAMPLED, 0).tolist() == list(range(SAMPLED))
    found = drawn(10 * SAMPLED, 3)
    assert len(set(found.tolist())) == SAMPLED and (np.diff(found) > 0).all() and found.max() > 9 * SAMPLED
    assert np.array_equal(found, drawn(10 * SAMPLED, 3)) and not np.array_equal(found, drawn(10 * SAMPLED, 4))


def write(root: Path, sizes: Sequence[tuple[int, int]], orientation: int = 1) -> Path:
    """Write two classes of images, one of each height and width in each class, and one that cannot be read."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for c, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        (root / name / "no.png").write_bytes(b"no image")
        for i, (height, width) in enumerate(sizes):
            (root / name / f"{i}.png").write_bytes(encode(pixels(10 * c + i, height, width), exif=exif))
    return root


def test_the_store_says_what_was_chosen_and_why(tmp_path: Path) -> None:
    root = write(tmp_path / "in", [(50, 20)] * 3 + [(90, 10)])
    store = ingest(root, tmp_path / "a", size="auto")
    assert store.images.shape[1:] == (64, 64, 3), "half of the images are at most 50 pixels on their longer side"
    reason = "The median of the longer sides is 50 pixels, and 64 is the smallest size for that."
    assert store.info.source["size"] == {"chosen": "auto", "reason": reason, "fit": "squash"}
    assert of_store(store).items() >= {"chosen": "auto", "reason": reason, "fit": "squash", "images_reduced": 2, "height": 64}.items()
    for size, chosen, said in (
        (16, "given", "ingest.size is 16."),
        ("24x40", "given", "ingest.size is 24x40."),
        (0, "first", "ingest.size is 0, which"),
    ):
        record = ingest(root, tmp_path / str(size), size=size).info.source["size"]
        assert record["chosen"] == chosen and record["reason"].startswith(said)


def test_what_was_chosen_gives_the_bytes_that_giving_it_does(tmp_path: Path) -> None:
    made = {name: ingest(name, tmp_path / f"{name}-auto", size="auto", train_limit=20, test_limit=10) for name in ("shapes", "digits")}
    made["files"] = ingest(write(tmp_path / "in", [(40, 50), (20, 31)]), tmp_path / "files-auto", size="auto")
    for name, store in made.items():
        source, limits = (tmp_path / "in", {}) if name == "files" else (name, {"train_limit": 20, "test_limit": 10})
        given = ingest(source, tmp_path / name, size=48 if name == "files" else 32, **limits)
        assert given.info.root == store.info.root and np.array_equal(given.images, store.images), name


def test_images_are_measured_as_they_are_seen(tmp_path: Path) -> None:
    """One that lies on its side has its longer side all the same; with pad it gets the borders of what is seen."""
    store = ingest(write(tmp_path / "in", [(10, 40)] * 2, orientation=6), tmp_path / "store", size="auto", fit="pad")
    assert store.images.shape[1:] == (48, 48, 3)
    assert (store.images[:, :, :18] == 128).all() and (store.images[:, :, 30:] == 128).all() and (store.images[:, :, 18:30] != 128).any()


def test_test_images_and_those_left_out_have_no_say(tmp_path: Path) -> None:
    write(tmp_path / "in" / "train", [(20, 20)] * 3)
    write(tmp_path / "in" / "test", [(300, 300)] * 3)
    assert ingest(tmp_path / "in", tmp_path / "store", size="auto").info.height == 32
    chosen = params(source=str(write(tmp_path / "large", [(100, 100)] * 2)), size="auto", budget=FEWEST * 48 * 48)
    assert read_source(chosen, 0, tmp_path / "bounded").height == 48
    assert open_store(tmp_path / "bounded").info.source["size"]["reason"].endswith("(1,152,000 pixels) allows 48 for 6 training images.")


@pytest.mark.parametrize(("name", "side"), [("imagenette-sample", 160), ("imagenette", 96)])
def test_photographs_are_stored_as_large_as_the_budget_goes(name: str, side: int, tmp_path: Path) -> None:
    store = ingest(real_data(name), tmp_path / "store", size="auto", test_limit=20)
    assert store.images.shape[1:] == (side, side, 3)
    assert of_store(store)["largest"] == {"height": 224, "width": 224}
