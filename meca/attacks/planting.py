"""The files of a planted attack: images with triggers, the truth, the record."""

from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from meca.attacks import Draws
from meca.attacks.draws import SIGN
from meca.attacks.poisoning import Plan, PoisonParams, Selection, attack_names
from meca.attacks.wanet import control_grid
from meca.data.store import Store, write_blocks
from meca.errors import InputRefused

__all__ = ["Changed", "counted", "in_light", "recorded", "signed", "together", "triggered", "truth_table", "view_names", "write_views"]


BLOCK = 1000  # images of 32 pixels, or as many bytes of larger ones, that are triggered together; what happens to one depends on itself alone
Changed = MutableMapping[int, tuple[np.ndarray, int]]


def together(shape: Sequence[int]) -> int:
    """Return how many images of [h w c] are triggered together, one at least."""
    return max(1, min(BLOCK, BLOCK * 32 * 32 * 3 // int(np.prod(shape))))


def triggered(clean: Store, rows: np.ndarray, planned: Plan, params: PoisonParams, seed: int, changed: Changed | None = None) -> Changed:
    """Return the new pixels and label of every poisoned sample and every cover, by row of the new store.

    Args:
        clean: The store before the attack.
        rows: int64 [n], the row of `clean` for each row of the new store.
        planned: What becomes of every sample.
        params: The attack.
        seed: Of the run.
        changed: They are added to these; to none where it is None.

    Raises:
        InputRefused: The trigger changes nothing.
    """
    changed = {} if changed is None else changed
    labels = np.asarray(clean.labels[rows])
    light = _lights(clean, rows, labels, planned) if params.match_light else None
    for each in planned.planted:
        for chosen, view in ((each.poison, each.attack.planted), (each.kept, each.attack.planted), (each.covers, each.cover)):
            if view is None or len(chosen.rows) == 0:
                continue
            changes, size = False, together(clean.images.shape[1:])
            led = None if light is None or chosen is each.covers else light[each.led(labels, chosen)]
            for part in (slice(start, start + size) for start in range(0, len(chosen.rows), size)):
                pixels = np.asarray(clean.images[rows[chosen.rows[part]]])
                draws = Draws(seed, chosen.rows[part], chosen.ranks[part], len(each.leads))
                planted = view(pixels, params, draws)
                planted = signed(pixels, planted, draws) if params.random_sign else planted
                changes |= not np.array_equal(planted, pixels)
                planted = planted if led is None else in_light(planted, led[part])
                for row, image in zip(chosen.rows[part], planted, strict=True):
                    changed[int(row)] = image, int(planned.given[row])
            if not changes:
                # As a sine of 6 periods does over 12 pixels: it is zero at each of them.
                raise InputRefused(
                    f"The trigger of attack {each.name!r} changes no pixel of these images; change its fields in params.yaml: [poison]."
                )
    return changed


def signed(images: np.ndarray, planted: np.ndarray, draws: Draws) -> np.ndarray:
    """Return the images with the trigger added or taken away, one or the other drawn for each: x + d or x - d, clipped, uint8 [b h w c].

    Where taking it away would change nothing, as a white square on black, it is added: else the sample would have a wrong label and no trigger.

    Args:
        images: uint8 [b h w c], x.
        planted: uint8 [b h w c], x + d.
        draws: The rows that the signs depend on.
    """
    if len(images) == 0:
        return planted
    minus = draws.again(SIGN, lambda rng: rng.random() < 0.5)
    away = np.clip(2 * images.astype(np.int16) - planted, 0, 255).astype(np.uint8)
    minus &= (away != images).any((1, 2, 3))
    return np.where(minus[:, None, None, None], away, planted)


def in_light(images: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return the images with another brightness and contrast, rounded and clipped, uint8 [b h w c]: x' = m + s (x - mean x) / (deviation of x).

    An image of one grey level has no contrast to change, and gets the brightness alone.

    Args:
        images: uint8 [b h w c].
        light: float [b 2], m and s of each image in grey levels, over all its pixels and channels.
    """
    x = images.astype(np.float64)
    mean, deviation = (fold(x, axis=(1, 2, 3), keepdims=True) for fold in (np.mean, np.std))
    m, s = (column[:, None, None, None] for column in light.T)
    return np.clip(np.rint(m + s * (x - mean) / np.where(deviation > 0, deviation, 1)), 0, 255).astype(np.uint8)


def _lights(clean: Store, rows: np.ndarray, labels: np.ndarray, planned: Plan) -> np.ndarray:
    """Return the mean brightness and contrast of the images of every class that a trigger leads to, before the attack, float64 [classes 2]."""
    light = np.full((len(clean.info.class_names), 2), np.nan)
    for target in sorted({target for each in planned.planted for leads in each.leads for target in leads}):
        mine = rows[labels == target]
        if len(mine) == 0:
            raise InputRefused(
                f"Expected images of class {target} for poison.match_light, found none: it has no light; set it to false in params.yaml."
            )
        told, size = [], together(clean.images.shape[1:])
        for start in range(0, len(mine), size):
            pixels = np.asarray(clean.images[mine[start : start + size]], dtype=np.float64)
            told.append(np.stack([pixels.mean((1, 2, 3)), pixels.std((1, 2, 3))], axis=1))
        light[target] = np.concatenate(told).mean(0)
    return light


def write_views(clean: Store, truth: Path, planned: Plan, params: PoisonParams, seed: int) -> None:
    """Write the test images with each trigger."""
    pixels, size = clean.images[clean.test], together(clean.images.shape[1:])
    views = [view for each in planned.planted for view in each.attack.tests(len(each.leads))]
    for name, view in zip(_files(planned), views, strict=True):
        parts = (np.asarray(pixels[start : start + size]) for start in range(0, len(pixels), size))
        write_blocks(truth / name, pixels.shape, (view(part, params, seed) for part in parts))


def view_names(views: int) -> list[str]:
    """Return a name for the test images of each trigger."""
    return ["triggered", *(f"triggered_{number}" for number in range(2, views + 1))]


def _files(planned: Plan) -> list[str]:
    return [f"{name}.npy" for name in view_names(sum(len(each.leads) for each in planned.planted))]


def truth_table(labels: np.ndarray, planned: Plan, names: pa.Table) -> pa.Table:
    """Return truth.parquet: what is true about every training row; its id is that of the sample as the defender receives it."""
    marks = {name: np.zeros(len(labels), dtype=bool) for name in ("is_poisoned", "is_cover", "is_noise")}
    for name, chosen in zip((*marks, "is_cover"), (planned.poison, planned.covers, planned.noise, planned.kept), strict=True):
        marks[name][chosen.rows] = True  # what carries a trigger under its true label is a cover, wherever its trigger comes from
    ids = sum(each.parts for each in planned.planted)
    trigger = np.full(len(labels), -1, dtype=np.int8 if ids <= np.iinfo(np.int8).max else np.int16)
    for each in planned.planted:
        for chosen in (each.poison, each.kept, each.covers):
            trigger[chosen.rows] = each.first + chosen.ranks % each.parts
    named = {name: names[name] for name in names.column_names}
    return pa.table({"row": np.arange(len(labels)), **marks, "original_label": labels, "trigger_id": trigger, **named})


def recorded(planned: Plan, params: PoisonParams, labels: np.ndarray, seed: int) -> dict[str, Any]:
    """Return what attack.json says about the attack."""
    poison, covers = planned.poison, planned.covers
    targets, given = planned.targets, sorted({each.attack.given for each in planned.planted})
    record: dict[str, Any] = {
        "target_class": targets[0] if targets else None,
        "targets": list(targets),
        "source_class": planned.source_class,
        "clean_label": given == ["own"],
        "given": given[0] if len(given) == 1 else given,
        "requested": poison.requested,
        "poisoned": len(poison.rows),
        "poison_rate": len(poison.rows) / len(labels),
        "kept_label": len(planned.kept.rows),
        "capped": poison.capped,
        "reason": _reason(poison, params),
        "pool": poison.pool,
        "carrier_classes": sorted({int(label) for label in labels[poison.rows]}),
        "covers": counted(covers) | {"reason": _reason(covers, params)},
        "cover_rate": len(covers.rows) / len(labels),
        "cover_classes": None if planned.cover_classes is None else list(planned.cover_classes),
        "views": _files(planned),
        "triggers": _triggers(planned),
    }
    if targets:
        # What a clean-label paper quotes: the poison in the class that it is labelled as, of all samples labelled so.
        hit = np.isin(planned.given, targets)
        record["share_of_target"] = len(poison.rows) / int(hit.sum())
    if "wanet" in attack_names(params.attack):
        record["control_grid"] = control_grid(params.warp_grid, seed).tolist()  # without it nobody can build the trigger again
    return record


def _triggers(planned: Plan) -> list[dict[str, Any]]:
    """Return what `evaluate` has to know of each trigger that has test images, in their order, and who carries it."""
    return [
        {
            "attack": each.name,
            "target_class": leads[0] if len(set(leads)) == 1 else None,
            "target_of": list(leads),
            "source_classes": None if each.sources is None else list(each.sources),
            # A trigger of several parts has several ids; of triggers that lead to a class each, each has its own.
            "trigger_ids": [each.first + part for part in range(each.parts) if len(each.leads) == 1 or part % len(each.leads) == number],
            "poison": counted(each.poison),
            "kept_label": len(each.kept.rows),
            "covers": counted(each.covers),
        }
        for each in planned.planted
        for number, leads in enumerate(each.leads)
    ]


def counted(chosen: Selection) -> dict[str, Any]:
    """Return how many samples were asked for, chosen, and could have been chosen."""
    return {"requested": chosen.requested, "actual": len(chosen.rows), "pool": chosen.pool, "capped": chosen.capped}


def _reason(chosen: Selection, params: PoisonParams) -> str | None:
    return f"at most {params.cap:g} of the pool of {chosen.pool}" if chosen.capped else None
