"""Weights that somebody else trained (params.yaml: network.weights): read, held against the network, and put into it.

The file is safetensors and nothing else: names, shapes and numbers. A pickle is a program, so none is read. Nobody vouches for the
file: it is opened once, its size is bounded before it is read, and every name, shape, type and value is looked at before a training
starts from it. What it has learnt cannot be looked at: a backdoor in it stays in the network (docs/networks.md).
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from meca.errors import UsageError
from meca.files import open_named
from meca.models import Description, NetworkParams, Normalize, build
from meca.text import plain

__all__ = ["IMAGENET", "Start", "look", "start"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that torchvision's weights were trained with
WHAT = "weights in safetensors (network.weights)"  # begins and ends sentences about the file
MAX_HEAD = 2**28  # bytes beside those of the network: names, and a last layer for other classes, of which ImageNet-21k has 45 MB
MAX_FILE = 2**30  # bytes, whatever the network
MAX_HEADER = 2**20  # bytes; that of ResNet34 has 25 kB
PICKLED = (b"PK\x03\x04", b"\x80")  # what torch.save writes: a zip archive around a pickle, or the pickle itself
FLOATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}  # the short ones are widened
OURS = ("0.mean", "0.std")  # of the normalization, the first layer of every network of meca
COUNT = "num_batches_tracked"  # of BatchNorm: decides nothing here, and older files lack it


@dataclasses.dataclass(frozen=True)
class Start:
    """What a training starts from."""

    description: Description
    tensors: Mapping[str, Tensor]  # by their names in the network; none: from scratch

    def build(self, rng: torch.Generator) -> nn.Module:
        """Return the network before its training; what no weights are given for is drawn from the generator, as in `build`."""
        model = build(self.description, rng)
        if self.tensors:
            model.load_state_dict({**model.state_dict(), **self.tensors})
        return model


def look(path: Path) -> None:
    """Refuse what is no file of weights, whatever network they are for.

    Raises:
        UsageError: Says what was expected, what is there and how to go on.
    """
    _parsed(path, MAX_FILE)


def start(described: Description, network: NetworkParams) -> Start:
    """Return what trainings of a network start from.

    Args:
        described: The network for a data set, normalized by mean and deviation of its images.
        network: Says where the weights are, and what their pixels were normalized by.

    Raises:
        UsageError: The file does not hold the weights of this network, or it does not say what its pixels were normalized by.
    """
    if network.normalize == "imagenet":
        if described.channels != len(IMAGENET[0]):
            raise UsageError(
                f"Expected images of 3 channels with network.normalize imagenet, got {described.channels}; set network.normalize to data, or to auto."
            )
        described = dataclasses.replace(described, mean=IMAGENET[0], std=IMAGENET[1])
    if not network.weights:
        return Start(described, {})
    path = Path(network.weights)
    model = build(described, torch.Generator().manual_seed(0))
    found, digest = _parsed(path, sum(tensor.nbytes for tensor in model.state_dict().values()) + MAX_HEAD)
    tensors = _checked(path, found, model, described)
    if network.normalize == "auto":
        if not tensors.keys() >= {*OURS}:
            raise UsageError(
                f"{path} does not say what its pixels were normalized by; set network.normalize to imagenet where it is torchvision's own, or "
                "to data if mean and deviation of these images will do."
            )
        mean, std = (tuple(float(value) for value in tensors[name].flatten()) for name in OURS)
        described = dataclasses.replace(described, mean=mean, std=std)
    learnt = {name: tensor for name, tensor in tensors.items() if name not in OURS}
    model.load_state_dict({**model.state_dict(), **learnt, **Normalize(described.mean, described.std).state_dict(prefix="0.")})
    _try(path, model.eval(), described)
    return Start(dataclasses.replace(described, weights_sha256=digest), learnt)


def _parsed(path: Path, limit: int) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file, by their names in it, and the SHA-256 of its bytes."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    with open_named(path, limit, WHAT) as file:
        data = file.read(limit + 1)  # it may grow meanwhile
    if len(data) > limit:
        raise UsageError(f"Expected {WHAT} of at most {limit:,} bytes at {path}, and it grows while it is read; name a file that is finished.")
    header = int.from_bytes(data[:8], "little")
    if MAX_HEADER < header <= len(data) - 8:  # one that the file does not hold is for the reader to refuse
        raise UsageError(f"Expected {WHAT} at {path} whose header has at most {MAX_HEADER:,} bytes, got {header:,}; save the tensors alone.")
    try:
        return load(data), hashlib.sha256(data).hexdigest()
    # Python's half of the reader meets types that it does not know (KeyError) and lengths that fit no shape.
    except (SafetensorError, KeyError, ValueError, RuntimeError, AssertionError, OverflowError, TypeError) as error:
        if data.startswith(PICKLED) or path.suffix.lower() in (".pt", ".pth", ".pkl", ".pickle", ".ckpt"):
            raise UsageError(
                f"Expected {WHAT} at {path}, found a pickle, which is a program and is not read; where you trust it, write its state dict anew "
                "with safetensors.torch.save_file."
            ) from None
        raise UsageError(f"Expected {WHAT} at {path}, found something else ({plain(error, 200)}); save a state dict with safetensors.") from None


def _checked(path: Path, found: Mapping[str, Tensor], model: nn.Module, described: Description) -> dict[str, Tensor]:
    """Return what is taken over, by its names in the network: all but a last layer for another number of classes."""
    prefix = "" if found.keys() >= {*OURS} else "1."  # the bare network, as torchvision names it, stands behind the normalization
    given = {prefix + name: tensor for name, tensor in found.items()}
    expected = model.state_dict()
    _check_names(path, given, [name for name in expected if not (prefix and name in OURS)], prefix, described)
    head = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    rows = len(given[f"{head}.bias"]) if given[f"{head}.bias"].ndim == 1 else 0
    other = rows not in (0, len(described.class_names))  # the last layer is for other classes
    shapes = {name: [rows, *tensor.shape[1:]] if other and name.startswith(f"{head}.") else [*tensor.shape] for name, tensor in expected.items()}
    taken: dict[str, Tensor] = {}
    for name, tensor in given.items():
        quoted = f"{plain(name.removeprefix(prefix), 100)!r} in {path}"
        if [*tensor.shape] != shapes[name]:
            raise UsageError(f"Expected {quoted} to have the shape {shapes[name]} ({_words(described)}), got {[*tensor.shape]}; {_SAY}")
        if expected[name].dtype.is_floating_point:
            if tensor.dtype not in FLOATS:
                raise UsageError(f"Expected {quoted} to be {', '.join(FLOATS.values())}, got {str(tensor.dtype).removeprefix('torch.')}; convert it.")
            tensor = tensor.float()
            least = 0.0 if name.endswith("running_var") else float("-inf")
            if not (bool(tensor.isfinite().all()) and bool((tensor >= least).all()) and (name != OURS[1] or bool((tensor > 0).all()))):
                what = "positive numbers" if name == OURS[1] else "finite numbers that are not negative" if least == 0 else "finite numbers"
                raise UsageError(f"Expected {what} in {quoted}, found others; these weights are damaged, so take an earlier copy of them.")
        elif tensor.dtype != expected[name].dtype:
            raise UsageError(f"Expected {quoted} to be int64, got {str(tensor.dtype).removeprefix('torch.')}; convert it.")
        if not (other and name.startswith(f"{head}.")):
            taken[name] = tensor
    return taken


_SAY = "set network.name, network.stem and network.width to what the weights were trained as."


def _words(of: Description) -> str:
    return f"{of.network.name}, stem {of.network.stem}, width {of.network.width}, images of {of.width} x {of.height} pixels in {of.channels} channels"


def _check_names(path: Path, given: Mapping[str, Tensor], expected: list[str], prefix: str, described: Description) -> None:
    lacks = [name for name in expected if name not in given and not name.endswith(COUNT)]
    more = [name for name in given if name not in expected]
    if lacks or more:
        told = [
            f"{verb} {plain(names[0].removeprefix(prefix), 100)!r}" + (f" and {len(names) - 1} others" if len(names) > 1 else "")
            for verb, names in (("lacks", lacks), ("has", more))
            if names
        ]
        raise UsageError(f"Expected {path} to hold the tensors of {_words(described)}, and no others; it {' and '.join(told)}; {_SAY}")


@torch.inference_mode()
def _try(path: Path, model: nn.Module, of: Description) -> None:
    """Refuse weights that are finite themselves and whose logits are not."""
    if not bool(model(torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand(3, of.channels, of.height, of.width)).isfinite().all()):
        raise UsageError(
            f"Expected the weights in {path} to give finite logits, and they do not; these weights are damaged, so take an earlier copy."
        )
