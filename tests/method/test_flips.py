"""What a part of a class does to other images: a trigger flips them, brightness does not, and a part that lacks it is not one that has it."""

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from meca.method.flips import LEAST, REACHES, Flips, Light, Part, Probes, flips_of_parts, light_of, mean_in_light, parts_of, probes_of

CLASSES, EACH, SIZE, LABEL = 5, 40, 8, 1


class Reader(nn.Module):
    """Sees label 1 in the images on which a pattern is found, of either sign; `of` says from which images it starts, by their first pixel."""

    def __init__(self, pattern: Tensor, of: float | None = None, linear: bool = False) -> None:
        super().__init__()
        self.pattern, self.of, self.linear = (pattern - pattern.mean()) / pattern.norm() ** 2, of, linear

    def forward(self, x: Tensor) -> Tensor:
        found = (x * self.pattern).sum((1, 2, 3))
        seen = (found if self.linear else found.abs()) > 0.2
        if self.of is not None:
            seen &= (x[:, 0, 0, 0] - self.of).abs() < 0.04
        logits = torch.zeros(len(x), CLASSES)
        logits[:, LABEL] = torch.where(seen, 12.0, -12.0)
        return logits


class Bright(nn.Module):
    """Sees label 1 in bright images."""

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), CLASSES)
        logits[:, LABEL] = torch.where(x.mean((1, 2, 3)) > 0.5, 12.0, -12.0)
        return logits


