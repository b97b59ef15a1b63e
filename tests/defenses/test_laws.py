"""The laws of every detector of the registry. A new one joins by its entry there."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from meca.defenses import DETECTORS, Samples, Scene
from tests.defenses.scenes import apart, scene

every_detector = pytest.mark.parametrize("name", DETECTORS)
TRAINED = {"isolation", "transforms"}  # they draw the order of a training over the rows, so other rows are another training


def bytes_of(made: Scene) -> list[bytes]:
    tensors = [made.train.images, made.train.labels, *made.model.state_dict().values()]
    return [tensor.numpy().tobytes() for tensor in tensors]


def usual(name: str, made: Scene, truth: np.ndarray) -> float:
    """Return the AUROC, of trainings the median over five seeds: in so few steps one of them may diverge, for they ascend, too."""
    seeds = range(1, 6) if name in TRAINED else (made.seed,)
    return float(np.median([apart(DETECTORS[name](replace(made, seed=seed)), truth) for seed in seeds]))


@every_detector
def test_one_seed_gives_the_same_bytes_whatever_was_drawn_before(name):
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)
        judgement = DETECTORS[name](scene()[0])
        found.append((judgement.suspicion.tobytes(), judgement.flagged.tobytes()))
    assert found[0] == found[1]


@every_detector
def test_what_a_detector_looks_at_stays_as_it_was(name):
    made, _ = scene()
    before = bytes_of(made)
    DETECTORS[name](made)
    assert bytes_of(made) == before and not made.model.training
    assert not any(module._forward_pre_hooks for module in made.model.modules())  # pyright: ignore[reportPrivateUsage]


@every_detector
@pytest.mark.parametrize("n", [30, 129])  # the second one leaves a batch of one sample
def test_every_sample_has_a_finite_suspicion_and_a_flag(name, n):
    made, _ = scene(n, 4)
    judgement = DETECTORS[name](made)
    assert judgement.suspicion.shape == judgement.flagged.shape == (n,)
    assert judgement.suspicion.dtype == np.float64 and judgement.flagged.dtype == np.bool_ and np.isfinite(judgement.suspicion).all()


@every_detector
def test_images_that_are_all_alike_are_judged_too(name):
    made, _ = scene(60, 0)
    made = replace(made, train=Samples(torch.full_like(made.train.images, 90), made.train.labels))
    assert np.isfinite(DETECTORS[name](made).suspicion).all()


@every_detector
def test_permuting_the_samples_permutes_what_is_said_about_them(name):
    made, truth = scene()
    order = np.random.default_rng(4).permutation(len(truth))
    moved = replace(made, train=Samples(made.train.images[order], made.train.labels[order]))
    judgement, other = DETECTORS[name](made), DETECTORS[name](moved)
    if name in TRAINED:  # another training, which finds the same ones
        assert usual(name, moved, truth[order]) > 0.95
        return
    assert np.allclose(other.suspicion, judgement.suspicion[order], rtol=1e-4, atol=1e-6)
    assert (other.flagged != judgement.flagged[order]).sum() <= 2  # two that are equal but for rounding may change places


@every_detector
def test_a_planted_cluster_is_found_by_the_papers_own_rule(name):
    made, truth = scene()
    judgement = DETECTORS[name](made)
    assert usual(name, made, truth) > 0.95
    assert judgement.flagged[truth].mean() > 4 * judgement.flagged[~truth].mean()


@every_detector
def test_little_is_flagged_where_nothing_was_planted(name):
    made, _ = scene(poisoned=0)
    assert DETECTORS[name](made).flagged.mean() <= 0.05


@every_detector
def test_a_detector_sees_no_more_than_it_says_it_needs(name):
    made, truth = scene()
    more = replace(made, clean=Samples(made.train.images[~truth][:20], made.train.labels[~truth][:20]))
    if "rate" not in DETECTORS[name].told:
        more = replace(more, rate=0.9)
    assert DETECTORS[name](more).suspicion.tobytes() == DETECTORS[name](made).suspicion.tobytes()
    assert DETECTORS[name].record(more)["clean_samples"] == 0, "none of them needs clean data"


@every_detector
def test_the_paper_is_named_with_its_authors_and_its_year(name):
    assert re.match(r'[A-Z][\w.\- ]+(, [A-Z]\w+)*, ".+", .*\b(19|20)\d\d\b', DETECTORS[name].paper), DETECTORS[name].paper


@every_detector
def test_a_copy_of_the_network_gives_the_same_answer(name):
    made, _ = scene()
    assert DETECTORS[name](replace(made, model=copy.deepcopy(made.model))).suspicion.tobytes() == DETECTORS[name](made).suspicion.tobytes()
