"""`enhance`: nobody is judged by a network that was taught it, and without unlearning it is plain training."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meca.errors import MecaError
from meca.method.enhance import SIDES, EnhanceParams, Round, TwoOutputs, folds, in_rounds, suspects_first, two_outputs, unlearn, widen
from meca.method.partition import PartitionParams, choose, signals, suspicion
from meca.models import Architecture, Network
from meca.training.engine import Data, Session, predict
from meca.training.seeds import generator
from meca.training.trainer import Trainer, as_input
from tests.making import settings
from tests.method.tiny import CLASSES, CPU, copied, description, network, recipe, same, samples, unchanged
from tests.models.test_models import FITTING

PARAMS = dataclasses.replace(settings().group("enhance", EnhanceParams), recipe=recipe(epochs=1), rounds=1)
KNOWN = Network(network(), description())
PAPER = dataclasses.replace(settings(preset="paper").group("enhance", EnhanceParams), recipe=recipe(epochs=2))
SUSPICIOUS = torch.rand(64, generator=generator("suspicious"))


def enhanced(
    images: Tensor | None = None, suspicious: Tensor = SUSPICIOUS, side: str = "low", labels: Tensor | None = None, **changes: Any
) -> TwoOutputs:
    own_images, own_labels = samples()
    params = dataclasses.replace(PARAMS, **changes)
    images, labels = own_images if images is None else images, own_labels if labels is None else labels
    return two_outputs(Session(0, CPU), KNOWN, Data(images, labels), suspicious, params, side)


def half() -> Tensor:
    """Return the fold that is held out first."""
    return folds(samples()[1], generator(0, "enhance", "folds"))


def test_the_sides_suspect_the_fast_learnt_samples_and_either_end_of_the_axis() -> None:
    suspicious, axis = torch.tensor([0.1, 0.9, 0.5], dtype=torch.float64), torch.tensor([2.0, -1.0, -1.5])
    first = {side: int(order.argmax()) for side, order in suspects_first(suspicious, axis).items()}
    assert first == {"low": 1, "ahead": 0, "behind": 2} and tuple(first) == SIDES


def test_folds_are_halves_of_every_class_and_depend_on_their_generator_alone() -> None:
    labels = samples(65)[1]
    torch.manual_seed(1)
    found = folds(labels, generator("a"))
    torch.manual_seed(2)
    assert torch.equal(found, folds(labels, generator("a"))) and not torch.equal(found, folds(labels, generator("b")))
    for c in range(CLASSES):
        assert int(found[labels == c].sum()) == int((labels == c).sum()) // 2


def test_a_set_of_which_a_fold_teaches_nothing_is_survived() -> None:
    images, labels = samples(64)
    few = torch.stack([torch.nonzero(labels == c)[0, 0] for c in range(3)])  # one sample of each class: all are in one fold
    found = enhanced(images[few], SUSPICIOUS[few], labels=labels[few], rounds=2)
    assert torch.isfinite(found.margin).all() and found.margin.shape == found.called.shape == (3,)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("side", SIDES)
def test_the_margin_of_a_sample_never_comes_from_a_network_that_was_taught_it(side: str, first: bool) -> None:
    held = half() if first else ~half()
    images, _ = samples()
    before = enhanced(side=side)
    rows = torch.nonzero(held)[:, 0]
    other = images.clone()
    other[rows[1:]] = 255 - other[rows[1:]]  # all of its fold but one sample
    changed_pixels = enhanced(other, side=side)
    shuffled = SUSPICIOUS.clone()
    shuffled[rows] = shuffled[rows.flip(0)]
    changed_ranks = enhanced(suspicious=shuffled, side=side)
    assert torch.allclose(changed_pixels.margin[rows[0]], before.margin[rows[0]], atol=1e-5)
    assert torch.equal(changed_ranks.margin[held], before.margin[held])
    assert not torch.allclose(changed_ranks.margin[~held], before.margin[~held], atol=1e-3), "the other fold was taught by it"


def test_labels_of_the_held_fold_teach_nothing() -> None:
    _, labels = samples()
    held = half()
    rows = torch.nonzero(held & (labels == 0))[:, 0]
    results = []
    for moved in (rows[:4], rows[4:]):  # as many of the class either way, so that the folds keep their sizes
        suspicious = SUSPICIOUS.clone()
        suspicious[moved] += 5
        results.append(enhanced(suspicious=suspicious).margin[held])
    assert torch.equal(*results)


@pytest.mark.parametrize("side", SIDES)
def test_two_runs_have_the_same_bits_whatever_the_global_state(side: str) -> None:
    torch.manual_seed(1)
    first = enhanced(side=side)
    torch.manual_seed(2)
    second = enhanced(side=side)
    assert torch.equal(first.margin, second.margin) and torch.equal(first.called, second.called) and same(first.model, second.model)


def test_the_network_of_partition_and_the_inputs_are_left_alone() -> None:
    model, (images, labels) = network(), samples()
    before, kept = copied(model), (images.clone(), labels.clone(), SUSPICIOUS.clone())
    two_outputs(Session(0, CPU), Network(model, description()), Data(images, labels), SUSPICIOUS, PARAMS, "low")
    assert unchanged(model, before)
    assert all(torch.equal(a, b) for a, b in zip((images, labels, SUSPICIOUS), kept, strict=True))


def test_a_sample_is_called_suspect_only_with_a_margin_above_zero_and_the_model_has_two_outputs_a_class() -> None:
    found = enhanced(rounds=2)
    assert found.margin.isfinite().all() and found.margin.dtype == torch.float32
    assert (found.margin[found.called] > 0).all()
    assert predict(found.model, samples()[0]).shape == (64, 2 * CLASSES)


@pytest.mark.parametrize("side", SIDES)
def test_a_planted_white_corner_gets_the_highest_margins_of_its_class_from_the_side_that_suspects_it(side: str) -> None:
    images, labels = samples(256)
    planted = torch.nonzero(labels == 1)[:, 0][:16]
    images[planted, -3:, -3:] = 255
    seeds = torch.zeros(256)
    seeds[planted[:12]] = 1.0  # an imperfect start: a quarter of the poison is missed, as are four clean samples
    seeds[torch.nonzero(labels == 1)[:, 0][40:44]] = 1.0
    params = dataclasses.replace(PARAMS, rounds=2, core=0.25, recipe=recipe(epochs=12))
    margin = two_outputs(Session(0, CPU), KNOWN, Data(images, labels), seeds, params, side).margin
    mine = torch.nonzero(labels == 1)[:, 0]
    top = mine[margin[mine].argsort(descending=True)[:16]]
    assert len(set(top.tolist()) & set(planted.tolist())) > 12, "more than were seeded"


@pytest.mark.parametrize("killed_after", range(4))
def test_a_killed_enhancement_continues_to_the_same_bits_and_the_same_story(killed_after: int, tmp_path: Path) -> None:
    (images, labels), params = samples(), dataclasses.replace(PARAMS, rounds=2)

    class Killed(BaseException):
        pass

    def run(folder: Path, stop: int) -> tuple[TwoOutputs | None, list[Any]]:
        said: list[Any] = []

        def note(*values: Any) -> None:
            said.append(values)
            if values[0] == stop:
                raise Killed

        try:
            return two_outputs(Session(0, CPU, folder, note), KNOWN, Data(images, labels), SUSPICIOUS, params, "low"), said
        except Killed:
            return None, said

    whole, said = run(tmp_path / "whole", -1)
    run(tmp_path / "parts", killed_after + 1)
    again, said_again = run(tmp_path / "parts", -1)
    assert whole is not None and again is not None
    assert torch.equal(whole.margin, again.margin) and same(whole.model, again.model)
    assert said == said_again and [number for number, _, _ in said] == [1, 2, 3, 4]


@pytest.mark.parametrize(("name", "stem"), FITTING)
def test_a_widened_network_gives_the_same_logits_twice(name: str, stem: str) -> None:
    about = description(Architecture(name, stem, 4), 32)  # pyright: ignore[reportArgumentType]
    model = network(network=about.network, size=32)
    before, (images, _) = copied(model), samples(6, size=32)
    wide, grown = widen(about, model, generator("w"))
    logits, doubled = predict(model, images), predict(grown, images)
    assert wide.class_names[:CLASSES] == about.class_names and len(set(wide.class_names)) == 2 * CLASSES
    scale = float(logits.abs().max())
    assert torch.allclose(doubled[:, :CLASSES], logits, atol=1e-5 * scale) and torch.allclose(doubled[:, CLASSES:], logits, atol=1e-5 * scale)
    assert unchanged(model, before)


def plain(labels: Tensor) -> Any:
    """Train without any unlearning, by a loop of its own."""
    model, images, settings = network(), samples()[0], PAPER.recipe
    trainer = Trainer(model, settings, settings.epochs * 8)
    for epoch in range(settings.epochs):
        order = torch.randperm(64, generator=generator(0, "enhance 1", "epoch", epoch))
        for rows in order.split(settings.batch_size):
            trainer.step(as_input(images[rows]), labels[rows])
    return model.eval()


def unlearned(likely_clean: Tensor, unlearning: float, labels: Tensor | None = None, mean_over: Any = "parts", **changes: Any) -> tuple[Any, float]:
    images, own = samples()
    params = dataclasses.replace(PAPER, unlearning=unlearning, mean_over=mean_over, recipe=dataclasses.replace(PAPER.recipe, **changes))
    model, data = network(), Data(images, own if labels is None else labels)
    return model, unlearn(Session(0, CPU), model, data, likely_clean, params, 1)


def test_nothing_to_unlearn_is_plain_training() -> None:
    images, labels = samples()
    found, _ = unlearned(torch.zeros(64, dtype=torch.bool), 0.05)
    assert torch.allclose(predict(found, images), predict(plain(labels), images), atol=1e-4)
    assert not found.training


def test_with_a_coefficient_of_zero_the_labels_of_the_clean_part_are_not_learnt() -> None:
    _, labels = samples()
    clean = torch.arange(64) % 2 == 0
    first, loss = unlearned(clean, 0.0)
    second, again = unlearned(clean, 0.0, torch.where(clean, 3 - labels, labels))
    assert same(first, second) and loss == again
    third, _ = unlearned(clean, 0.05, torch.where(clean, 3 - labels, labels))
    assert not same(first, third)


def test_a_coefficient_of_minus_one_in_a_sum_is_plain_training_whatever_is_clean() -> None:
    images, labels = samples()
    found, _ = unlearned(torch.arange(64) % 4 == 0, -1.0, mean_over="batch")
    assert torch.allclose(predict(found, images), predict(plain(labels), images), atol=1e-4)


@pytest.mark.parametrize("mean_over", ["batch", "parts"])
def test_the_clean_part_is_unlearnt_and_the_rest_is_learnt(mean_over: str) -> None:
    images, labels = samples()
    clean = labels < 2
    found, _ = unlearned(clean, 0.05, mean_over=mean_over, epochs=4)
    untouched = plain(labels)
    each, before = (F.cross_entropy(predict(model, images), labels, reduction="none") for model in (found, untouched))
    assert each[~clean].mean() < before[~clean].mean() < before[clean].mean() + 1 < each[clean].mean()


def test_the_ascent_that_explodes_is_said() -> None:
    with pytest.raises(MecaError, match=r"training 'enhance 1' is not finite in epoch \d; lower its learning rate in params\.yaml"):
        unlearned(torch.ones(64, dtype=torch.bool), 1e30, lr=1e30)


def test_a_finished_round_is_resumed_with_its_loss(tmp_path: Path) -> None:
    images, labels = samples()
    clean = torch.arange(64) % 4 == 0
    models = [network(seed=seed) for seed in (0, 1)]
    losses = [unlearn(Session(0, CPU, tmp_path), model, Data(images, labels), clean, PAPER, 1) for model in models]
    assert same(*models) and losses[0] == losses[1] != 0


def test_the_loss_is_a_sum_over_a_batch_or_a_mean_over_each_part() -> None:
    (images, labels), clean = samples(), torch.arange(64) % 4 != 0
    each = F.cross_entropy(network().train()(as_input(images)), labels, reduction="none").detach()
    whole = dataclasses.replace(PAPER, unlearning=0.3, recipe=recipe(epochs=1, batch_size=64))
    for mean_over, expected in (
        ("batch", (each[~clean].sum() - 0.3 * each[clean].sum()) / 64),
        ("parts", each[~clean].mean() - 0.3 * each[clean].mean()),
    ):
        params = dataclasses.replace(whole, mean_over=mean_over)
        loss = unlearn(Session(0, CPU), network(), Data(images, labels), clean, params, 1)
        assert loss == pytest.approx(float(expected), rel=1e-4), mean_over


@pytest.mark.parametrize("clean", [True, False])
def test_a_part_without_samples_takes_no_part_in_the_loss(clean: bool) -> None:
    (images, labels), everything = samples(), torch.full((64,), clean)
    models, params = [network(), network()], dataclasses.replace(PAPER, recipe=recipe(epochs=1))
    for model, mean_over in zip(models, ("batch", "parts"), strict=True):
        unlearn(Session(0, CPU), model, Data(images, labels), everything, dataclasses.replace(params, mean_over=mean_over), 1)
    assert same(*models)


def rounds_of(scoring: PartitionParams | None = None, **changes: Any) -> list[Round]:
    """Return three rounds with the shares 0.2, 0.4 and 0.6, unless it is said otherwise."""
    params = dataclasses.replace(
        PAPER, **{"rounds": 3, "alpha_start": 0.2, "alpha_end": 0.6, "alpha_growth": 1.0, "recipe": recipe(epochs=1)} | changes
    )
    scoring = scoring or settings(preset="paper").group("partition", PartitionParams)
    return list(in_rounds(Session(0, CPU), network(), Data(*samples()), SUSPICIOUS, params, scoring))


@pytest.mark.parametrize("of", ["all", "class"])
def test_never_rescored_the_order_of_partition_is_kept(of: str) -> None:
    scoring = dataclasses.replace(settings(preset="paper").group("partition", PartitionParams), alpha_of=of)
    for done in rounds_of(scoring, rescore="never"):
        assert torch.equal(done.likely_clean, choose(SUSPICIOUS, samples()[1], done.alpha, of))
        assert torch.equal(done.suspicion, SUSPICIOUS)


@pytest.mark.parametrize("names", [("kl",), ("kl", "loss")])
@pytest.mark.parametrize("mask_of", ["set", "sample"])
@pytest.mark.parametrize("of", ["all", "class"])
def test_where_the_rest_is_rescored_what_is_in_the_clean_part_stays_and_the_rest_alone_fills_it_up(
    of: str, mask_of: str, names: tuple[str, ...]
) -> None:
    images, labels = samples()
    about = dataclasses.replace(settings(preset="paper").group("partition", PartitionParams), alpha_of=of, mask_of=mask_of, signals=names)
    before, order, model = torch.zeros(64, dtype=torch.bool), SUSPICIOUS.double(), network()
    params = dataclasses.replace(PAPER, alpha_start=0.2, alpha_end=0.6, recipe=recipe(epochs=1))
    for done in rounds_of(about, rescore="rest", rounds=4, alpha_growth=0.75):
        assert not (before & ~done.likely_clean).any(), "what is in it stays"
        groups = [labels == c for c in range(CLASSES)] if of == "class" else [torch.ones(64, dtype=torch.bool)]
        assert all(int((done.likely_clean & group).sum()) == int(done.alpha * int(group.sum())) for group in groups)
        for group in groups:
            added, left = order[group & done.likely_clean & ~before], order[group & ~done.likely_clean]
            assert len(added) == 0 or added.max() <= left.min(), "the least suspicious of the rest"
        unlearn(Session(0, CPU), model, Data(images, labels), done.likely_clean, params, done.number)
        before, rest = done.likely_clean, ~done.likely_clean
        found = signals(model, images[rest], labels[rest], about, generator(0, "enhance", "masks", done.number))
        order = torch.zeros(64, dtype=torch.float64)
        order[rest] = suspicion(found, names)
        assert torch.equal(done.suspicion, order)
    assert int(before.sum()) == (38 if of == "all" else 36)


def test_where_all_are_rescored_samples_leave_the_clean_part_too() -> None:
    first, second, third = (done.likely_clean for done in rounds_of(rescore="all"))
    assert (first & ~second).any() or (second & ~third).any()


def test_a_clean_part_that_may_only_grow_is_not_asked_to_shrink() -> None:
    with pytest.raises(ValueError, match=r"expected alpha_end not below alpha_start where rescore is rest, got 0\.1"):
        dataclasses.replace(PAPER, rescore="rest", alpha_start=0.2, alpha_end=0.1)
    assert dataclasses.replace(PAPER, rescore="all", alpha_start=0.2, alpha_end=0.1).alpha_end == 0.1


def test_a_set_that_is_all_clean_part_is_survived() -> None:
    assert [float(done.likely_clean.float().mean()) for done in rounds_of(rescore="rest", alpha_end=1.0)][-1] == 1


@pytest.mark.parametrize(
    ("rounds", "growth", "shares"),
    [(3, 1.0, [0.2, 0.4, 0.6]), (5, 0.6, [0.2, 0.4, 0.6, 0.6, 0.6]), (3, 0.1, [0.2, 0.6, 0.6]), (1, 1.0, [0.2]), (2, 0.5, [0.2, 0.6])],
)
def test_alpha_grows_over_a_share_of_the_rounds_and_stays_then(rounds: int, growth: float, shares: list[float]) -> None:
    found = rounds_of(rescore="never", rounds=rounds, alpha_growth=growth)
    assert [done.alpha for done in found] == pytest.approx(shares)


def test_the_rounds_are_unlearnings_of_a_growing_share_each_of_the_set_as_the_round_before_scored_it() -> None:
    (images, labels), params = samples(), dataclasses.replace(PAPER, rounds=3, alpha_start=0.2, alpha_end=0.6, alpha_growth=1.0, rescore="all")
    scoring = settings(preset="paper").group("partition", PartitionParams)
    session, data, model, by_hand = Session(0, CPU), Data(images, labels), network(), network()
    suspicious: Tensor = SUSPICIOUS
    for done, (number, alpha) in zip(in_rounds(session, model, data, SUSPICIOUS, params, scoring), enumerate((0.2, 0.4, 0.6), 1), strict=True):
        loss = unlearn(session, by_hand, data, choose(suspicious, labels, alpha, scoring.alpha_of), params, number)
        suspicious = suspicion(signals(by_hand, images, labels, scoring, generator(0, "enhance", "masks", number)), scoring.signals)
        assert same(model, by_hand) and torch.equal(done.suspicion, suspicious)
        assert (done.number, done.alpha, done.loss) == (number, pytest.approx(alpha), loss)
        assert done.fitted == float((predict(by_hand, images).argmax(1) == labels).float().mean())