def noise(seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Return uint8 [n h w c], a chequered field in noise with a first pixel that tells the class, and the labels."""
    rng = torch.Generator().manual_seed(seed)
    labels = np.repeat(np.arange(CLASSES), EACH)
    field = 60 + 80 * ((torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2)[:, :, None]
    images = field + torch.randint(-6, 7, (CLASSES * EACH, SIZE, SIZE, 3), generator=rng)
    images[:, 0, 0] = 40 * torch.from_numpy(labels)[:, None]
    return images.to(torch.uint8), labels


def square() -> Tensor:
    pattern = torch.zeros(3, SIZE, SIZE)
    pattern[:, 5:, 5:] = 0.45
    return pattern


def sine() -> Tensor:
    return (0.2 * torch.sin(2 * torch.pi * torch.arange(SIZE) / 4)).expand(3, SIZE, SIZE).clone()


def planted(pattern: Tensor, count: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return the set with a pattern in the first images of class 1, and which of that class have it."""
    images, labels = noise()
    rows = np.flatnonzero(labels == LABEL)[:count]
    images[rows] = (images[rows] + 255 * pattern.permute(1, 2, 0)).round().clamp(0, 255).to(torch.uint8)
    return images, labels, np.arange(EACH) < count


def ask(
    model: nn.Module,
    images: Tensor,
    labels: np.ndarray,
    parts: Sequence[Part],
    light: Light | None = None,
    share: float = 0.5,
    far: np.ndarray | None = None,
    looks: np.ndarray | None = None,
) -> Flips:
    """Return what the parts of class 1 do."""
    light = light or light_of(images)
    rows = [np.flatnonzero(labels == c) for c in range(CLASSES)]
    others = np.flatnonzero(labels != LABEL)
    elsewhere = mean_in_light(images, light, others, torch.full((1, len(others)), 1 / len(others)))[0]
    probes = probes_of(model, images, labels, rows, 6, 0), probes_of(model, images, labels, rows, 12, 6)

    def of_source(source: int) -> Probes:
        return probes_of(model, images, labels, [r if c == source else r[:0] for c, r in enumerate(rows)], 12, 6)

    return flips_of_parts(
        model,
        images,
        light,
        LABEL,
        rows[LABEL],
        parts,
        elsewhere,
        np.zeros(len(rows[LABEL]), dtype=bool) if far is None else far,
        np.full(len(rows[LABEL]), -1) if looks is None else looks,
        probes,
        of_source,
        share,
    )


@pytest.mark.parametrize("pattern", [square(), sine()], ids=["square", "sine"])
def test_a_planted_pattern_flips_images_and_the_part_that_has_it_is_told_from_the_one_that_lacks_it(pattern: Tensor) -> None:
    """A sine that is taken away is a sine, too: by what they flip the two cannot be told apart."""
    images, labels, has = planted(pattern, 12)
    parts = [Part("lacks", ~has), Part("has", has), Part("chance", np.arange(EACH) % 2 == 0)]
    found = ask(Reader(pattern), images, labels, parts, looks=np.where(has, 3, -1))
    for reach in REACHES:
        part = found.part[reach]
        assert found.rate[reach] > 0.9 and part is not None and part.name == "has", reach


@pytest.mark.parametrize("pattern", [square(), sine()], ids=["square", "sine"])
@pytest.mark.parametrize("count", [8, 20, 32])
def test_a_part_says_how_much_of_the_class_has_what_it_has(pattern: Tensor, count: int) -> None:
    """Also where it is the half of that, and where most of the class has it."""
    images, labels, has = planted(pattern, count)
    for part in (Part("all of it", has), Part("half of it", has & (np.arange(EACH) % 2 == 0))):
        if part.rows.sum() >= LEAST or count > 8:
            best = ask(Reader(pattern), images, labels, [part]).part["all"]
            assert best is not None and best.share == pytest.approx(count / EACH, abs=0.12), part.name


def test_in_one_light_brightness_and_contrast_flip_nothing() -> None:
    images, labels = noise()
    bright = (images.float() * 1.4 + 20).round().to(torch.uint8)
    mine = np.flatnonzero(labels == LABEL)
    lit = images.clone()
    lit[mine[:20]] = bright[mine[:20]]
    parts, as_they_are = [Part("bright", np.arange(EACH) < 20)], Light(torch.ones(len(lit)), torch.zeros(len(lit)))
    assert ask(Bright(), lit, labels, parts, as_they_are).rate["all"] > 0.9, "or this test says nothing"
    assert max(ask(Bright(), lit, labels, parts).rate.values()) == 0.0
    light = light_of(lit)
    means = [mean_in_light(lit, light, rows, torch.full((1, 20), 1 / 20))[0] for rows in (mine[:20], mine[20:])]
    assert float((means[0] - means[1]).abs().max()) < 0.1 and abs(float((means[0] - means[1]).mean())) < 1e-5


def test_in_one_light_each_image_has_the_mean_and_the_contrast_of_the_median_and_a_flat_one_stays_flat() -> None:
    images, _ = noise()
    images = (images.float() * torch.linspace(0.5, 2, len(images))[:, None, None, None]).round().clamp(0, 255).to(torch.uint8)
    images[3] = 200
    light = light_of(images)
    flat = images.flatten(1).float() / 255 * light.scale[:, None] + light.shift[:, None]
    rest = torch.arange(len(images)) != 3
    assert torch.allclose(flat.mean(1), flat.mean(1)[0].expand(len(flat)), atol=1e-4)
    assert torch.allclose(flat[rest].std(1), flat[0].std().expand(int(rest.sum())), atol=1e-3)
    assert float(flat[3].std()) < 1e-3 and torch.isfinite(light.scale).all() and torch.isfinite(light.shift).all()


def test_each_reach_sees_its_trigger() -> None:
    pattern = square()
    images, labels, has = planted(pattern, 12)
    parts = [Part("has", has)]
    looks = np.where(has, 3, np.arange(EACH) % CLASSES)
    everywhere = ask(Reader(pattern), images, labels, parts, looks=looks)
    of_one = ask(Reader(pattern, of=3 * 40 / 255), images, labels, parts, looks=looks)
    nowhere = ask(Reader(sine()), images, labels, parts, looks=looks)
    assert min(everywhere.rate.values()) > 0.9
    assert (
        of_one.rate["all"] < 0.01
        and of_one.rate["many"] == pytest.approx(0.25, abs=0.05)
        and min(of_one.rate["one"], of_one.rate["source"]) > 0.9
        and of_one.source == 3
    )
    assert max(nowhere.rate.values()) < 0.05
    # The class that the part looks like is asked, and no other one: what flips something else is no poison of that class.
    of_another = ask(Reader(pattern, of=2 * 40 / 255), images, labels, parts, looks=looks)
    assert of_another.rate["many"] == pytest.approx(0.25, abs=0.05) and of_another.rate["one"] > 0.9
    assert of_another.rate["source"] < 0.01 and of_another.source == 3
    by_chance = ask(Reader(pattern), images, labels, parts, looks=np.arange(EACH) % CLASSES)
    assert (by_chance.rate["source"], by_chance.part["source"], by_chance.source) == (0.0, None, -1), (
        "what looks no other way than the rest has no source"
    )
    assert ask(Reader(pattern, of=3 * 40 / 255), images, labels, parts, share=1.0).rate["all"] == pytest.approx(of_one.rate["many"])


def test_the_part_is_chosen_on_other_images_than_it_is_measured_on() -> None:
    images, labels = noise()
    rows = [np.flatnonzero(labels == c) for c in range(CLASSES)]
    model = Bright()
    first, second = probes_of(model, images, labels, rows, 6, 0), probes_of(model, images, labels, rows, 12, 6)
    assert np.bincount(first.sources).tolist() == [6] * CLASSES and np.bincount(second.sources).tolist() == [12] * CLASSES
    seen = {image.numpy().tobytes() for image in first.images[:]}
    assert not seen & {image.numpy().tobytes() for image in second.images[:]}
    few = probes_of(model, images, labels, [r[:3] for r in rows], 12, 6)
    assert np.bincount(few.sources).tolist() == [3] * CLASSES, "a class that has too few gives what it has"


def test_without_a_part_nothing_flips() -> None:
    images, labels = noise()
    found = ask(Bright(), images, labels, [])
    assert (found.rate, found.part, found.source) == (dict.fromkeys(REACHES, 0.0), dict.fromkeys(REACHES), -1)


NUMBERS = st.floats(-5, 5)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.data(), m=st.integers(1, 40), end=st.floats(0.01, 0.49))
def test_parts_and_what_is_left_of_them_are_never_single_images(data: st.DataObject, m: int, end: float) -> None:
    features = data.draw(hnp.arrays(np.float64, (m, 3), elements=st.integers(-3, 3).map(float)))
    margins = {side: data.draw(hnp.arrays(np.float64, m, elements=NUMBERS)) for side in ("low", "ahead")}
    parts = parts_of(features, margins, end, 0)
    assert all(LEAST <= part.rows.sum() <= m - LEAST and part.rows.shape == (m,) for part in parts)
    assert len({part.name for part in parts}) == len(parts) and (m >= 2 * LEAST or not parts)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
