"""The networks: every one with every stem, their weights from a generator alone, and their one form on disk."""

import dataclasses
import itertools
import json
import pickle  # a file that the loader must refuse
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from meca.errors import MecaError, UsageError
from meca.models import (
    NETWORKS,
    Architecture,
    Description,
    DetectorParams,
    NetworkParams,
    Normalize,
    build,
    load_model,
    memory_format,
    read_description,
    reset,
    save_model,
)
from meca.training.engine import predict
from meca.training.seeds import generator
from tests.method.tiny import description, network, same, samples

STEMS: tuple[str, ...] = typing.get_args(typing.get_type_hints(Architecture)["stem"])


def fits(name: str, stem: str) -> bool:
    """Say whether a network takes a stem: compact has its own two."""
    return (stem in ("s2d", "conv3")) == (name == "compact")


PAIRS = list(itertools.product(NETWORKS, STEMS))
FITTING = [pair for pair in PAIRS if fits(*pair)]


def params(name: str, stem: str) -> Architecture:
    return Architecture(name, stem, 4)  # pyright: ignore[reportArgumentType]


def test_a_network_that_there_is_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"expected network.name to be one of compact, .*, got 'resnet19'; did you mean 'resnet18'\?"):
        params("resnet19", "cifar")
    with pytest.raises(UsageError, match=r"expected detector.name to be one of same, compact"):
        DetectorParams("vgg", "cifar", 4, "none")


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [
        ("compact", (32, 32), "s2d"), ("compact", (224, 224), "s2d"), ("resnet18", (32, 32), "cifar"), ("resnet34", (64, 64), "cifar"),
        ("mobilenet_v2", (64, 65), "imagenet"), ("resnet18", (96, 64), "imagenet"), ("resnet18", (224, 224), "imagenet"),
    ],
)  # fmt: skip
def test_a_stem_that_is_left_open_follows_from_the_size(name: str, size: tuple[int, int], stem: str) -> None:
    built = asked(name=name, stem="auto").built(*size)
    assert built == dataclasses.replace(params(name, stem), blocks=built.blocks) and (built.blocks == 3) == (name == "compact" and size[0] > 32)
    for said in STEMS:
        assert asked(name=name, stem=said).built(*size).stem == said, "what is said stays"


def asked(**changes: Any) -> NetworkParams:
    return NetworkParams(**{"name": "compact", "stem": "s2d", "width": 4, "weights": "", "normalize": "auto", "watch": "x", **changes})


def test_detection_starts_from_weights_only_where_it_is_asked_to_and_is_the_network_that_they_are_for() -> None:
    out = asked(weights="w", normalize="imagenet")
    assert DetectorParams("same", "s2d", 9, "none").resolve(out) == asked(normalize="imagenet")
    assert DetectorParams("compact", "s2d", 9, "none").resolve(out) == asked(width=9)
    assert DetectorParams("same", "s2d", 9, "same").resolve(out) == DetectorParams("compact", "s2d", 4, "same").resolve(out) == out
    for detector, about in ((DetectorParams("compact", "s2d", 9, "same"), out), (DetectorParams("same", "s2d", 9, "same"), asked())):
        with pytest.raises(UsageError, match=r"expected detector\.weights same with network\.weights and detector\.name same; set them, or"):
            detector.resolve(about)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "stem"), FITTING)
def test_a_network_runs_on_32_pixels_and_comes_back_from_disk_with_the_same_logits(name: str, stem: str, channels: int, tmp_path: Path) -> None:
    about = description(params(name, stem), 32, channels, classes=5)
    model, (images, _) = build(about, generator("init")).eval(), samples(4, size=32, channels=channels)
    logits = predict(model, images)
    assert logits.shape == (4, 5) and logits.isfinite().all() and float(logits.std(0).min()) > 0
    save_model(model, about, tmp_path / "a")
    again = load_model(tmp_path / "a")
    assert not again.training and torch.equal(predict(again, images), logits)
    assert read_description(tmp_path / "a") == about
    save_model(again, about, tmp_path / "b")
    for file in ("model.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(("name", "stem"), [pair for pair in PAIRS if pair not in FITTING])
def test_a_stem_of_another_network_is_named(name: str, stem: str) -> None:
    with pytest.raises(MecaError, match=rf"Expected network\.stem to be \w+ or \w+ for {name}, got '{stem}'; change it in params\.yaml"):
        build(description(params(name, stem), 32), generator("init"))


@pytest.mark.parametrize(("name", "stem"), FITTING)
def test_weights_depend_on_the_generator_alone_and_a_reset_is_a_new_network(name: str, stem: str) -> None:
    about = description(params(name, stem), 32)
    torch.manual_seed(1)
    first = build(about, generator("a"))
    torch.manual_seed(2)
    assert same(first, build(about, generator("a")))
    other = build(about, generator("b"))
    assert not same(first, other)
    with torch.no_grad():
        for tensor in (*other.parameters(), *(m.running_mean for m in other.modules() if isinstance(m, nn.BatchNorm2d))):
            tensor.add_(1)
    reset(other, generator("a"))
    assert same(first, other)


@pytest.mark.parametrize(("name", "stem"), FITTING)
def test_every_layer_with_weights_is_drawn_from_the_generator(name: str, stem: str) -> None:
    model = build(description(params(name, stem), 32), generator("a"))
    for module in model.modules():
        if list(module.parameters(recurse=False)):
            assert isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d)
            if not isinstance(module, nn.BatchNorm2d):
                bound = (3 / module.weight[0].numel()) ** 0.5
                assert 0.5 * bound < float(module.weight.detach().abs().max()) <= bound


