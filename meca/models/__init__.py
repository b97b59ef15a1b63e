"""The networks, by name, and their one form on disk: model.safetensors beside model.json.

A network takes float32 [b c h w] in [0, 1] and returns logits [b classes]; the normalization is its first layer, so a
loaded model needs nothing but pixels.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from meca.errors import MecaError, UsageError, check_choice, check_fields
from meca.files import canonical_json
from meca.models.compact import compact, doublings
from meca.params import Params

__all__ = [
    "NETWORKS",
    "Architecture",
    "Description",
    "DetectorParams",
    "Network",
    "NetworkParams",
    "Normalize",
    "build",
    "load_model",
    "memory_format",
    "read_description",
    "reset",
    "save_model",
]


Stem = Literal["s2d", "conv3", "cifar", "imagenet"]
CIFAR_UP_TO = 64  # pixels of the longer side: above, torchvision's networks have their own stem


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a network is built as, beside its inputs and outputs."""

    name: str  # of `NETWORKS`
    stem: Stem
    width: int  # channels of the first block; compact only
    blocks: int = 0  # in front, which pool; compact only. A model.json that does not say them is of a meca that had none

    def __post_init__(self) -> None:
        """Refuse a network that there is not, or without channels."""
        check_choice("network.name", self.name, NETWORKS)
        check_fields(self, ("width", ">= 1", self.width >= 1), ("blocks", "in 0..16", 0 <= self.blocks <= 16))


@dataclasses.dataclass(frozen=True)
class NetworkParams:
    """Group `network` of params.yaml."""

    name: str  # of `NETWORKS`
    stem: Literal["auto", "s2d", "conv3", "cifar", "imagenet"]
    width: int  # channels of the first block; compact only
    weights: str  # path of a file in safetensors that training starts from; empty: from scratch
    normalize: Literal["auto", "data", "imagenet"]
    watch: str  # read by DVC alone

    def __post_init__(self) -> None:
        """Refuse a network that there is not, or without channels."""
        self.built(1, 1)

    def built(self, height: int, width: int) -> Architecture:
        """Return the architecture for images of a size, in pixels."""
        is_compact = self.name == "compact"
        stem = self.stem
        if stem == "auto":
            stem = "s2d" if is_compact else "cifar" if max(height, width) <= CIFAR_UP_TO else "imagenet"
        return Architecture(self.name, stem, self.width, doublings(height, width) if is_compact else 0)


@dataclasses.dataclass(frozen=True)
class DetectorParams:
    """Group `detector` of params.yaml."""

    name: str  # of `NETWORKS`, or same
    stem: Literal["auto", "s2d", "conv3", "cifar", "imagenet"]
    width: int  # channels of the first block; compact only
    weights: Literal["none", "same"]  # same: partition starts from `network.weights`

    def __post_init__(self) -> None:
        """Refuse a network that there is not, or without channels."""
        check_choice("detector.name", self.name, ("same", *NETWORKS))
        check_fields(self, ("width", ">= 1", self.width >= 1))

    def resolve(self, network: NetworkParams) -> NetworkParams:
        """Return the network that detects.

        Raises:
            UsageError: It starts from weights and is another network than the one that they are for.
        """
        own = network if self.name == "same" else dataclasses.replace(network, name=self.name, stem=self.stem, width=self.width)
        if self.weights == "none":
            return dataclasses.replace(own, weights="", normalize=network.normalize if self.name == "same" else "auto")
        if not network.weights or (own.name, own.stem, own.width) != (network.name, network.stem, network.width):
            raise UsageError(
                "params.yaml: expected detector.weights same with network.weights and detector.name same; set them, or detector.weights none."
            )
        return own


@dataclasses.dataclass(frozen=True)
class Description:
    """model.json: everything that is needed to build the network of a weights file again."""

    network: Architecture
    class_names: tuple[str, ...]
    height: int
    width: int
    channels: int
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    # How an image of another size comes to this one: see `meca.data.decoder.decode.resize`. A model of an older meca was squashed.
    fit: Literal["squash", "pad"] = "squash"
    resampling: Literal["bilinear"] = "bilinear"  # with antialiasing
    weights_sha256: str | None = None  # of the file that its training started from; in model.json only where there was one

    def preprocess(self, images: np.ndarray) -> np.ndarray:
        """Return images in the size and with the channels that the network takes, as stage ingest stores them.

        Args:
            images: uint8 [n h w c] with 1 or 3 channels.

        Returns:
            uint8 [n height width channels].
        """
        from meca.data.decoder.decode import resize  # only here: what is of the store needs no codec

        if images.shape[1:] == (self.height, self.width, self.channels):
            return images
        made = np.empty((len(images), self.height, self.width, 3), np.uint8)
        for at, image in enumerate(images):
            made[at] = resize(image, self.height, self.width, self.fit)
        return made[..., : self.channels]