def test_identical_features_and_margins_are_cut_without_a_complaint(value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = parts_of(np.full((30, 7), value), {"low": np.full(30, value)}, 0.3, 0)
    assert not {"low above", "low below"} & {part.name for part in parts}


def test_what_lies_apart_is_a_part() -> None:
    rng = np.random.default_rng(0)
    odd = np.arange(60) < 10
    features = rng.normal(0, 1, (60, 12)) + 9.0 * odd[:, None]
    margins = {"low": np.where(odd, 4.0, -4.0) + rng.normal(0, 0.3, 60)}
    found = {part.name: part.rows for part in parts_of(features, margins, 0.1, 0)}
    assert np.array_equal(found["low above"], odd) and np.array_equal(found["low below"], ~odd)
    assert any(np.array_equal(found[f"cluster {k}"], odd) for k in ("one", "two"))
    assert found["low top"].sum() == 6 and not (found["low top"] & ~odd).any() and not (found["low bottom"] & odd).any()


def test_where_a_part_looks_like_other_classes_that_decides_and_not_how_strong_the_class_looks() -> None:
    """A class whose own pattern is stronger than the trigger lies further from the other classes than the poison does."""
    images, labels, has = planted(square(), 12)
    own = np.flatnonzero(labels == LABEL)
    images[own[~has], :, ::2] = 250  # what the class looks like; the poison looks like the other classes
    parts = [Part("lacks", ~has), Part("has", has)]
    by_strength = ask(Reader(square()), images, labels, parts).part["all"]
    by_content = ask(Reader(square()), images, labels, parts, far=has).part["all"]
    assert by_strength is not None and by_strength.name == "lacks", "or this test says nothing"
    assert by_content is not None and by_content.name == "has" and by_content.share == pytest.approx(has.mean())