def test_the_stem_decides_the_resolution() -> None:
    about = {stem: description(Architecture("resnet18", stem, 4), 32) for stem in ("cifar", "imagenet")}
    firsts = {stem: next(m for m in build(d, generator("a")).modules() if isinstance(m, nn.Conv2d)) for stem, d in about.items()}
    assert (firsts["cifar"].stride, firsts["imagenet"].stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize(("name", "stem"), FITTING)
def test_the_layout_in_memory_changes_nothing_but_rounding(name: str, stem: str) -> None:
    about = description(params(name, stem), 32)
    images, _ = samples(4, size=32)
    model = build(about, generator("a"))
    fast = predict(model, images)
    slow = predict(model.to(memory_format=torch.contiguous_format), images)  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert torch.allclose(fast, slow, rtol=1e-3, atol=1e-4 * float(fast.abs().max()))
    assert memory_format(about) == (torch.contiguous_format if stem == "imagenet" else torch.channels_last)


def grown(stem: Literal["s2d", "conv3"], channels: int, height: int, width: int) -> Architecture:
    """Return `compact` as it is built for images of a size."""
    return NetworkParams("compact", stem, channels, "", "auto", "").built(height, width)


def of_today(classes: int, width: int, stem: str) -> nn.Sequential:
    """Return `compact` for 32 pixels, layer by layer."""

    def block(c_in: int, c_out: int, pool: bool) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), *[nn.MaxPool2d(2)] * pool, nn.BatchNorm2d(c_out), nn.ReLU()]

    s2d = [nn.Conv2d(3, 24, 4, stride=2, padding=1), nn.ReLU(), *block(24, width, False)]
    layers = [*(s2d if stem == "s2d" else block(3, width, False)), *block(width, 2 * width, True), *block(2 * width, 2 * width, False)]
    layers += [*block(2 * width, 4 * width, True), *block(4 * width, 4 * width, False)]
    return nn.Sequential(*layers, nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), nn.Linear(4 * width, classes))


@pytest.mark.parametrize("stem", ["s2d", "conv3"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (32, 32), (48, 48), (32, 300)])
def test_compact_is_for_small_images_what_it_was(height: int, width: int, stem: Literal["s2d", "conv3"]) -> None:
    about = dataclasses.replace(description(grown(stem, 4, height, width)), height=height, width=width)
    model, expected = build(about, generator("a")), nn.Sequential(Normalize(about.mean, about.std), of_today(4, 4, stem))
    reset(expected, generator("a"))
    assert same(model, expected)
    x = torch.rand(2, 3, height, width, generator=generator("x"))
    assert torch.allclose(model.eval()(x), expected.eval()(x), atol=1e-6)


GROWING = [(32, 32), (48, 48), (64, 64), (96, 96), (96, 128), (128, 128), (192, 192), (224, 224), (448, 448)]


def counted(height: int, width: int, stem: Literal["s2d", "conv3"]) -> tuple[float, float]:
    """Return, for each pixel of an image, the work of a forward pass and the numbers that it leaves for the backward pass."""
    about = dataclasses.replace(description(grown(stem, 32, height, width)), height=height, width=width)
    model, numbers = build(about, generator("a")), 0

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal numbers
        numbers += output.numel()

    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            module.register_forward_hook(note)
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, height, width))
    return counter.get_total_flops() / (height * width), numbers / (height * width)


@pytest.mark.parametrize("stem", ["s2d", "conv3"])
def test_a_pixel_of_a_larger_image_costs_no_more_work_and_no_more_memory(stem: Literal["s2d", "conv3"]) -> None:
    work, memory = zip(*(counted(*size, stem) for size in GROWING), strict=True)
    assert list(work) == sorted(work, reverse=True) and work[2] < 0.5 * work[0]
    assert max(memory) <= memory[0]


@pytest.mark.parametrize("side", [33, 49, 64, 97, 128, 224, 385])
def test_the_last_map_of_compact_is_as_large_as_that_of_a_small_image(side: int) -> None:
    seen: list[torch.Size] = []
    model = build(description(grown("s2d", 2, side, side), side), generator("a")).eval()
    last = next(module for module in model.modules() if type(module).__name__ == "MaxOverMap")
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(torch.zeros(1, 3, side, side))
    assert 3 <= seen[0][2] <= 6