@dataclasses.dataclass(frozen=True)
class Network:
    """A model with what builds others like it."""

    model: nn.Module
    description: Description


class Normalize(nn.Module):
    """Subtract the mean and divide by the standard deviation, per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [b c h w] in [0, 1] to zero mean and unit deviation."""
        return (x - self.get_buffer("mean")) / self.get_buffer("std")


def _compact(of: Description) -> nn.Module:
    network = of.network
    if network.stem not in ("s2d", "conv3"):
        raise MecaError(f"Expected network.stem to be s2d or conv3 for compact, got {network.stem!r}; change it in params.yaml.")
    return compact(len(of.class_names), of.channels, network.width, network.stem, network.blocks)


def _torchvision(of: Description) -> nn.Module:
    network = of.network
    # torchvision is slow to import and only these three networks need it.
    from meca.models.vision import vision

    if network.stem not in ("cifar", "imagenet"):
        raise MecaError(f"Expected network.stem to be cifar or imagenet for {network.name}, got {network.stem!r}; change it in params.yaml.")
    return vision(network.name, len(of.class_names), of.channels, network.stem)


NETWORKS: dict[str, Callable[[Description], nn.Module]] = {
    "compact": _compact,
    "resnet18": _torchvision,
    "resnet34": _torchvision,
    "mobilenet_v2": _torchvision,
}


def build(description: Description, rng: torch.Generator) -> nn.Module:
    """Return a freshly initialised network; the weights depend on the generator alone."""
    model = nn.Sequential(Normalize(description.mean, description.std), NETWORKS[description.network.name](description))
    reset(model, rng)
    return model.to(memory_format=memory_format(description))  # pyright: ignore[reportCallIssue, reportArgumentType]


def memory_format(description: Description) -> torch.memory_format:
    """Return the layout in which the network is fast: channels_last, but for maps of 1x1 (torchvision's stem at 32 px)."""
    small = description.network.stem == "imagenet" and description.height <= 64
    return torch.contiguous_format if small else torch.channels_last


def reset(model: nn.Module, rng: torch.Generator) -> None:
    """Draw all weights anew, in place: He-uniform as torch does it, from `rng` instead of the global state."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            bound = fan_in**-0.5
            with torch.no_grad():
                module.weight.copy_(torch.empty(module.weight.shape).uniform_(-bound, bound, generator=rng) * 3**0.5)
                if module.bias is not None:
                    module.bias.copy_(torch.empty(module.bias.shape).uniform_(-bound, bound, generator=rng))
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def save_model(model: nn.Module, description: Description, folder: Path) -> None:
    """Write model.safetensors and model.json into a folder."""
    from safetensors.torch import save  # the core runs without it until something is written

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(state, metadata={"format": "pt"}))
    record = dataclasses.asdict(description)
    if description.weights_sha256 is None:
        del record["weights_sha256"]
    if not description.network.blocks:
        del record["network"]["blocks"]
    (folder / "model.json").write_text(canonical_json(record), encoding="utf-8")


def load_model(folder: Path) -> nn.Module:
    """Return the network of a folder with its weights, in eval mode.

    Raises:
        MecaError: A file is missing, or weights and description do not fit each other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    description = read_description(folder)
    model = build(description, torch.Generator().manual_seed(0))
    try:
        model.load_state_dict(load((folder / "model.safetensors").read_bytes()))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise MecaError(f"{folder / 'model.safetensors'} does not hold the weights that model.json describes: {error}") from None
    return model.eval()


def read_description(folder: Path) -> Description:
    """Return what model.json says."""
    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if isinstance(record, dict):
            record = {"weights_sha256": None, **record}
        found = Params({"model": record}, "model.json").group("model", Description)
    except (OSError, ValueError, UsageError) as error:
        raise MecaError(f"Expected the description of a model in {folder / 'model.json'}: {error}") from None
    sizes = (len(found.class_names), found.height, found.width, found.channels, found.network.width)
    digest = found.weights_sha256
    if (digest is not None and not re.fullmatch("[0-9a-f]{64}", digest)) or min(sizes) < 1 or not len(found.mean) == len(found.std) == found.channels:
        raise MecaError(
            f"Expected the description of a model in {folder / 'model.json'}, found sizes that contradict each other or are not positive."
        )
    return found
