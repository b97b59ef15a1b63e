"""The least time that the work can take: operations and bytes of every network over what the machine can do.

    python -m benchmarks.speed.floors              the tables, for one H200
    python -m benchmarks.speed.floors --measured   for this machine

Operations are counted by torch on meta tensors, 2 per multiply-add. A pass moves so many bytes per element that a
convolution puts out, in bf16: 28 in training, 20 in scoring with one mask, 6 forward.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.speed.harness import Ceilings, ceilings, default_params, describe, detects_with, network
from meca.method.content import ASIDE
from meca.method.enhance import SIDES, EnhanceParams
from meca.method.localise import OTHERS, ROUNDS
from meca.method.partition import PartitionParams
from meca.method.relabel import RelabelParams
from meca.method.split import SplitParams
from meca.models import Architecture
from meca.params import Params
from meca.training.device import prepare
from meca.training.trainer import Recipe

H200 = Ceilings(790e12, 4.3e12, {}, cached=False)
NETWORKS = (
    ("compact", "s2d"),
    ("compact", "conv3"),
    ("resnet18", "cifar"),
    ("resnet18", "imagenet"),
    ("resnet34", "cifar"),
    ("resnet34", "imagenet"),
    ("mobilenet_v2", "cifar"),
    ("mobilenet_v2", "imagenet"),
)
STAGES = ("partition", "enhance", "split", "train_clean", "relabel_finetune")
BYTES = {"train": 28, "score": 20, "forward": 6}
# Images per second that we aim at, by machine: what training and scoring have to reach there.
TARGETS = {
    ("cpu", "compact", "s2d"): {"train": 1_500, "score": 1_000},  # two idle cores
    ("cuda", "resnet18", "cifar"): {"train": 65_000, "score": 40_000},
    ("cuda", "resnet18", "imagenet"): {"train": 350_000, "score": 500_000},
}


@dataclass(frozen=True)
class Cost:
    """What one image costs."""

    forward: float  # operations
    train: float
    gradient: float  # forward, and the gradient for the input alone
    elements: int  # that the convolutions put out
    parameters: int

    def flops(self, kind: str, masks: int = 1) -> float:
        """Return the operations of one image: `train`, `score` or `forward`."""
        return {"train": self.train, "score": self.gradient + masks * self.forward, "forward": self.forward}[kind]

    def floor(self, limits: Ceilings, masks: int = 1, **images: float) -> float:
        """Return the least seconds for so many images of each kind."""
        flops = sum(n * self.flops(kind, masks) for kind, n in images.items())
        moved = sum(n * self.elements * (BYTES[kind] + 6 * (masks - 1) * (kind == "score")) for kind, n in images.items())
        return limits.floor(flops, moved)


@cache
def cost(name: str, stem: str, size: int = 32, classes: int = 10, width: int = 32) -> Cost:
    """Count one image of a network."""
    model = network(describe(name, stem, size, classes, width)).to("meta")
    elements = 0

    def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal elements
        elements += output[0].numel()

    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Conv2d)]
    model(torch.empty(2, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    forward = _counted(lambda: model(_images(size)))
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules())
    # torch counts the weight gradient of a grouped convolution as if it were a full one.
    train = 3 * forward if grouped else _counted(lambda: model(_images(size)).sum().backward())
    model.requires_grad_(False)
    gradient = 2 * forward if grouped else _counted(lambda: model(_images(size).requires_grad_()).sum().backward())
    return Cost(forward, train, gradient, elements, sum(p.numel() for p in model.parameters()))


def _images(size: int) -> Tensor:
    return torch.empty(2, 3, size, size, device="meta")


def _counted(work: Callable[[], object]) -> float:
    from torch.utils.flop_counter import FlopCounterMode  # imports a compiler, a third of a second

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2  # of the two images: BatchNorm trains on no single one


def trained(recipe: Recipe, kept: int) -> int:
    """Return the images that a training on `kept` samples takes through the network."""
    batch = min(recipe.batch_size, kept)
    return recipe.passes(kept) * max(1, kept // batch) * batch


def passes(n: int, flagged: float = 0.05, params: Params | None = None) -> dict[str, dict[str, float]]:
    """Return the images that each stage of preset `default` trains on, scores and looks at.

    `enhance` is counted with the shares of its first round in all rounds; `split` with as many rounds as a set has in which all of what is
    taken out is found at once: one, and one more after it.

    Args:
        n: Samples.
        flagged: Share that `split` takes out.
        params: Other than those that we ship.
    """
    params = params or default_params()
    partition, enhance = params.group("partition", PartitionParams), params.group("enhance", EnhanceParams)
    finetune, kept = params.group("relabel_finetune", RelabelParams), int(n * (1 - flagged))
    trainings, clean, split = len(SIDES) * 2 * enhance.rounds, params.group("train_clean", Recipe), params.group("split", SplitParams)
    share = int((enhance.core + enhance.plain) * n / 2)
    looks = 1 + (flagged > 0 and split.rounds > 1)
    asked = split.groups * trained(split.recipe, int(n * (1 - ASIDE) * (1 - 1 / split.groups))) + trained(clean, n)
    asked += (looks - 1) * trained(clean, kept) + (flagged > 0) * 2 * ROUNDS * trained(enhance.recipe, int(n * OTHERS / 2))
    return {
        "partition": {"train": trained(partition.recipe, n), "score": n},
        "enhance": {"train": trainings * trained(enhance.recipe, share), "forward": trainings * n / 2},
        "split": {"train": asked, "forward": n * (1 + ASIDE * (split.groups - 1)) + looks * n},
        "train_clean": {"train": trained(clean, kept)},
        "relabel_finetune": {"forward": n, "train": trained(finetune.recipe, kept)},
    }


def works_with(stage: str, name: str, stem: str) -> Architecture:
    """Return the network that a stage of preset `default` computes with, where the model that goes out is `name` with `stem`."""
    about = describe(name, stem)
    return detects_with(default_params(), about) if stage in ("partition", "enhance", "split") else about.network


def stage_cost(stage: str, name: str, stem: str, size: int = 32) -> Cost:
    """Count one image of the network of a stage, see `works_with`."""
    used = works_with(stage, name, stem)
    return cost(used.name, used.stem, size, width=used.width)


def target(device: str, name: str, stem: str, images: dict[str, float]) -> float | None:
    """Return the seconds that we aim at for so many images; None where no target is set for this machine."""
    rates = TARGETS.get((device, name, stem))
    if rates is None or not images:
        return None
    rates = rates | {"forward": 3 * rates["score"]}  # a score is three passes forward
    return sum(n / rates[kind] for kind, n in images.items())


def main() -> None:
    """Print what an image costs, and the floor of every pass and stage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--measured", action="store_true", help="over what this machine reaches, instead of one H200")
    arguments = parser.parse_args()
    limits = ceilings(prepare().name) if arguments.measured else H200
    print(f"ceilings: {limits.flops / 1e12:,.2f} TF/s, {limits.bytes / 1e9:,.0f} GB/s; {arguments.n:,} images of {arguments.size} px\n")
    print(f"{'network':22}{'forward GF':>12}{'train GF':>10}{'M param.':>10}{'train s':>10}{'score s':>10}{'forward s':>10}")
    for name, stem in NETWORKS:
        c = cost(name, stem, arguments.size)
        seconds = "".join(f"{c.floor(limits, **{kind: arguments.n}):10.3g}" for kind in BYTES)
        print(f"{name + ' ' + stem:22}{c.forward / 1e9:12.4f}{c.train / 1e9:10.4f}{c.parameters / 1e6:10.2f}{seconds}")
    print(f"\n{'floor s, default':22}" + "".join(f"{stage:>18}" for stage in STAGES) + f"{'all':>10}")
    for name, stem in NETWORKS:
        found = [stage_cost(stage, name, stem, arguments.size).floor(limits, **images) for stage, images in passes(arguments.n).items()]
        print(f"{name + ' ' + stem:22}" + "".join(f"{seconds:18.3g}" for seconds in found) + f"{sum(found):10.3g}")


if __name__ == "__main__":
    main()