@pytest.mark.parametrize("side", [64, 96, 224])
def test_a_model_of_a_large_image_from_before_there_were_blocks_is_the_same_network(side: int, tmp_path: Path) -> None:
    """Its weights fit the network with blocks, too, up to 96 pixels, and would give other logits without a word."""
    old = description(Architecture("compact", "s2d", 2), side)
    model = build(old, generator("a")).eval()
    save_model(model, old, tmp_path)
    assert "blocks" not in (tmp_path / "model.json").read_text(), "as it was written then"
    x = torch.rand(1, 3, side, side, generator=generator("x"))
    assert torch.equal(load_model(tmp_path)(x), model(x)) and read_description(tmp_path) == old
    new = description(grown("s2d", 2, side, side), side)
    save_model(build(new, generator("a")), new, tmp_path)
    assert read_description(tmp_path).network.blocks > 0


@pytest.mark.parametrize("stem", ["s2d", "conv3"])
@pytest.mark.parametrize("at", [(0, 0), (97, 130), (221, 221)])
def test_three_pixels_of_a_large_image_reach_the_logits(at: tuple[int, int], stem: Literal["s2d", "conv3"]) -> None:
    model = build(description(grown(stem, 16, 224, 224), 224), generator("a")).eval()
    x = torch.zeros(1, 3, 224, 224, requires_grad=True)
    shown = x + torch.nn.functional.pad(torch.ones(1, 3, 3, 3), (at[1], 221 - at[1], at[0], 221 - at[0]))
    model(shown).square().sum().backward()
    assert x.grad is not None and (x.grad[0, :, at[0] : at[0] + 3, at[1] : at[1] + 3] != 0).all()


def test_normalize_gives_mean_zero_and_deviation_one() -> None:
    x = torch.rand(64, 2, 8, 8, generator=generator("x")) * torch.tensor([1.0, 0.2]).view(1, 2, 1, 1)
    found = Normalize(x.mean((0, 2, 3)).tolist(), x.std((0, 2, 3)).tolist())(x)
    assert found.mean((0, 2, 3)).abs().max() < 1e-5 and (found.std((0, 2, 3)) - 1).abs().max() < 1e-5


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(network(), description(), tmp_path)
    return tmp_path


Tamper = Callable[[dict[str, Any]], Any]


def change(**changes: Any) -> Tamper:
    return lambda record: {**record, **changes}


def change_network(**changes: Any) -> Tamper:
    return lambda record: {**record, "network": {**record["network"], **changes}}


@pytest.mark.parametrize(
    "tamper",
    [
        change(network=None),
        change_network(name="evil"),
        change_network(stem="evil"),
        change_network(width="4"),
        change_network(width=-1),
        change_network(depth=3),
        change(further=1),
        change(class_names=7),
        change(class_names=[]),
        change(mean=["a"] * 3),
        change(mean=[0.0]),
        change(channels=None),
        change(channels=0),
        change(class_names="abcd"),
        change(width=0),
        change(height=None),
        change(weights_sha256="evil"),
        change(weights_sha256=7),
        lambda record: {name: value for name, value in record.items() if name != "std"},
        lambda record: [record],
        lambda record: "model",
        lambda record: None,
    ],
)
def test_a_tampered_description_is_named(saved: Path, tamper: Tamper) -> None:
    record = tamper(json.loads((saved / "model.json").read_text()))
    (saved / "model.json").write_text(json.dumps(record))
    with pytest.raises(MecaError, match=r"model\.json"):
        load_model(saved)


def test_a_description_of_before_there_were_weights_is_read_and_written_as_it_was(saved: Path) -> None:
    assert "weights_sha256" not in json.loads((saved / "model.json").read_text()) and read_description(saved).weights_sha256 is None
    about = dataclasses.replace(description(), weights_sha256="a" * 64)
    save_model(network(), about, saved)
    assert read_description(saved) == about


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_description_that_is_no_json_is_named(saved: Path, content: bytes) -> None:
    (saved / "model.json").write_bytes(content)
    with pytest.raises(MecaError, match=r"Expected the description of a model in .*model\.json"):
        load_model(saved)


class Trap:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_weights_that_do_not_fit_are_named_and_nothing_is_unpickled(saved: Path, tmp_path: Path) -> None:
    weights = saved / "model.safetensors"
    whole, mark = weights.read_bytes(), tmp_path / "mark"
    other = tmp_path / "other"
    wide: Description = description(Architecture("compact", "s2d", 8))
    save_model(build(wide, generator("a")), wide, other)
    for content in (b"", whole[:100], whole[:-1], pickle.dumps(Trap(mark)), (other / "model.safetensors").read_bytes()):
        weights.write_bytes(content)
        with pytest.raises(MecaError, match=r"model\.safetensors does not hold the weights that model\.json describes"):
            load_model(saved)
    weights.unlink()
    with pytest.raises(MecaError, match=r"model\.safetensors"):
        load_model(saved)
    assert not mark.exists()
