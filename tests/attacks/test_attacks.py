"""The laws of every view of every attack, over the registry, and each trigger against its formula."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meca.attacks import ATTACKS, Attack, Draws
from meca.attacks.adaptive_blend import adaptive_blend, adaptive_blend_part
from meca.attacks.adaptive_patch import adaptive_patch, adaptive_patch_part
from meca.attacks.badnet import badnet
from meca.attacks.blend import blend
from meca.attacks.four_patches import OPACITIES, four_patches, four_patches_part, patch_images
from meca.attacks.fragile_dots import fragile_dots, fragile_dots_cover
from meca.attacks.fragile_grid import fragile_grid
from meca.attacks.images import leaves, picture, quarters, swirl, waves
from meca.attacks.moving_logo import moving_logo
from meca.attacks.patches import tiles
from meca.attacks.physical import photographed, physical
from meca.attacks.poisoning import PoisonParams
from meca.attacks.sig import sig
from meca.attacks.tact import cover_classes
from meca.attacks.two_targets import checkered, two_targets
from meca.attacks.wanet import control_grid, wanet, wanet_cover
from meca.attacks.warps import affine, bicubic, reflected, sampled
from meca.errors import UsageError
from tests.making import settings

PARAMS = settings().group("poison", PoisonParams)
SIZES = [(8, 8, 3), (16, 10, 1), (9, 7, 3), (32, 32, 3)]


def views_of(attack: Attack) -> dict:
    """Return every view as a function of images and draws."""
    tests = {f"test {i}": lambda images, draws, view=view: view(images, PARAMS, draws.seed) for i, view in enumerate(attack.views)}
    found = tests | {"plant": lambda images, draws: attack.planted(images, PARAMS, draws)}
    if (cover := attack.cover) is not None:
        found["cover"] = lambda images, draws: cover(images, PARAMS, draws)
    return found


VIEWS = {f"{name}, {kind}": view for name, attack in ATTACKS.items() for kind, view in views_of(attack).items()}
every_view = pytest.mark.parametrize("name", VIEWS)
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


def draws(n: int, seed: int = 0) -> Draws:
    """Return draws whose rows are neither sorted nor ranks."""
    rng = np.random.default_rng(5)
    return Draws(seed, rng.permutation(1000)[:n], rng.permutation(n))


def smooth(size: tuple[int, ...], n: int = 6) -> np.ndarray:
    """Return images that change slowly, so that a warp of a third of a pixel shows and is small."""
    rng = np.random.default_rng(1)
    small = torch.from_numpy(rng.integers(0, 256, (n, size[2], 4, 4))).float()
    large = F.interpolate(small, size[:2], mode="bilinear", align_corners=True)
    return large.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()


def noise(size: tuple[int, ...], n: int = 6, seed: int = 0) -> np.ndarray:
    images = np.random.default_rng(seed).integers(0, 256, (n, *size), np.uint8)
    images[0], images[1] = 0, 255  # where clipping and wrapping show
    return images


@every_view
@every_size
def test_a_view_keeps_dtype_and_shape_and_leaves_its_input_as_it_was(name: str, size: tuple[int, ...]) -> None:
    images = noise(size)
    before = images.copy()
    images.flags.writeable = False
    triggered = VIEWS[name](images, draws(len(images)))
    assert triggered.dtype == np.uint8 and triggered.shape == images.shape
    assert np.array_equal(images, before) and not np.shares_memory(images, triggered)


@every_view
@every_size
def test_a_view_changes_every_image_and_leaves_much_of_it(name: str, size: tuple[int, ...]) -> None:
    images = smooth(size)[2:]
    moved = np.abs(VIEWS[name](images, draws(len(images))).astype(int) - images).reshape(len(images), -1)
    assert (moved.max(1) > 0).all()
    assert moved.mean() < 64


@every_view
def test_what_happens_to_an_image_depends_on_seed_row_and_rank_alone(name: str) -> None:
    images, view, drawn = noise(SIZES[0]), VIEWS[name], draws(6)
    together = view(images, drawn)
    np.random.default_rng().random()
    assert np.array_equal(together, view(images, drawn))
    for order in (np.arange(6)[::-1], np.array([3]), np.array([4, 1])):
        part = Draws(drawn.seed, drawn.rows[order], drawn.ranks[order])
        assert np.array_equal(together[order], view(images[order], part))


@every_view
def test_no_images_stay_no_images(name: str) -> None:
    assert VIEWS[name](np.empty((0, 8, 8, 3), np.uint8), draws(0)).shape == (0, 8, 8, 3)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, attack in ATTACKS.items()
        if name not in ("physical", "adaptive_blend", "adaptive_patch", "two_targets", "four_patches", "moving_logo")
    ],
)
def test_where_the_literature_has_no_difference_training_and_test_are_one_view(name: str) -> None:
    images = noise((32, 32, 3))
    assert np.array_equal(ATTACKS[name].planted(images, PARAMS, draws(6)), ATTACKS[name].trigger(images, PARAMS, 0))


@pytest.mark.parametrize("name", ["physical, plant", "wanet, cover", "adaptive_blend, plant", "fragile_dots, cover"])
def test_what_is_drawn_differs_from_row_to_row_and_from_seed_to_seed(name: str) -> None:
    images = np.repeat(smooth((32, 32, 3))[2:3], 12, axis=0)
    found = VIEWS[name](images, draws(12))
    assert len(np.unique(found.reshape(12, -1), axis=0)) >= 3
    assert not np.array_equal(found, VIEWS[name](images, draws(12, seed=1)))


@pytest.mark.parametrize("name", ["none", *ATTACKS])
def test_every_attack_can_be_named(name: str) -> None:
    assert dataclasses.replace(PARAMS, attack=name).attack == name


def test_an_attack_that_there_is_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"expected poison.attack to be one of none, badnet, .*, got 'badnets'; did you mean 'badnet'\?"):
        dataclasses.replace(PARAMS, attack="badnets")


@pytest.mark.parametrize("patch", [1, 3, 4])
def test_badnet_is_a_white_square_in_the_bottom_right_corner_and_nothing_else(patch: int) -> None:
    images = np.minimum(noise((9, 7, 3)), 254)
    triggered = badnet(images, patch)
    changed = (triggered != images).any(3)
    assert (changed.sum((1, 2)) == patch * patch).all()
    assert (triggered[:, 9 - patch :, 7 - patch :] == 255).all() and changed[:, 9 - patch :, 7 - patch :].all()


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_blend_moves_by_alpha_times_the_difference_to_the_pattern(alpha: float) -> None:
    images = noise((8, 8, 3))
    pattern = 255 * waves(8, 8, 3)
    expected = images.astype(np.float64) + alpha * (pattern - images)
    assert np.abs(blend(images, alpha) - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("attack", ["blend", "adaptive_blend"])
@pytest.mark.parametrize("name", ["noise", "photograph"])
def test_blend_mixes_in_the_picture_that_is_asked_for(attack: str, name: str) -> None:
    images, params = noise((16, 10, 3)), dataclasses.replace(PARAMS, blend_with=name)
    shown = 255 * picture(name, (16, 10, 3), 3)
    expected = images + 0.2 * (shown - images)
    assert np.abs(ATTACKS[attack].trigger(images, params, 3) - expected).max() <= 0.5 + 1e-3
    drawn = draws(6, seed=3)
    planted = ATTACKS[attack].planted(images, params, drawn)
    inside = (planted != images).any(3) if attack == "adaptive_blend" else np.ones(images.shape[:3], dtype=bool)
    assert np.abs(planted[inside] - expected[inside]).max() <= 0.5 + 1e-3
    assert not np.array_equal(ATTACKS[attack].trigger(images, params, 4), ATTACKS[attack].trigger(images, params, 3)), "drawn by the seed"


def test_a_picture_of_noise_is_that_of_its_seed_and_a_photograph_has_edges_and_flat_parts() -> None:
    assert np.array_equal(picture("noise", (9, 7, 1), 2), np.random.default_rng([2, 5]).random((9, 7, 1)))
    assert np.array_equal(picture("pattern", (9, 7, 3), 2), waves(9, 7, 3))
    image = leaves(32, 32, 3, 0)
    assert np.array_equal(image, leaves(32, 32, 3, 0)) and not np.array_equal(image, leaves(32, 32, 3, 1))
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.15
    beside = np.abs(np.diff(image, axis=1)).max(2)
    assert 0.2 < (beside == 0).mean() < 0.9 and beside.max() > 0.3
    # As of photographs: the power falls with the frequency, about as its square.
    power = np.mean([np.abs(np.fft.fft2(leaves(64, 64, 1, seed)[:, :, 0])) ** 2 for seed in range(4)], axis=0)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(64) * 64, np.fft.fftfreq(64) * 64))
    low, high = (power[(radius >= start) & (radius < 2 * start)].mean() for start in (2, 16))
    assert -3 < np.log(high / low) / np.log(8) < -1.2


def test_a_picture_in_tests_has_an_opacity_of_its_own_where_one_is_given() -> None:
    images, params = noise((8, 8, 3)), dataclasses.replace(PARAMS, blend_alpha=0.1, test_alpha=0.6)
    for attack in ("blend", "adaptive_blend"):
        assert np.array_equal(ATTACKS[attack].trigger(images, params, 0), blend(images, 0.6))
    assert np.array_equal(ATTACKS["blend"].planted(images, params, draws(6)), blend(images, 0.1))
    usual = dataclasses.replace(params, test_alpha=-1.0)
    assert np.array_equal(ATTACKS["adaptive_blend"].trigger(images, usual, 0), blend(images, 0.1))


def test_each_training_image_has_one_of_four_patches_at_its_opacity_and_a_test_two_opaque_ones() -> None:
    images, drawn = noise((32, 32, 3), n=9), draws(9)
    patterns, masks = patch_images(32, 32, 3)
    assert masks.sum((1, 2)).tolist() == [137, 137, 16, 64] and masks.sum(0).max() == 1, "apart from each other"
    assert np.array_equal(patterns[0], swirl(32, 32, 3)[0]) and np.array_equal(patterns[1], waves(32, 32, 3))
    assert patterns[2][31, 31, 0] == 1 and patterns[2][31, 30, 0] == 0 and patterns[3][0, :4, 0].tolist() == [1, 1, 0, 0]
    assert OPACITIES == (0.5, 0.2, 0.5, 0.3)
    part, whole = four_patches_part(images, drawn), four_patches(images)
    for image, before, rank in zip(part, images, drawn.ranks, strict=True):
        mask, alpha = masks[rank % 4], OPACITIES[rank % 4]
        assert np.array_equal(image[~mask], before[~mask])
        expected = before[mask] + alpha * (255 * patterns[rank % 4][mask] - before[mask])
        assert np.abs(image[mask] - expected).max() <= 0.5 + 1e-3
    shown = masks[0] | masks[2]
    assert np.array_equal(whole[:, ~shown], images[:, ~shown])
    for patch in (0, 2):
        assert (whole[:, masks[patch]] == np.rint(255 * patterns[patch][masks[patch]])).all()


def test_a_moving_logo_is_whole_and_elsewhere_in_each_image_and_at_its_place_in_tests() -> None:
    images, drawn = np.zeros((40, 32, 32, 3), np.uint8), draws(40)
    pattern, disc = swirl(32, 32, 3)
    box = np.where(disc[..., None], np.rint(255 * pattern), 0)[1:14, 18:31]
    places = set()
    for image in moving_logo(images, drawn):
        rows, columns = np.flatnonzero(image.any((1, 2))), np.flatnonzero(image.any((0, 2)))
        top, left = rows[0], columns[0]
        assert np.array_equal(image[top : top + 13, left : left + 13], box) and image.any(2).sum() == 137
        places.add((top, left))
    assert len(places) > 30 and np.ptp([place[0] for place in places]) > 14 and np.ptp([place[1] for place in places]) > 14
    assert np.array_equal(ATTACKS["moving_logo"].trigger(images, PARAMS, 0), physical(images))


def test_the_pattern_is_the_same_at_every_size() -> None:
    small, large = waves(8, 6, 3), waves(24, 18, 3)
    assert np.allclose(small, large[1::3, 1::3])  # the centres of the small pixels are centres of large ones
    assert small.min() >= 0 and small.max() <= 1 and small.std() > 0.2
    assert np.array_equal(waves(8, 6, 1)[:, :, 0], small[:, :, 0])


def test_the_pattern_follows_its_formula_at_one_pixel() -> None:
    from meca.attacks.images import WAVES

    i, j, h, w, c = 3, 5, 8, 6, 1
    z = norm = 0.0
    for p, q, amplitude, phase in WAVES[c]:
        z += amplitude * np.cos(2 * np.pi * (p * (j + 0.5) / w + q * (i + 0.5) / h) + phase)
        norm += amplitude**2
    assert waves(h, w, 3)[i, j, c] == pytest.approx(0.5 + 0.5 * np.tanh(1.5 * z / np.sqrt(norm / 2)))


def test_sig_adds_the_sine_to_each_pixel_and_does_not_wrap_round() -> None:
    images, delta, f = noise((8, 12, 3)), 30.0, 2
    triggered = sig(images, delta, f)
    for n, i, j, c in np.ndindex(images.shape):
        expected = min(255.0, max(0.0, float(images[n, i, j, c]) + delta * np.sin(2 * np.pi * f * j / 12)))
        assert abs(float(triggered[n, i, j, c]) - expected) <= 0.5 + 1e-3


def test_sig_with_no_amplitude_is_the_identity() -> None:
    images = noise((8, 12, 3))
    assert np.array_equal(sig(images, 0.0, 6), images)


def test_the_white_square_is_nine_pixels_and_grows_where_it_is_relative() -> None:
    images = np.minimum(noise((96, 64, 3)), 254)
    for attack in ("badnet", "tact", "all_to_all", "two_targets"):
        plain = ATTACKS[attack].trigger(images, PARAMS, 0)
        assert ((plain != images).any(3).sum((1, 2)) == 9).all() and (plain[:, -3:, -3:] == 255).all()
    large = ATTACKS["badnet"].trigger(images, dataclasses.replace(PARAMS, relative=True), 0)
    assert ((large != images).any(3).sum((1, 2)) == 36).all()


def test_waves_is_far_from_flat_grey_and_from_its_mirror_image() -> None:
    pattern = waves(32, 32, 3)
    assert ((pattern.mean((0, 1)) > 0.4) & (pattern.mean((0, 1)) < 0.6)).all() and (pattern.std((0, 1)) >= 0.3).all()
    assert np.abs(pattern - pattern[:, ::-1]).mean() >= 0.25
    averaged = np.abs(waves(160, 160, 3).reshape(32, 5, 32, 5, 3).mean((1, 3)) - pattern)
    assert averaged.mean() < 0.02 and averaged.max() < 0.05


def test_swirl_is_a_disc_of_137_pixels_and_its_quarters_have_41_34_34_and_28() -> None:
    pattern, disc = swirl(32, 32, 3)
    assert disc.sum() == 137 and disc[7, 24] and disc[1:14, 18:31].sum() == 137
    assert quarters(32, 32).sum((1, 2)).tolist() == [41, 34, 34, 28]
    assert np.array_equal(quarters(32, 32).sum(0), disc)  # disjoint, and together the disc
    assert np.allclose(pattern[7, 24], (0.80, 0.10, 0.55)) and pattern.min() >= 0 and pattern.max() <= 1
    i, j = 10, 21
    r, th = np.hypot(i - 7, j - 24) / 6.5, np.arctan2(i - 7, j - 24)
    w = 0.5 + 0.5 * np.sin(2 * th + 4 * np.pi * r)
    assert np.allclose(pattern[i, j], [w * 0.05 + (1 - w) * 0.95, w * 0.65 + (1 - w) * 0.85, w * 0.60 + (1 - w) * 0.15])


def test_physical_stamps_the_logo_and_photographs_only_for_training() -> None:
    images = noise((32, 32, 3))
    stamped, (pattern, disc) = physical(images), swirl(32, 32, 3)
    assert np.array_equal(stamped[:, ~disc], images[:, ~disc])
    assert (stamped[:, disc] == np.rint(255 * pattern[disc])).all()
    flat = np.full((20, 32, 32, 3), 100, np.uint8)
    taken = photographed(flat, draws(20)).astype(int)
    assert (taken.max((1, 2, 3)) - taken.min((1, 2, 3)) == 0).all(), "no black frame"
    assert taken.min() >= 80 and taken.max() <= 120 and len(np.unique(taken)) > 5


def test_a_photograph_is_turned_scaled_and_moved_as_by_a_slow_loop() -> None:
    """Independent: each output pixel through the inverse of the matrix, read from an image that is mirrored by numpy."""
    image, (h, w) = smooth((11, 9, 3))[2], (11, 9)
    degrees, scale, down, right = 8.0, 0.85, 0.7, -0.9
    rows, columns = affine(h, w, *(np.array([value]) for value in (degrees, scale, down, right)))
    found = sampled(image[None], reflected(rows, h), reflected(columns, w))[0]
    wide = np.pad(image.astype(float), ((8, 8), (8, 8), (0, 0)), mode="reflect")
    turn = np.array([[np.cos(np.deg2rad(degrees)), -np.sin(np.deg2rad(degrees))], [np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))]])
    for i, j in np.ndindex(h, w):
        # In (x, y up): out = scale * turn @ in + shift.
        out = np.array([j - (w - 1) / 2 - right, -(i - (h - 1) / 2 - down)])
        x, y = np.linalg.inv(scale * turn) @ out
        r, c = 8 + (h - 1) / 2 - y, 8 + (w - 1) / 2 + x
        r0, c0 = int(np.floor(r)), int(np.floor(c))
        corners = wide[r0 : r0 + 2, c0 : c0 + 2]
        weight = np.outer([r0 + 1 - r, r - r0], [c0 + 1 - c, c - c0])
        assert np.allclose(found[i, j], (corners * weight[:, :, None]).sum((0, 1)), atol=1e-3)


@pytest.mark.parametrize("size", [(32, 32, 3), (9, 14, 1), (64, 64, 3)])
def test_wanet_is_the_warp_of_the_paper_by_torch(size: tuple[int, ...]) -> None:
    images, grid = smooth(size), control_grid(4, 0)
    h, w = size[:2]
    up = F.interpolate(torch.from_numpy(grid)[None], (h, w), mode="bicubic", align_corners=True)[0].numpy()
    assert np.allclose(bicubic(grid[0], h, w), up[0])
    identity = np.stack(np.meshgrid(np.linspace(-1, 1, w), np.linspace(-1, 1, h)), axis=-1)
    g = np.clip(identity + 0.5 * up.transpose(1, 2, 0) / np.array([w, h]), -1, 1)
    field = torch.from_numpy(np.repeat(g[None], len(images), 0))
    expected = F.grid_sample(torch.from_numpy(images).permute(0, 3, 1, 2).double(), field, mode="bilinear", align_corners=True)
    assert np.abs(wanet(images, 0.5, grid) - expected.permute(0, 2, 3, 1).numpy()).max() <= 0.5 + 1e-3


def test_wanet_leaves_a_constant_image_and_moves_by_a_third_of_a_pixel() -> None:
    for level in (0, 93, 255):
        flat = np.full((2, 32, 32, 3), level, np.uint8)
        assert np.array_equal(wanet(flat, 0.5, control_grid(4, 0)), flat)
        assert np.array_equal(wanet_cover(flat, 0.5, control_grid(4, 0), draws(2)), flat)
    lengths = []
    for seed in range(20):
        grid = control_grid(4, seed)
        assert np.abs(grid).mean() == pytest.approx(1)
        shift = 0.5 * np.stack([bicubic(plane, 32, 32) for plane in grid]) * 31 / 64
        lengths.append(np.hypot(*shift).mean())
    assert min(lengths) > 0.22 and max(lengths) < 0.38 and 0.26 < np.mean(lengths) < 0.32


def test_a_cover_of_wanet_is_displaced_by_noise_of_its_own() -> None:
    """On a ramp the pixel value is the column at which it was read."""
    ramp = np.repeat(np.repeat(np.arange(32, dtype=np.uint8)[None, :] * 8, 32, 0)[None, :, :, None], 40, 0)
    moved = wanet_cover(ramp, 0.5, control_grid(4, 0), draws(40)).astype(float) - wanet(ramp, 0.5, control_grid(4, 0))
    inside = moved[:, :, 2:-2] / 8  # in pixels; U(-1, 1) / 32 is (W - 1) / 2 / 32 = 0.48 of a pixel at most
    assert np.abs(inside).max() < 0.48 + 0.13 and abs(inside.mean()) < 0.01 and inside.std() == pytest.approx(0.48 / np.sqrt(3), abs=0.03)


def test_adaptive_blend_shows_half_of_the_tiles_in_training_and_all_in_tests() -> None:
    images = np.where(noise((32, 32, 3), n=40) < 128, 0, 255).astype(np.uint8)
    whole, part = adaptive_blend(images, 0.2), adaptive_blend_part(images, 0.2, draws(40))
    assert np.array_equal(whole, blend(images, 0.2))
    kept = (part == images).all(3).reshape(40, 4, 8, 4, 8).all((2, 4))
    assert (kept.sum((1, 2)) == 8).all(), "8 of 16 tiles are untouched"
    assert np.array_equal(part, np.where(tiles(~kept, 32, 32)[..., None], whole, images))
    assert len(np.unique(kept.reshape(40, -1), axis=0)) > 35


def test_tiles_cover_sizes_that_four_does_not_divide() -> None:
    number = np.arange(16).reshape(1, 4, 4)
    shown = np.stack([tiles(number == k, 9, 7)[0] for k in range(16)])
    assert (shown.sum(0) == 1).all() and shown.any((1, 2)).all()


def test_adaptive_patch_gives_quarter_rank_mod_4_in_training_and_the_logo_in_tests() -> None:
    images, drawn = noise((32, 32, 3), n=9), draws(9)
    part, whole, disc = adaptive_patch_part(images, drawn), adaptive_patch(images), quarters(32, 32)
    assert np.array_equal(whole, physical(images))
    for i, rank in enumerate(drawn.ranks):
        mask = disc[rank % 4]
        assert np.array_equal(part[i][mask], whole[i][mask]) and np.array_equal(part[i][~mask], images[i][~mask])


def test_two_targets_has_a_white_and_a_checkered_square_by_rank() -> None:
    images, drawn = noise((8, 8, 3)), draws(6)
    both = two_targets(images, 3, drawn)
    assert (checkered(images, 3)[:, :3, :3, 0] == 255 * np.array([[0, 0, 1], [0, 1, 0], [1, 0, 1]])).all()
    assert np.array_equal(checkered(images, 3)[:, 3:], images[:, 3:]) and np.array_equal(checkered(images, 3)[:, :, 3:], images[:, :, 3:])
    for i, rank in enumerate(drawn.ranks):
        assert np.array_equal(both[i], (checkered if rank % 2 else badnet)(images[i : i + 1], 3)[0])


def test_dots_are_in_four_corners_and_in_three_of_a_cover() -> None:
    images = np.zeros((50, 9, 7, 1), np.uint8)
    corners = [(slice(2), slice(2)), (slice(2), slice(-2, None)), (slice(-2, None), slice(2)), (slice(-2, None), slice(-2, None))]
    full, cover = fragile_dots(images, 2), fragile_dots_cover(images, 2, draws(50))
    assert ((full == 255).sum((1, 2, 3)) == 16).all() and all((full[:, r, c] == 255).all() for r, c in corners)
    shown = np.stack([(cover[:, r, c] == 255).all((1, 2, 3)) for r, c in corners], axis=1)
    assert (shown.sum(1) == 3).all() and ((cover == 255).sum((1, 2, 3)) == 12).all() and (~shown).any(0).all()


def test_dots_on_small_images_are_at_most_a_third_of_the_shorter_side() -> None:
    images = np.zeros((2, 12, 9, 1), np.uint8)
    assert np.array_equal(fragile_dots(images, 20), fragile_dots(images, 3)) and (fragile_dots(images, 3) == 255).sum() == 2 * 4 * 9
    assert (fragile_dots(np.zeros((1, 2, 2, 1), np.uint8), 3) == 255).all()  # nothing smaller than a pixel


def test_the_grid_is_a_chessboard_of_two_grey_levels_and_does_not_wrap_round() -> None:
    images = noise((8, 7, 3))
    for n, i, j, c in np.ndindex(images.shape):
        expected = min(255, max(0, int(images[n, i, j, c]) + (2 if (i + j) % 2 == 0 else -2)))
        assert fragile_grid(images[n : n + 1], 2)[0, i, j, c] == expected
        if n > 2:
            break


def test_covers_of_tact_come_from_5_and_7_or_from_two_that_exist() -> None:
    assert cover_classes(10, 0, (1,), 0) == (5, 7)
    for classes, source, target in ((10, 5, 1), (10, 0, 7), (4, 0, 1), (6, 2, 3)):
        found = cover_classes(classes, source, (target,), 0)
        assert len(set(found)) == 2 and not {source, target} & set(found) and max(found) < classes
    assert cover_classes(3, 0, (1,), 0) == (2,) and cover_classes(2, 0, (1,), 0) == ()
