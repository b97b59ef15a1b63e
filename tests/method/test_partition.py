"""`partition`: what becomes likely_clean, and what the signals say."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from meca.method.partition import PartitionParams, Signals, choose, principal_axis, signals, suspicion
from meca.training.engine import predict
from meca.training.seeds import generator
from tests.making import settings
from tests.method.tiny import copied, network, samples, unchanged

PARAMS = settings().group("partition", PartitionParams)

sets = {"seed": st.integers(0, 999), "n": st.integers(1, 80), "alpha": st.floats(0, 1), "of": st.sampled_from(["class", "all"])}


def made(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return suspicion with many ties, and labels."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 10, (n,), generator=rng) / 10, torch.randint(0, 4, (n,), generator=rng)


@examples(derandomize=True, deadline=None)
@given(**sets)
def test_likely_clean_has_the_promised_size_and_no_member_is_more_suspicious_than_another_sample(seed: int, n: int, alpha: float, of: str) -> None:
    suspicious, labels = made(seed, n)
    chosen = choose(suspicious, labels, alpha, of)
    assert chosen.dtype == torch.bool and chosen.shape == (n,)
    for group in [torch.ones(n, dtype=torch.bool)] if of == "all" else [labels == c for c in labels.unique()]:
        inside, outside = suspicious[group & chosen], suspicious[group & ~chosen]
        assert len(inside) == int(alpha * int(group.sum()))
        assert len(inside) == 0 or len(outside) == 0 or inside.max() <= outside.min()


@pytest.mark.parametrize("of", ["class", "all"])
def test_ties_go_to_the_earlier_row(of: str) -> None:
    chosen = choose(torch.zeros(20), torch.zeros(20, dtype=torch.long), 0.3, of)
    assert torch.nonzero(chosen)[:, 0].tolist() == list(range(6))


@pytest.mark.parametrize("of", ["class", "all"])
def test_a_share_of_none_is_empty_and_of_all_is_everything(of: str) -> None:
    suspicious, labels = made(0, 40)
    assert not choose(suspicious, labels, 0.0, of).any() and choose(suspicious, labels, 1.0, of).all()


@examples(derandomize=True, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(2, 80))
def test_choosing_knows_no_names_of_classes(seed: int, n: int) -> None:
    suspicious, labels = made(seed, n)
    assert torch.equal(choose(suspicious, labels, 0.5, "class"), choose(suspicious, 3 - labels, 0.5, "class"))


@pytest.mark.parametrize("names", [("kl",), ("loss",), ("kl", "loss")])
def test_a_low_signal_is_suspicious(names: tuple[str, ...]) -> None:
    kl, loss = torch.rand(2, 50, generator=generator("values"))
    found = suspicion(Signals(kl, loss, torch.zeros(50, 4)), names)
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    lower = Signals(torch.where(torch.arange(50) == 7, -1, kl), torch.where(torch.arange(50) == 7, -1, loss), torch.zeros(50, 4))
    assert suspicion(lower, names)[7] == 1 == suspicion(lower, names).max()
    if len(names) == 1:
        assert torch.equal(found.argsort(), (kl if names == ("kl",) else loss).argsort(descending=True))


def test_a_scale_of_a_signal_changes_no_suspicion() -> None:
    kl, loss = torch.rand(2, 50, generator=generator("values"))
    plain = suspicion(Signals(kl, loss, torch.zeros(50, 4)), ("kl", "loss"))
    assert torch.equal(suspicion(Signals(kl * 1000, loss.exp(), torch.zeros(50, 4)), ("kl", "loss")), plain)


def test_the_loss_is_the_cross_entropy_to_the_given_label_and_the_model_is_left_alone() -> None:
    model, (images, labels) = network(), samples(24)
    before = copied(model)
    found = signals(model, images, labels, PARAMS, generator("masks"))
    logits = predict(model, images).double()
    expected = [float(torch.logsumexp(z, 0) - z[y]) for z, y in zip(logits, labels, strict=True)]
    assert torch.allclose(found.loss.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(found.logits.double(), logits) and unchanged(model, before)


def test_signals_depend_on_the_generator_alone() -> None:
    model, (images, labels) = network(), samples(24)
    torch.manual_seed(1)
    first = signals(model, images, labels, PARAMS, generator("masks")).kl
    torch.manual_seed(2)
    assert torch.equal(signals(model, images, labels, PARAMS, generator("masks")).kl, first)
    assert not torch.equal(signals(model, images, labels, PARAMS, generator("others")).kl, first)


def mixed(seed: int, n: int = 120) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features of three classes, labels, and which samples of class 1 lie apart from the rest of it."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    apart = (labels == 1) & (torch.arange(n) % 4 == 0)
    features = torch.randn(n, 6, generator=rng) + 10 * torch.nn.functional.one_hot(labels, 6)
    return features + 8 * apart[:, None] * torch.tensor([0.0, 0, 0, 1, -1, 0]), labels, apart


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fast", [True, False])
def test_the_principal_axis_of_a_class_tells_its_two_kinds_apart_and_the_fast_learnt_end_is_positive(fast: bool, seed: int) -> None:
    features, labels, apart = mixed(seed)
    axis = principal_axis(features, labels, torch.where(apart, 0.1, 1.0) if fast else torch.where(apart, 1.0, 0.1))
    mine = axis[labels == 1] if fast else -axis[labels == 1]
    assert mine[apart[labels == 1]].min() > mine[~apart[labels == 1]].max()
    for c in range(3):
        assert float(axis[labels == c].mean()) == pytest.approx(0, abs=1e-5) and float(axis[labels == c].square().mean()) == pytest.approx(
            1, abs=1e-4
        )


def test_the_axis_is_the_first_principal_component_of_each_class_alone() -> None:
    from sklearn.decomposition import PCA

    features, labels, _ = mixed(3)
    loss = torch.rand(len(labels), generator=generator("loss"))
    axis = principal_axis(features, labels, loss)
    for c in range(3):
        expected = PCA(1).fit_transform(features[labels == c].numpy())[:, 0]
        assert abs(float(np.corrcoef(expected, axis[labels == c].numpy())[0, 1])) == pytest.approx(1, abs=1e-6)
    order = torch.randperm(len(labels), generator=generator("order"))
    assert torch.allclose(principal_axis(features[order], labels[order], loss[order]), axis[order], atol=1e-5)


def test_an_axis_without_a_direction_is_zero() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert not principal_axis(torch.ones(4, 5), labels, torch.rand(4)).any(), "samples that do not differ, and a class of one"


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_mask_of_the_set_is_one_for_all_and_one_of_each_sample_its_own(share: float) -> None:
    model = network()
    images, labels = (part[:1].repeat_interleave(40, 0) for part in samples(24))
    by_set, by_sample = (
        signals(model, images, labels, dataclasses.replace(PARAMS, mask_of=of, mask_share=share), generator("masks")).kl for of in ("set", "sample")
    )
    assert torch.allclose(by_set, by_set[:1].expand(40), rtol=1e-4) and len(by_sample.unique()) > 10
    again = signals(model, images, labels, dataclasses.replace(PARAMS, mask_of="sample", mask_share=share), generator("masks")).kl
    assert torch.equal(again, by_sample)


def test_without_a_step_nothing_moves() -> None:
    model, (images, labels) = network(), samples(24)
    assert not signals(model, images, labels, dataclasses.replace(PARAMS, eps=0.0), generator("masks")).kl.any()
