"""Images that stay in their file: the same pixels, the same bits of a training, and memory that does not grow with the set."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from meca.data.store import write_array
from meca.method.content import look_without
from meca.method.flips import light_of, mean_in_light, probes_of
from meca.method.leak import case, case_flip_rate
from meca.method.scoring import patch_masks, score
from meca.method.transfer import trigger_estimate
from meca.models import Architecture, Description, build
from meca.stages.tensors import hold
from meca.training.device import Device
from meca.training.engine import Data, Session, features, predict
from meca.training.images import Images, Streamed, batches, chosen, let_go, mapped, mean_image
from meca.training.trainer import Recipe
from tests.method.tiny import CLASSES, samples

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(2, 0, 16, 0.05, 0.9, 5e-4, 0.0, "shift_flip", 2)
N = 100


def both(tmp_path: Path, images: Tensor) -> tuple[Tensor, Streamed]:
    """Return a set as a tensor, and the same in its file."""
    write_array(tmp_path / "images.npy", images.numpy())
    return images, mapped(np.load(tmp_path / "images.npy", mmap_mode="r"), "cpu")


def network(size: int = 8) -> torch.nn.Module:
    small = Description(Architecture("compact", "s2d", 4), tuple("abcd"), size, size, 3, (0.5,) * 3, (0.25,) * 3)
    return build(small, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Streamed]:
    return both(tmp_path_factory.mktemp("pair"), samples(N)[0])


@given(rows=st.lists(st.integers(0, N - 1), max_size=40), size=st.integers(1, 150), bounds=st.tuples(st.integers(-9, 120), st.integers(-9, 120)))
def test_any_choice_of_rows_is_what_a_tensor_gives(pair: tuple[Tensor, Streamed], rows: list[int], size: int, bounds: tuple[int, int]) -> None:
    tensor, streamed = pair
    some, mask = torch.tensor(rows, dtype=torch.int64), torch.zeros(N, dtype=torch.bool)
    mask[some] = True
    for which in (some, mask, slice(*bounds)):
        assert torch.equal(streamed[which], tensor[which]), which
        assert torch.equal(streamed.chosen(which)[:], tensor[which])
    assert [part.tolist() for part in streamed.chosen(some).split(size)] == [part.tolist() for part in tensor[some].split(size)]
    parts = some.split(size)
    assert all(torch.equal(a, b) for a, b in zip(batches(streamed, parts), batches(tensor, parts), strict=True))
    assert streamed.shape == tensor.shape and len(chosen(streamed, mask)) == int(mask.sum())


def test_a_row_that_there_is_not_is_refused(pair: tuple[Tensor, Streamed]) -> None:
    for row in (-1, N):
        with pytest.raises(IndexError, match=rf"Expected rows in 0..99, got {row}..{row}"):
            pair[1][torch.tensor([row])]


def test_what_fits_is_a_tensor_and_what_does_not_is_streamed(tmp_path: Path) -> None:
    tensor, _ = both(tmp_path, samples(10)[0])
    there = np.load(tmp_path / "images.npy", mmap_mode="r")
    fits = hold(there, Device("cpu", resident=tensor.numel()))
    assert isinstance(fits, Tensor) and torch.equal(fits, tensor)
    for device, sets in ((Device("cpu", resident=tensor.numel() - 1), 1), (Device("cpu", resident=2 * tensor.numel()), 3)):
        assert isinstance(found := hold(there, device, sets), Streamed) and torch.equal(found[:], tensor)


def test_a_reader_that_fails_or_is_left_ends_with_its_user(pair: tuple[Tensor, Streamed]) -> None:
    left = pair[1].split(7)
    next(left)
    left.close()  # pyright: ignore[reportAttributeAccessIssue]

    def fill(places: Tensor, out: Tensor) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        list(dataclasses.replace(pair[1], fill=fill).split(7))


def trained(images: Images, labels: Tensor, **changes: Any) -> dict[str, Tensor]:
    keep = torch.arange(N) % 5 != 0
    data = Data(images, labels, torch.linspace(-0.1, 1, N))
    model = Session(0, Device("cpu")).train(network(), data, dataclasses.replace(RECIPE, **changes), "x", keep)
    return model.state_dict()


@pytest.mark.parametrize("augment", ["none", "shift", "shift_flip"])
def test_a_training_has_the_same_bits(pair: tuple[Tensor, Streamed], augment: str) -> None:
    labels = samples(N)[1]
    one, other = (trained(images, labels, augment=augment) for images in pair)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_whatever_is_asked_of_a_set_has_the_same_bits(pair: tuple[Tensor, Streamed]) -> None:
    labels, model = samples(N)[1], network().eval()
    flagged = torch.arange(N) % 9 == 0
    given, rows = labels.clone(), [np.flatnonzero(labels.numpy() == c) for c in range(CLASSES)]
    given[flagged] = 1

    def asked(images: Images) -> list[Tensor]:
        light = light_of(images)
        probes = probes_of(model, images, labels.numpy(), rows, 5, 1)
        content = look_without(Session(0, Device("cpu")), Data(images, labels), DESCRIPTION, RECIPE, 2)
        leak = case(Data(images, given), flagged, labels, 1, 0, 30)
        assert leak is not None and isinstance(leak.pasted, type(images))
        return [
            predict(model, images), predict(model, chosen(images, flagged), 7), features(model, images, 33),
            *score(model, images, labels, patch_masks(2, 8, 8, 2, 0.25, torch.Generator().manual_seed(0)), 0.01, 32),
            light.scale, light.shift, mean_in_light(images, light, rows[0], torch.ones(2, len(rows[0]))),
            probes.before, probes.take(probes.sources == 2).before, probes.images[:],
            trigger_estimate(images, flagged, ~flagged, labels, CLASSES), leak.images[:], leak.pasted[:], leak.control[:],
            torch.tensor([case_flip_rate(model, leak, size) for size in (1, 7, 256)]),
            torch.from_numpy(content.typical), torch.from_numpy(content.seen),
        ]  # fmt: skip

    for number, (one, other) in enumerate(zip(*(asked(images) for images in pair), strict=True)):
        assert torch.equal(one, other), number


DESCRIPTION = Description(Architecture("compact", "s2d", 4), tuple("abcd"), 8, 8, 3, (0.5,) * 3, (0.25,) * 3)


def test_a_mean_of_integers_is_that_of_torch_and_depends_on_no_block(pair: tuple[Tensor, Streamed], monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (torch.arange(N) % 3 == 0, torch.arange(N) == 7, torch.ones(N, dtype=torch.bool)):
        for summed in (1, 1000, 1 << 22):
            monkeypatch.setattr("meca.training.images.SUMMED", summed)
            for images in pair:
                assert torch.equal(mean_image(images, rows), pair[0][rows].float().mean(0))


def test_pages_that_are_let_go_are_read_again(pair: tuple[Tensor, Streamed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meca.training.images.HELD", 0)
    for _ in range(3):
        assert torch.equal(torch.cat([part.clone() for part in pair[1].split(9)]), pair[0])
    let_go(pair[0].numpy())  # no map: nothing happens


GROWTH = """
import sys
from pathlib import Path
import numpy as np, torch
import meca.training.images
from meca.method.flips import light_of, mean_in_light
from meca.method.scoring import patch_masks, score
from meca.training.device import Device, prepare
from meca.training.engine import Data, Session, features, predict
from meca.training.images import chosen, mean_image
from meca.training.trainer import Recipe
from meca.stages.tensors import hold
device = prepare()
device = Device("cpu", resident=0)
meca.training.images.HELD = 8 << 20
model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 4))
recipe = Recipe(1, 0, 64, 0.01, 0.9, 0.0, 0.0, "shift_flip", 2)
peaks = []
def peak():
    # Not ru_maxrss: that one a child inherits from the process that started it.
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
for n in (1_300, 20_800):
    file = Path(sys.argv[1], "images.npy")
    images = np.lib.format.open_memmap(file, "w+", np.uint8, (n, 64, 64, 3))
    del images
    images, labels = hold(np.load(file, mmap_mode="r"), device), torch.arange(n) % 4
    Session(0, device).train(model, Data(images, labels), recipe, "law", torch.arange(n) % 3 > 0)
    predict(model, chosen(images, labels > 0)), features(model, images)
    score(model, images, labels, patch_masks(1, 64, 64, 2, 0.25, torch.Generator()), 0.01)
    mean_in_light(images, light_of(images), np.arange(n), torch.ones(1, n)), mean_image(images, labels > 0)
    peaks.append(peak())
images[:]
print(*peaks, peak())
"""


def test_memory_does_not_grow_with_a_set_that_is_streamed(tmp_path: Path) -> None:
    """A set of 15 MiB, one of 244 MiB, and a copy of that one, in a process of their own: its peaks in MiB."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", GROWTH, str(tmp_path)], check=True, cwd=ROOT, capture_output=True, text=True)
    small, large, copied = map(float, done.stdout.split())
    assert large - small < 100
    assert copied - large > 160, "a copy would be seen"
