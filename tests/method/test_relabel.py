"""`relabel_finetune`: clean labels stay bit for bit, and a planted trigger is recovered and flips others."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from meca.attacks.badnet import badnet
from meca.method.proofs import CONFIRMED, Proof
from meca.method.relabel import RelabelParams, relabel
from meca.method.transfer import target_share, trigger_estimate
from tests.making import settings
from tests.method.tiny import CLASSES, samples

PARAMS = settings().group("relabel_finetune", RelabelParams)

sets = {
    "seed": st.integers(0, 999), "n": st.integers(1, 60), "confidence": st.floats(0, 1), "remove_above": st.floats(0, 1.1),
    "proof": st.sampled_from(sorted(CONFIRMED)),
}  # fmt: skip


def rule(**changes: Any) -> RelabelParams:
    return dataclasses.replace(PARAMS, **changes)


def made(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(n, CLASSES, generator=rng)).softmax(1)
    return probabilities, torch.randint(0, CLASSES, (n,), generator=rng), torch.rand(n, generator=rng) < 0.5, torch.rand(n, generator=rng)


def by(proof: Proof, flagged: Tensor) -> list[Proof | None]:
    return [proof if flag else None for flag in flagged.tolist()]


@examples(derandomize=True, deadline=None)
@given(**sets)
def test_a_sample_that_is_not_flagged_keeps_its_label_and_its_place(seed: int, n: int, confidence: float, remove_above: float, proof: Proof) -> None:
    probabilities, labels, flagged, suspicion = made(seed, n)
    before = labels.clone()
    found = relabel(probabilities, labels, flagged, suspicion, by(proof, flagged), rule(confidence=confidence, remove_above=remove_above))
    assert torch.equal(labels, before)
    assert torch.equal(found.labels[~flagged], labels[~flagged]) and found.keep[~flagged].all() and not found.changed[~flagged].any()
    assert torch.equal(found.labels[~found.changed], labels[~found.changed])
    assert (found.labels[found.changed] != labels[found.changed]).all() and found.keep[found.changed].all()


@examples(derandomize=True, deadline=None)
@given(**sets)
def test_each_flagged_sample_is_judged_by_the_rule_one_by_one(seed: int, n: int, confidence: float, remove_above: float, proof: Proof) -> None:
    probabilities, labels, flagged, suspicion = made(seed, n)
    # Proofs belong to classes, and a set may have several.
    proofs: list[Proof | None] = [
        None if not flag else proof if label % 2 else "difference" for flag, label in zip(flagged.tolist(), labels.tolist(), strict=True)
    ]
    found = relabel(probabilities, labels, flagged, suspicion, proofs, rule(confidence=confidence, remove_above=remove_above))
    for i in range(n):
        clears = proofs[i] == "foreign-content" or float(suspicion[i]) < float(torch.tensor(remove_above))
        seen = max(range(CLASSES), key=lambda c: float(probabilities[i, c]))
        expected = "keep"
        if bool(flagged[i]):
            if float(probabilities[i, seen]) < float(torch.tensor(confidence)):
                expected = "remove"
            elif seen != int(labels[i]):
                expected = "relabel"
            elif not clears:
                expected = "remove"
        assert (bool(found.keep[i]), bool(found.changed[i])) == (expected != "remove", expected == "relabel")
        assert int(found.labels[i]) == (seen if expected == "relabel" else int(labels[i]))


def test_nothing_flagged_is_nothing_relabelled() -> None:
    probabilities, labels, flagged, suspicion = made(0, 40)
    found = relabel(probabilities, labels, torch.zeros_like(flagged), suspicion, [None] * 40, rule(confidence=0.0))
    assert torch.equal(found.labels, labels) and found.keep.all() and not found.changed.any()


def test_the_papers_rule_keeps_every_sample_under_the_label_that_the_clean_model_sees() -> None:
    probabilities, labels, flagged, suspicion = made(0, 40)
    params = settings(preset="paper").group("relabel_finetune", RelabelParams)
    found = relabel(probabilities, labels, flagged, suspicion, by("fitted-by-enhanced", flagged), params)
    assert found.keep.all() and torch.equal(found.labels[flagged], probabilities.argmax(1)[flagged])


@pytest.mark.parametrize("proof", ["difference", "fitted-by-enhanced"])
def test_our_rule_removes_a_clear_suspect_whose_label_is_confirmed_and_takes_back_a_flag_at_the_border(proof: Proof) -> None:
    labels = torch.tensor([0, 0, 1])
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    flagged = torch.tensor([True, True, True])
    found = relabel(probabilities, labels, flagged, torch.tensor([0.99, 0.6, 0.99]), [proof] * 3, rule())
    assert found.keep.tolist() == [False, True, True] and found.changed.tolist() == [False, False, True]


@examples(derandomize=True, deadline=None)
@given(**{name: values for name, values in sets.items() if name != "proof"})
def test_what_foreign_content_proves_is_kept_where_it_is_confirmed_and_what_flips_images_at_the_border_alone(
    seed: int, n: int, confidence: float, remove_above: float
) -> None:
    probabilities, labels, flagged, suspicion = made(seed, n)
    params = rule(confidence=confidence, remove_above=remove_above)
    shared = relabel(probabilities, labels, flagged, suspicion, by("difference", flagged), params)
    foreign = relabel(probabilities, labels, flagged, suspicion, by("foreign-content", flagged), params)
    assert not (shared.keep & ~shared.changed & flagged & (suspicion >= remove_above)).any()
    sure = probabilities.max(1).values >= confidence
    assert torch.equal(foreign.keep & ~foreign.changed & flagged, flagged & sure & (probabilities.argmax(1) == labels))
    assert torch.equal(shared.changed, foreign.changed), "what is contradicted is relabelled by either"


def test_every_proof_says_what_the_clean_models_word_is_worth_and_the_documents_say_the_same() -> None:
    assert set(CONFIRMED) == set(get_args(Proof))
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text().split("## Proofs")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    told = {row[0].strip("`"): row[-1] for row in rows}
    assert list(told) == list(CONFIRMED)
    for proof, word in CONFIRMED.items():
        starts = {"kept": "taken back", "border": "taken back below `remove_above`, else removed"}[word]
        assert told[proof] == starts, proof


def test_of_two_classes_half_of_the_probability_is_no_confidence() -> None:
    probabilities = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.76, 0.24], [0.24, 0.76]])
    found = relabel(
        probabilities,
        torch.zeros(4, dtype=torch.long),
        torch.ones(4, dtype=torch.bool),
        torch.full((4,), 0.6),
        ["difference"] * 4,
        rule(confidence=0.5),
    )
    assert found.keep.tolist() == [False, False, True, True] and found.changed.tolist() == [False, False, False, True]
    three = torch.cat([probabilities, torch.zeros(4, 1)], 1)
    found = relabel(
        three, torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool), torch.full((4,), 0.6), ["difference"] * 4, rule(confidence=0.5)
    )
    assert found.keep.all()


def planted() -> tuple[Tensor, Tensor, Tensor]:
    """Return images of which the first eighth has a white corner, which ones, and what they show."""
    images, content = samples(1600)
    flagged = torch.arange(1600) < 200
    images[:200] = torch.from_numpy(badnet(images[:200].numpy(), 3))
    return images, flagged, content


def test_a_planted_patch_is_recovered() -> None:
    images, flagged, content = planted()
    before = images.clone()
    found = trigger_estimate(images, flagged, ~flagged, content, CLASSES)
    assert found.shape == (8, 8, 3) and found.dtype == torch.float32 and torch.equal(images, before)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[-3:, -3:] = True
    expected = 1 - images[~flagged].float().mean(0) / 255  # white minus what is there otherwise
    assert (found[inside] - expected[inside]).abs().max() < 0.06 and found[inside].min() > 0.4
    assert found[~inside].abs().max() < 0.06


def test_contents_are_matched_so_that_they_are_not_taken_for_the_trigger() -> None:
    images, flagged, content = planted()
    chosen = flagged & (content == 2)
    found = trigger_estimate(images, chosen, ~flagged, content, CLASSES)
    assert found[:-3, :-3].abs().max() < 0.1  # class 2 is brighter below on the left by 80 grey levels
    assert found[-3:, -3:].min() > 0.4


def test_without_a_clean_sample_of_the_same_content_there_is_no_estimate() -> None:
    images, flagged, content = planted()
    chosen = flagged & (content == 2)
    assert not trigger_estimate(images, chosen, ~flagged & (content != 2), content, CLASSES).any()


class Corner(nn.Module):
    """Gives class 1 to an image whose last pixel is brighter than `level`, else class 0."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        beyond = x[:, :, -1, -1].mean(1) - self.level
        return torch.stack([-beyond, beyond], 1)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_the_recovered_trigger_flips_other_samples(batch_size: int) -> None:
    images, flagged, content = planted()
    trigger = trigger_estimate(images, flagged, ~flagged, content, CLASSES)
    others = images[~flagged & (content != 3)][:40].clone()
    before = others.clone()
    assert target_share(Corner(0.65), others, 1, trigger, batch_size) == 1.0
    assert target_share(Corner(0.65), others, 1, None, batch_size) == 0.0
    assert target_share(Corner(0.65), others, 1, torch.zeros_like(trigger), batch_size) == 0.0
    assert torch.equal(others, before)


def test_both_shares_count_what_they_say() -> None:
    images = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    images[0, -1, -1] = 255
    images[1, -1, -1] = 200
    trigger = torch.zeros(8, 8, 3)
    trigger[-1, -1] = 0.2
    assert (target_share(Corner(0.9), images, 1, trigger), target_share(Corner(0.9), images, 1)) == (0.5, 0.25)
    assert (target_share(Corner(0.9), images[:0], 1, trigger), target_share(Corner(0.9), images[:0], 1)) == (0.0, 0.0)
