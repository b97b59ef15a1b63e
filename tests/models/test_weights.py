"""Weights that somebody else trained: taken over bit for bit where they fit, and named in a sentence where they do not."""

import dataclasses
import json
import os
import pickle  # a file that the reader must refuse
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

from meca.errors import UsageError
from meca.models import Architecture, Description, NetworkParams, build, load_model, read_description, save_model
from meca.models import weights as module
from meca.models.weights import IMAGENET, look, start
from meca.training.seeds import generator
from tests.method.tiny import description, same
from tests.method.tiny import network as trained

RESNET = Architecture("resnet18", "cifar", 32)


def asked(weights: Path | str, normalize: str = "auto", name: str = "compact", stem: str = "s2d", width: int = 4) -> NetworkParams:
    return NetworkParams(name, stem, width, str(weights), normalize, "x")  # pyright: ignore[reportArgumentType]


def bare(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network under its own names, without the normalization before it."""
    return {name.removeprefix("1."): tensor for name, tensor in model.state_dict().items() if name.startswith("1.")}


def written(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    file = folder / "given.safetensors"
    file.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    return file


def ours(folder: Path, about: Description | None = None) -> Path:
    about = about or description()
    save_model(trained(network=about.network, size=about.height, classes=len(about.class_names)), about, folder)
    return folder / "model.safetensors"


def test_nothing_named_is_training_from_scratch() -> None:
    about = description()
    begun = start(about, asked(""))
    assert begun.description == about and same(begun.build(generator("a")), build(about, generator("a")))


@pytest.mark.parametrize("wide", [torch.float32, torch.float16, torch.bfloat16])
def test_a_model_of_meca_is_taken_over_with_its_normalization_whatever_was_drawn(wide: torch.dtype, tmp_path: Path) -> None:
    model, data = trained(), dataclasses.replace(description(), mean=(0.1,) * 3, std=(0.2,) * 3)
    rounded = {name: tensor.to(wide) if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    begun = start(data, asked(written(tmp_path, rounded)))
    model.load_state_dict({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in rounded.items()})
    assert same(begun.build(generator("a")), model) and same(begun.build(generator("b")), model)
    assert begun.description.weights_sha256 == module.hashlib.sha256((tmp_path / "given.safetensors").read_bytes()).hexdigest()
    save_model(begun.build(generator("a")), begun.description, tmp_path / "again")
    assert same(load_model(tmp_path / "again"), model) and read_description(tmp_path / "again") == begun.description


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvisions_own_names_are_understood_with_its_normalization(name: str, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None)
    file = written(tmp_path, {key: tensor for key, tensor in theirs.state_dict().items() if not key.endswith("num_batches_tracked")})
    about = description(Architecture(name, "imagenet", 32), 32)
    with pytest.raises(UsageError, match=r"does not say what its pixels were normalized by; set network\.normalize to imagenet"):
        start(about, asked(file, "auto", name, "imagenet"))
    begun = start(about, asked(file, "imagenet", name, "imagenet"))
    assert (begun.description.mean, begun.description.std) == IMAGENET
    model, fresh = begun.build(generator("a")), build(begun.description, generator("a"))
    head = "fc." if name.startswith("resnet") else "classifier.1."
    for key, tensor in bare(model).items():
        if key.endswith("num_batches_tracked"):
            continue
        expected = bare(fresh) if key.startswith(head) else theirs.state_dict()
        assert torch.equal(tensor, expected[key]), key


def test_a_head_for_as_many_classes_is_taken_over_and_one_for_others_is_drawn_by_the_run(tmp_path: Path) -> None:
    file = ours(tmp_path, description(classes=6))
    there, theirs = start(description(), asked(file)), load_model(tmp_path).state_dict()
    for draw in ("a", "b"):
        found, fresh = there.build(generator(draw)).state_dict(), build(description(), generator(draw)).state_dict()
        heads = [name for name in found if found[name].shape != theirs[name].shape]
        assert len(heads) == 2 and all(torch.equal(found[name], fresh[name]) for name in heads)
        assert all(torch.equal(found[name], theirs[name]) for name in found if name not in heads)
    assert same(start(description(classes=6), asked(file)).build(generator("a")), load_model(tmp_path))


@pytest.mark.parametrize(("normalize", "mean"), [("data", (0.1,) * 3), ("imagenet", IMAGENET[0]), ("auto", (0.4,) * 3)])
def test_what_pixels_are_normalized_by_is_what_was_asked_for(normalize: str, mean: tuple[float, ...], tmp_path: Path) -> None:
    data = dataclasses.replace(description(), mean=(0.1,) * 3)
    found = start(data, asked(ours(tmp_path), normalize))
    assert found.description.mean == pytest.approx(mean)
    assert found.build(generator("a")).state_dict()["0.mean"].flatten().tolist() == pytest.approx(mean)
    assert start(data, asked("", normalize)).description.mean == pytest.approx((0.1,) * 3 if normalize == "auto" else mean)


def test_the_normalization_of_imagenet_is_for_three_channels() -> None:
    with pytest.raises(UsageError, match=r"Expected images of 3 channels with network\.normalize imagenet, got 1; set"):
        start(description(channels=1), asked("", "imagenet"))


Change = Callable[[dict[str, Tensor]], Any]


def put(name: str, value: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors: tensors.update({name: value(tensors[name])})


def first(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone(memory_format=torch.contiguous_format)
        changed.view(-1)[0] = value
        return changed

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda tensors: tensors.pop("1.0.weight"),
            r"hold the tensors of compact, stem s2d, width 4, .*; it lacks '1\.0\.weight'; set network\.name",
        ),
        (lambda tensors: tensors.update({"evil\x1b[2J": torch.zeros(1)}), r"no others; it has 'evil\[2J'; set network\.name"),
        (
            lambda tensors: (tensors.pop("1.0.weight"), tensors.pop("1.0.bias"), tensors.update(x=torch.zeros(1))),
            "'1.0.weight' and 1 others and has 'x'",
        ),
        (
            put("1.0.weight", lambda t: t[:, :, :3]),
            r"'1\.0\.weight' in .* to have the shape \[24, 3, 4, 4\] \(compact, .*\), got \[24, 3, 3, 4\]; set",
        ),
        (put("1.0.weight", lambda t: t.double()), r"to be float32, float16, bfloat16, got float64; convert it"),
        (put("1.0.weight", lambda t: t.to(torch.int8)), r"to be float32, float16, bfloat16, got int8"),
        (put("1.0.weight", first(float("nan"))), r"Expected finite numbers in '1\.0\.weight'"),
        (put("1.0.weight", first(float("inf"))), r"Expected finite numbers in '1\.0\.weight'"),
        (put("1.3.running_var", first(-1.0)), r"Expected finite numbers that are not negative in '1\.3\.running_var'"),
        (put("1.3.num_batches_tracked", lambda t: t.float()), r"'1\.3\.num_batches_tracked' in .* to be int64, got float32"),
        (put("1.3.num_batches_tracked", lambda t: t.repeat(2)), r"to have the shape \[\]"),
        (put("0.std", first(0.0)), r"Expected positive numbers in '0\.std'"),
        (put("0.mean", first(float("-inf"))), r"Expected finite numbers in '0\.mean'"),
        (put("1.20.bias", lambda t: t.view(2, 2)), r"to have the shape \[4\]"),
        (put("1.20.bias", lambda t: t[:0]), r"to have the shape \[4\]"),
        (put("1.20.weight", lambda t: t[:, :3]), r"to have the shape \[4, 16\]"),
        (put("1.20.bias", lambda t: t[:3]), r"'1\.20\.weight' in .* to have the shape \[3, 16\]|'1\.20\.bias'"),
        (put("1.20.weight", lambda t: t.clone().fill_(3e38)), r"to give finite logits, and they do not"),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_what_was_expected(change: Change, sentence: str, tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in trained().state_dict().items()}
    assert "1.20.bias" in tensors and "1.3.running_var" in tensors
    change(tensors)
    with pytest.raises(UsageError, match=sentence):
        start(description(), asked(written(tmp_path, tensors)))


def test_another_stem_and_another_size_are_named(tmp_path: Path) -> None:
    about = description(Architecture("resnet18", "imagenet", 32), 32)
    file = written(tmp_path, bare(build(about, generator("a"))))
    with pytest.raises(
        UsageError, match=r"'conv1\.weight' in .* \[64, 3, 3, 3\] \(resnet18, stem cifar, .*\), got \[64, 3, 7, 7\]; set network\.name, network\.stem"
    ):
        start(description(RESNET, 32), asked(file, "imagenet", "resnet18", "cifar"))
    with pytest.raises(UsageError, match=r"images of 224 x 224 pixels in 3 channels"):
        start(description(Architecture("compact", "s2d", 4, blocks=3), 224), asked(ours(tmp_path / "small")))


class Trap:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def header(said: Any, data: bytes = b"") -> bytes:
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    return struct.pack("<Q", len(text)) + text + data


PICKLE = r"found a pickle, which is a program and is not read; where you trust it, write its state dict anew with safetensors\.torch\.save_file"
ELSE = r"Expected weights in safetensors \(network\.weights\) at .*, found something else \(.*\); save a state dict with safetensors"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", ELSE),
        (b"\x00" * 8, ELSE),
        (b"weights", ELSE),
        (b"\x89HDF\r\n\x1a\n" + b"\x00" * 100, ELSE),
        (b"PK\x03\x04" + b"\x00" * 100, PICKLE),
        (header(b"{"), ELSE),
        (header(b"[" * 100_000), ELSE),
        (header([1]), ELSE),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\x00" * 4), ELSE),
        (header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"\x00" * 4), ELSE),
        (header({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}), ELSE),
        (header({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"\x00"), ELSE),
        (header({"a": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}, b"\x00"), ELSE),
        (header({"a": {"dtype": "Q", "shape": [1], "data_offsets": [0, 1]}}, b"\x00"), ELSE),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\x00" * 99), ELSE),
        (header(b" " * (2**20 + 1)), r"whose header has at most 1,048,576 bytes, got 1,048,577; save the tensors alone"),
        (struct.pack("<Q", 2**63) + b"{}", ELSE),
    ],
)  # fmt: skip
def test_what_is_no_safetensors_is_refused_in_a_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "given"
    file.write_bytes(content)
    for ask in (lambda: look(file), lambda: start(description(), asked(file))):
        with pytest.raises(UsageError, match=sentence):
            ask()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "given.pth"
    file.write_bytes(pickle.dumps(Trap(mark), protocol))
    with pytest.raises(UsageError, match=PICKLE):
        look(file)
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(UsageError, match=PICKLE):
        look(file)
    assert not mark.exists()


def test_what_cannot_be_read_as_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, found in (
        ("gone", "found none"),
        ("pipe", "found no file"),
        (".", "found a folder"),
        ("loop", "found Too many levels of symbolic links"),
        ("a\0b", "no file can have"),
    ):
        with pytest.raises(UsageError, match=rf"Expected weights in safetensors \(network\.weights\).*{found}; name"):
            look(tmp_path / name)
    large = tmp_path / "large"
    with open(large, "wb") as file:
        file.truncate(module.MAX_FILE + 1)  # a hole: nothing of it is on the disk
    with pytest.raises(UsageError, match=r"of at most 1,073,741,824 bytes at .*, found 1,073,741,825 bytes; name another file"):
        look(large)
    monkeypatch.setattr(module, "MAX_HEAD", 100)
    with pytest.raises(UsageError, match=r"of at most [\d,]+ bytes at"):
        start(description(), asked(written(tmp_path, {"a": torch.zeros(50_000)})))
    link = tmp_path / "link"
    link.symlink_to(ours(tmp_path / "model"))
    look(link)


WHOLE = save({name: tensor.contiguous() for name, tensor in trained().state_dict().items()})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, len(WHOLE)))
def test_a_damaged_file_is_taken_over_or_refused_in_a_sentence(changes: list[tuple[int, int]], end: int) -> None:
    import tempfile

    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "given.safetensors"
        file.write_bytes(data[:end] if changes[0][1] % 2 else data)
        try:
            model = start(description(), asked(file)).build(generator("a"))
        except UsageError as error:
            assert "\n" not in str(error) and len(str(error)) < 700
        else:
            assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
