"""What is peculiar to each detector, against its formula."""

from dataclasses import replace

import numpy as np
import torch

from meca.defenses import DETECTORS, Samples
from meca.defenses.detectors import rotated
from meca.training.engine import predict
from tests.defenses.scenes import apart, scene


def test_who_knows_how_much_poison_there_is_flags_half_as_much_again_in_every_class_and_at_most_half_of_it():
    made, truth = scene(200, 20)
    judgement = DETECTORS["spectral"](made)
    labels = made.train.labels.numpy()
    assert apart(judgement, truth, labels == 1) == 1 and judgement.flagged[truth].all()
    assert [int(judgement.flagged[labels == c].sum()) for c in (0, 1)] == [min(30, int((labels == c).sum()) // 2) for c in (0, 1)]


def test_a_common_shift_of_the_features_changes_no_projection():
    made, _ = scene()

    def projections(shift: int) -> np.ndarray:
        images = made.train.images + shift
        images[:40, -3:, -3:] = 180 + shift
        return DETECTORS["spectral"](replace(made, train=Samples(images, made.train.labels))).suspicion

    assert np.allclose(projections(0), projections(60), rtol=1e-3, atol=1e-9)


def test_a_small_cluster_is_flagged_and_one_that_holds_half_of_a_class_is_not():
    made, truth = scene(200, 20)
    judgement, mine = DETECTORS["clusters"](made), made.train.labels.numpy() == 1
    assert np.array_equal(judgement.flagged[mine], truth[mine]) and apart(judgement, truth, mine) == 1
    made, truth = scene(200, 60)
    judgement, mine = DETECTORS["clusters"](made), made.train.labels.numpy() == 1
    assert mine.sum() < 60 / 0.35 and not judgement.flagged[truth].any() and apart(judgement, truth, mine) == 1


def test_a_prediction_that_stays_when_the_pixels_are_scaled_is_suspicious():
    made, truth = scene(200, 20)
    before = predict(made.model, made.train.images).argmax(1).numpy()
    assert np.array_equal(before == 1, truth)
    judgement = DETECTORS["scaling"](made)
    stays = []
    for scale in range(2, 13):
        scaled = np.clip((made.train.images.numpy() / 255 - 0.2) * scale, 0, 1)
        stays.append(predict(made.model, torch.from_numpy(np.round(scaled * 255).astype(np.uint8))).argmax(1).numpy() == before)
    assert np.allclose(judgement.suspicion, 2 * np.mean(stays, axis=0) - 1)
    assert np.array_equal(judgement.flagged, judgement.suspicion > 0)
    assert judgement.flagged[truth].all()  # what is white stays white; grey noise is white at high scales, too, and is called class 1 then
    assert judgement.suspicion[~truth].max() < 1


def test_a_share_of_the_samples_is_flagged_those_with_the_highest_suspicion():
    made, _ = scene()
    for name, count in (("isolation", 4), ("transforms", 20)):
        judgement = DETECTORS[name](made)
        assert judgement.flagged.sum() == count, name
        assert judgement.suspicion[judgement.flagged].min() >= judgement.suspicion[~judgement.flagged].max(), name


def test_an_image_is_turned_about_its_middle_and_shifted():
    images = torch.zeros(64, 33, 33, 3, dtype=torch.uint8)
    images[:, 14:19, 14:19] = 200
    turned = rotated(images, torch.Generator().manual_seed(0))
    assert turned.shape == images.shape and turned.dtype == torch.uint8
    place = torch.nonzero(turned[..., 0] > 100).float()
    centres = torch.stack([place[place[:, 0] == i][:, 1:].mean(0) for i in range(64)])
    assert (centres - 16).abs().max() < 0.3 * 33 and centres.std(0).min() > 1.5  # a fifth of the side, along turned axes
    images[:, 2:5, 2:5] = 200
    again = rotated(images, torch.Generator().manual_seed(0))
    assert torch.equal(again, rotated(images, torch.Generator().manual_seed(0))) and not torch.equal(again[0], again[1])
