"""What a part of a class has that the rest lacks, and what it does to images of other classes.

The mean of a part minus the mean of the rest is added to images of every other class. A trigger flips them to the class, content does not;
and a trigger flips images of *every* class, or of those that the attacker chose, while what a class looks like flips its neighbours. So the
flip rate is kept for each class that the images are of: its mean over the lowest of these classes is high for a trigger that works on all
of them, its mean where it works on many, its largest value where it works on one. And poison of one class alone is asked on the class that
its part looks like to networks that have never seen the class of the part: it comes from there. What a clean class looks like in part
drives images of that class further away, since the difference is the look of that class itself.

Images are brought to one light first, each to the same mean and contrast. Without that, a part of well-lit photographs differs from the
rest by brightness, which flips as many images as a trigger does. In one light the trigger alone is left, also where most of the class has it:
a blended picture changes the contrast of what it is blended into.

Parts are found without the truth: the margins of `enhance` cut in the middle of their range, the ends of these margins, two clusters and
the ends of two principal axes of the features of a network that was trained on everything. Choosing the best of them raises the flip rate
of clean classes, too. So the part is chosen on some images and measured on others, and all classes are treated alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from meca.method.content import lower_mean
from meca.method.enhance import TAILS
from meca.training.images import Images, chosen
from meca.training.trainer import as_input

__all__ = ["LEAST", "REACHES", "SURE", "Flips", "Light", "Part", "Probes", "flips_of_parts", "light_of", "mean_in_light", "parts_of", "probes_of"]

REACHES = ("all", "many", "one", "source")  # on how many of the other classes a trigger works
LEAST = 6  # samples of a part, and of the rest: the mean of fewer shows single images
AXES = 2  # principal axes of the features whose ends are asked about
CLUSTERED = 10  # principal axes in which two clusters are looked for
STARTS: Any = 2  # of the clustering; the better one is taken
CHUNK = 256  # images whose means are summed at once
CHOOSE = 0.25  # of the images of one class: so many choose the part whose reach `source` is measured on the rest
FOREIGN = 0.1  # share of samples that look far: a part and the rest that differ by more have different contents,
SURE = 3.0  # if that is so many standard deviations
DARK = 0.02  # least contrast, of pixels in [0, 1]: below it one light would be all noise

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """A part of a class."""

    name: str
    rows: Bools  # [m] of the class: in the part
    share: float = 0.0  # of the class that has what the part has, see `_oriented`


@dataclass(frozen=True)
class Light:
    """What brings every image to the same mean and contrast: x -> x * scale + shift."""

    scale: Tensor  # float32 [n]
    shift: Tensor  # float32 [n]


@dataclass(frozen=True)
class Flips:
    """What the best part of a class does to images of other classes, measured on images that it was not chosen on."""

    rate: dict[str, float]  # by reach, in [0, 1]: rise of the probability of the class
    part: dict[str, Part | None]  # by reach: the part that was best on other images; None where no part could be asked
    source: int  # class that the part of reach `source` looks like, and the images are of; -1 where no part looks like one


def light_of(images: Images) -> Light:
    """Return what brings images, uint8 [n h w c], to the median mean and contrast of all."""
    mean, deviation = torch.empty(2, len(images), device=images.device)  # small results between scratch memory would split the heap
    for i, chunk in enumerate(images.split(CHUNK)):
        flat, here = chunk.float().flatten(1) / 255, slice(i * CHUNK, (i + 1) * CHUNK)
        mean[here], deviation[here] = flat.mean(1), flat.std(1, correction=0).clamp(min=DARK)
    scale = deviation.median() / deviation
    return Light(scale, mean.median() - mean * scale)


def parts_of(features: Floats, margins: Mapping[str, Floats], end: float, seed: int) -> list[Part]:
    """Return the parts of one class that are asked about.

    Args:
        features: [m f] of a network that was trained on everything.
        margins: By name [m].
        end: Share of the class that an end is.
        seed: Of the clustering.
    """
    from sklearn.cluster import KMeans

    m = len(features)
    parts: list[Part] = []
    orders: dict[str, Floats] = dict(margins)
    for name, margin in margins.items():
        low, high = np.quantile(margin, TAILS)
        parts += [Part(f"{name} above", margin > (low + high) / 2), Part(f"{name} below", margin <= (low + high) / 2)]
    centred = features - features.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    orders |= {f"axis {k}": left[:, k] for k in range(min(AXES, left.shape[1]))}
    axes = left[:, :CLUSTERED] * sizes[:CLUSTERED]
    if m >= 2 * LEAST and sizes[0] > 0:
        first = KMeans(2, n_init=STARTS, random_state=seed).fit(axes).labels_ == 1
        parts += [Part("cluster one", first), Part("cluster two", ~first)]
    for name, values in orders.items():
        rank = np.argsort(np.argsort(values, kind="stable"), kind="stable") / m
        parts += [Part(f"{name} top", rank >= 1 - end), Part(f"{name} bottom", rank < end)]
    return [part for part in parts if min(part.rows.sum(), m - part.rows.sum()) >= LEAST]


@dataclass(frozen=True)
class Probes:
    """Images of all classes that differences are added to."""

    images: Images  # uint8 [b h w c]
    sources: Ints  # [b], their classes
    before: Tensor  # float32 [b classes], what the model sees in them

    def take(self, some: Bools) -> "Probes":
        """Return some of them."""
        rows = torch.from_numpy(np.flatnonzero(some)).to(self.before.device)
        return Probes(chosen(self.images, rows), self.sources[some], self.before[rows])


@torch.inference_mode()
def _see(model: nn.Module, images: Images, added: Tensor | None = None) -> Tensor:
    seen = []
    for chunk in images.split(CHUNK):
        x = as_input(chunk)
        seen.append(model(x if added is None else (x + added).clamp(0, 1)).softmax(1))
    return torch.cat(seen)


def probes_of(model: nn.Module, images: Images, labels: Ints, rows: Sequence[Ints], each: int, skip: int) -> Probes:
    """Return `each` images of every class, those behind the first `skip` of its rows.

    Args:
        model: In eval mode.
        images: uint8 [n h w c].
        labels: int64 [n].
        rows: Per class its rows in an order drawn by lot.
        each: Images of a class, at most.
        skip: Rows of every class that are left to others; a class that has too few of them gives what it has.
    """
    drawn = np.concatenate([r[skip : skip + each] if len(r) >= skip + each else r[-each:] for r in rows])
    tried = chosen(images, torch.from_numpy(drawn).to(images.device))
    return Probes(tried, labels[drawn], _see(model, tried))


def _profile(model: nn.Module, probes: Probes, difference: Tensor, label: int, classes: int) -> Floats:
    """Return how much a difference raises the probability of a class, by class of the images: float64 [classes], NaN for its own."""
    rise = (_see(model, probes.images, difference)[:, label] - probes.before[:, label]).clamp(min=0).cpu().double().numpy()
    count = np.bincount(probes.sources, minlength=classes).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        profile = np.bincount(probes.sources, rise, minlength=classes) / count
    profile[label] = np.nan
    return profile


def _reach(profile: Floats, reach: str, share: float) -> float:
    if not np.isfinite(profile).any():
        return 0.0
    return lower_mean(profile, share) if reach == "all" else float(np.nanmean(profile)) if reach == "many" else float(np.nanmax(profile))


def flips_of_parts(
    model: nn.Module,
    images: Images,
    light: Light,
    label: int,
    mine: Ints,
    parts: Sequence[Part],
    elsewhere: Tensor,
    far: Bools,
    looks: Ints,
    probes: tuple[Probes, Probes],
    of_source: Callable[[int], Probes],
    share: float,
) -> Flips:
    """Return what the parts of one class do to images of other classes.

    Args:
        model: Trained on everything, in eval mode.
        images: uint8 [n h w c].
        light: Of all images.
        label: The class.
        mine: Its rows.
        parts: See `parts_of`; of `mine`.
        elsewhere: float32 [d], mean of the images of all other classes in one light.
        far: bool [m], of `mine`, samples in which networks that never saw the class see one of the classes that it is least like.
        looks: int64 [m], of `mine`, the class that such networks see in each sample; -1 where it is typical of none.
        probes: Images that parts are chosen on, and images that the best are measured on.
        of_source: Returns more images of one class, to measure reach `one` on, and to choose and measure reach `source` on.
        share: Share of the other classes, the lowest, that reach `all` is a mean over.
    """
    first, second = probes
    classes = first.before.shape[1]
    parts, differences = _oriented(images, light, mine, parts, elsewhere, far) if parts else ([], [])
    if not parts:
        return Flips(dict.fromkeys(REACHES, 0.0), dict.fromkeys(REACHES), -1)
    screened = [_profile(model, first, d, label, classes) for d in differences]
    best = {reach: max(range(len(parts)), key=lambda i, reach=reach: (_reach(screened[i], reach, share), -i)) for reach in REACHES[:3]}
    measured = {i: _profile(model, second, differences[i], label, classes) for i in {best["all"], best["many"]}}
    rate = {reach: _reach(measured[best[reach]], reach, share) for reach in ("all", "many")}
    alone = screened[best["one"]]
    most = int(np.nanargmax(alone)) if np.isfinite(alone).any() else -1
    rate["one"] = 0.0 if most < 0 else _rise(model, of_source(most), differences[best["one"]], label)
    picked: dict[str, Part | None] = {reach: parts[i] for reach, i in best.items()}
    rate["source"], picked["source"], source = _of_source(model, label, parts, differences, looks, of_source, classes)
    return Flips(rate, picked, source)


def _of_source(
    model: nn.Module, label: int, parts: Sequence[Part], differences: Sequence[Tensor], looks: Ints, of_source: Callable[[int], Probes], classes: int
) -> tuple[float, Part | None, int]:
    """Return what the best part does to images of the class that it looks like, the part, and that class; 0, None and -1 where there is none."""
    found: list[tuple[float, int, int]] = []
    for i, part in enumerate(parts):
        source = _look(part.rows, looks, label, classes)
        if source >= 0 and len(probes := of_source(source).images) > 1:
            found.append((_rise(model, of_source(source).take(np.arange(len(probes)) < CHOOSE * len(probes)), differences[i], label), i, source))
    if not found:
        return 0.0, None, -1
    _, i, source = max(found, key=lambda each: (each[0], -each[1]))
    probes = of_source(source)
    return _rise(model, probes.take(np.arange(len(probes.images)) >= CHOOSE * len(probes.images)), differences[i], label), parts[i], source


def _look(part: Bools, looks: Ints, label: int, classes: int) -> int:
    """Return the class that a part looks like more than its rest does, beyond chance; -1 where there is none."""
    inside, outside, both = (np.bincount(looks[rows & (looks >= 0)], minlength=classes) / rows.sum() for rows in (part, ~part, part | ~part))
    chance = np.sqrt(np.maximum(both, 1 / len(part)) * (1 / part.sum() + 1 / (~part).sum()))
    more = inside - outside
    more[label] = -1.0
    most = int(more.argmax())
    return most if more[most] > SURE * chance[most] else -1


def _rise(model: nn.Module, probes: Probes, difference: Tensor, label: int) -> float:
    return float((_see(model, probes.images, difference)[:, label] - probes.before[:, label]).clamp(min=0).mean())


def mean_in_light(images: Images, light: Light, rows: Ints, weights: Tensor) -> Tensor:
    """Return weighted sums of images in one light, float32 [k d], a row for each row of the weights, float32 [k m]."""
    place = torch.from_numpy(rows).to(images.device)
    total = torch.zeros(len(weights), images.shape[1:].numel(), device=images.device)
    for i in range(0, len(place), CHUNK):
        some = place[i : i + CHUNK]
        flat = images[some].flatten(1).float() / 255 * light.scale[some, None] + light.shift[some, None]
        total += weights[:, i : i + CHUNK].to(images.device) @ flat
    return total


def _oriented(images: Images, light: Light, mine: Ints, parts: Sequence[Part], elsewhere: Tensor, far: Bools) -> tuple[list[Part], list[Tensor]]:
    """Return the parts that have something, rather than lack it, and the mean of each minus that of the rest, float32 [c h w] each.

    A sine that is taken away is a sine, too, and flips as many images, so it cannot be told from the flip rate which of the two was poisoned.
    Poison with wrong labels looks like other classes, whatever its trigger, and then that decides. Otherwise both have the content of the
    class, it cancels in the difference, and the one that lacks the trigger is the one that is like the other classes along it. Either way,
    how much of it the rest has says how much of the class has what the part has.
    """
    masks = torch.from_numpy(np.stack([part.rows for part in parts])).float()
    inside = mean_in_light(images, light, mine, masks / masks.sum(1, keepdim=True))
    outside = mean_in_light(images, light, mine, (1 - masks) / (1 - masks).sum(1, keepdim=True))
    differences = inside - outside
    ahead = ((inside - elsewhere) * differences).sum(1)
    behind = ((outside - elsewhere) * differences).sum(1)
    kept: list[Part] = []
    found: list[Tensor] = []
    of_all = float(far.mean())
    for part, d, a, b in zip(parts, differences, ahead.tolist(), behind.tolist(), strict=True):
        foreign, rest = float(far[part.rows].mean()), float(far[~part.rows].mean())
        chance = float(np.sqrt(of_all * (1 - of_all) * (1 / part.rows.sum() + 1 / (~part.rows).sum())))
        wrong = abs(foreign - rest) > max(FOREIGN, SURE * chance)
        if (foreign < rest) if wrong else (a < abs(b)):
            continue
        own, of_rest = float(part.rows.mean()), rest / foreign if wrong else max(0.0, b) / max(a, 1e-12)
        kept.append(Part(part.name, part.rows, own + (1 - own) * min(1.0, of_rest)))
        found.append(d.view(images.shape[1:]).permute(2, 0, 1))
    return kept, found
