"""The files of a planted attack: images with triggers, the truth, the record."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from meca.attacks import ATTACKS, Draws
from meca.attacks.poisoning import Plan, PoisonParams, Selection
from meca.attacks.wanet import control_grid
from meca.data.store import Store, write_array
from meca.errors import InputRefused

__all__ = ["BLOCK", "counted", "recorded", "triggered", "truth_table", "write_views"]


BLOCK = 1000  # images that are triggered together; what happens to one depends on itself alone


def triggered(clean: Store, rows: np.ndarray, planned: Plan, params: PoisonParams, seed: int) -> dict[int, tuple[np.ndarray, int]]:
    """Return the new pixels and label of every poisoned sample and every cover, by row of the new store.

    Args:
        clean: The store before the attack.
        rows: int64 [n], the row of `clean` for each row of the new store.
        planned: What becomes of every sample.
        params: The attack.
        seed: Of the run.

    Raises:
        InputRefused: The trigger changes nothing.
    """
    attack = ATTACKS[params.attack]
    changed: dict[int, tuple[np.ndarray, int]] = {}
    for chosen, view in ((planned.poison, attack.planted), (planned.covers, attack.cover)):
        if view is None or len(chosen.rows) == 0:
            continue
        pixels = np.asarray(clean.images[rows[chosen.rows]])
        parts = [slice(start, start + BLOCK) for start in range(0, len(pixels), BLOCK)]
        planted = np.concatenate([view(pixels[part], params, Draws(seed, chosen.rows[part], chosen.ranks[part])) for part in parts])
        if np.array_equal(planted, pixels):
            # As a sine of 6 periods does over 12 pixels: it is zero at each of them.
            raise InputRefused(
                f"The trigger of attack {params.attack!r} changes no pixel of these images; change its fields in params.yaml: [poison]."
            )
        changed |= {int(row): (image, int(planned.given[row])) for row, image in zip(chosen.rows, planted, strict=True)}
    return changed


def write_views(clean: Store, truth: Path, params: PoisonParams, seed: int) -> None:
    """Write the test images with each trigger."""
    pixels = clean.images[clean.test]
    for name, view in zip(_files(params), ATTACKS[params.attack].views, strict=True):
        parts = [np.asarray(pixels[start : start + BLOCK]) for start in range(0, max(len(pixels), 1), BLOCK)]
        write_array(truth / name, np.concatenate([view(part, params, seed) for part in parts]))


def _files(params: PoisonParams) -> list[str]:
    return ["triggered.npy", *(f"triggered_{number}.npy" for number in range(2, len(ATTACKS[params.attack].views) + 1))]


def truth_table(labels: np.ndarray, planned: Plan, params: PoisonParams, names: pa.Table) -> pa.Table:
    """Return truth.parquet: what is true about every training row; its id is that of the sample as the defender receives it."""
    marks = {name: np.zeros(len(labels), dtype=bool) for name in ("is_poisoned", "is_cover", "is_noise")}
    for mark, chosen in zip(marks.values(), (planned.poison, planned.covers, planned.noise), strict=True):
        mark[chosen.rows] = True
    trigger = np.full(len(labels), -1, dtype=np.int8)
    for chosen in (planned.poison, planned.covers):
        trigger[chosen.rows] = chosen.ranks % (ATTACKS[params.attack].parts if params.attack != "none" else 1)
    named = {name: names[name] for name in names.column_names}
    return pa.table({"row": np.arange(len(labels)), **marks, "original_label": labels, "trigger_id": trigger, **named})


def recorded(planned: Plan, params: PoisonParams, labels: np.ndarray, seed: int) -> dict[str, Any]:
    """Return what attack.json says about the attack."""
    attack, poison, covers = ATTACKS[params.attack], planned.poison, planned.covers
    targets = planned.targets
    record: dict[str, Any] = {
        "target_class": targets[0] if targets else None,
        "targets": list(targets),
        "source_class": planned.source_class,
        "clean_label": attack.clean_label,
        "given": attack.given,
        "requested": poison.requested,
        "poisoned": len(poison.rows),
        "poison_rate": len(poison.rows) / len(labels),
        "capped": poison.capped,
        "reason": _reason(poison, params),
        "pool": poison.pool,
        "carrier_classes": sorted({int(label) for label in labels[poison.rows]}),
        "covers": counted(covers) | {"reason": _reason(covers, params)},
        "cover_rate": len(covers.rows) / len(labels),
        "cover_classes": None if planned.cover_classes is None else list(planned.cover_classes),
        "views": _files(params),
    }
    if targets:
        # What a clean-label paper quotes: the poison in the class that it is labelled as, of all samples labelled so.
        hit = np.isin(planned.given, targets)
        record["share_of_target"] = len(poison.rows) / int(hit.sum())
    if params.attack == "wanet":
        record["control_grid"] = control_grid(params.warp_grid, seed).tolist()  # without it nobody can build the trigger again
    return record


def counted(chosen: Selection) -> dict[str, Any]:
    """Return how many samples were asked for, chosen, and could have been chosen."""
    return {"requested": chosen.requested, "actual": len(chosen.rows), "pool": chosen.pool, "capped": chosen.capped}


def _reason(chosen: Selection, params: PoisonParams) -> str | None:
    return f"at most {params.cap:g} of the pool of {chosen.pool}" if chosen.capped else None
