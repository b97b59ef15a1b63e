"""Plant a known attack into a data set, for evaluation; with attack `none` and no option the store passes through untouched."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from meca import __version__
from meca.attacks import ATTACKS, Draws
from meca.attacks.poisoning import Plan, PoisonParams, Selection, long_tail, plan
from meca.attacks.wanet import control_grid
from meca.data.store import Store, open_store, rewrite, write_array, write_parquet
from meca.errors import InputRefused
from meca.files import canonical_json, copy_folder
from meca.stages.runtime import Context, main

GROUPS = ("seed", "poison")
OUTPUTS = ("store", "truth")

BLOCK = 1000  # images that are triggered together; what happens to one depends on itself alone


def run(ctx: Context, ingested: Path, store: Path, truth: Path) -> None:
    """Write the store as the defender receives it, and the truth, which only `evaluate` may read."""
    params = ctx.params.group("poison", PoisonParams)
    clean = open_store(ingested)
    record: dict[str, Any] = {"attack": params.attack}
    if params.attack == "none" and params.label_noise == 0 and params.imbalance == 1:
        copy_folder(ingested, store)
        (truth / "attack.json").write_text(canonical_json(record), encoding="utf-8")
        return
    classes = len(clean.info.class_names)
    keep = np.ones(clean.info.n, dtype=bool)
    keep[clean.train] = long_tail(clean.labels[clean.train], classes, params.imbalance, ctx.seed)
    rows = np.flatnonzero(keep[clean.train])  # of the old store; everything below counts what remains
    labels = clean.labels[rows]
    planned = plan(labels, classes, params, ctx.seed)
    changed = {int(row): (clean.images[rows[row]], int(planned.given[row])) for row in planned.noise.rows}
    if params.attack != "none":
        changed |= _triggered(clean, rows, planned, params, ctx.seed)
        _write_views(clean, truth, params, ctx.seed)
        record |= _record(planned, params, labels, ctx)
    rewrite(clean, store, {int(rows[row]): value for row, value in changed.items()}, keep)
    names = open_store(store, verify=False).readable.select(["sample_id", "source"]).slice(0, len(labels))
    write_parquet(_truth(labels, planned, params, names), truth / "truth.parquet")
    record |= {
        "seed": ctx.seed,
        "meca": __version__,
        "ingested": clean.info.root,
        "n": len(labels),
        "dropped": clean.info.n_train - len(labels),
        "noise": _counts(planned.noise),
        "noise_rate": len(planned.noise.rows) / len(labels),
        "params": {name: value for name, value in vars(params).items()},
    }
    (truth / "attack.json").write_text(canonical_json(record), encoding="utf-8")


def _triggered(clean: Store, rows: np.ndarray, planned: Plan, params: PoisonParams, seed: int) -> dict[int, tuple[np.ndarray, int]]:
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


def _write_views(clean: Store, truth: Path, params: PoisonParams, seed: int) -> None:
    """Write the test images with each trigger."""
    pixels = clean.images[clean.test]
    for name, view in zip(_files(params), ATTACKS[params.attack].views, strict=True):
        parts = [np.asarray(pixels[start : start + BLOCK]) for start in range(0, max(len(pixels), 1), BLOCK)]
        write_array(truth / name, np.concatenate([view(part, params, seed) for part in parts]))


def _files(params: PoisonParams) -> list[str]:
    return ["triggered.npy", *(f"triggered_{number}.npy" for number in range(2, len(ATTACKS[params.attack].views) + 1))]


def _truth(labels: np.ndarray, planned: Plan, params: PoisonParams, names: pa.Table) -> pa.Table:
    """Return truth.parquet: what is true about every training row; its id is that of the sample as the defender receives it."""
    marks = {name: np.zeros(len(labels), dtype=bool) for name in ("is_poisoned", "is_cover", "is_noise")}
    for mark, chosen in zip(marks.values(), (planned.poison, planned.covers, planned.noise), strict=True):
        mark[chosen.rows] = True
    trigger = np.full(len(labels), -1, dtype=np.int8)
    for chosen in (planned.poison, planned.covers):
        trigger[chosen.rows] = chosen.ranks % (ATTACKS[params.attack].parts if params.attack != "none" else 1)
    named = {name: names[name] for name in names.column_names}
    return pa.table({"row": np.arange(len(labels)), **marks, "original_label": labels, "trigger_id": trigger, **named})


def _record(planned: Plan, params: PoisonParams, labels: np.ndarray, ctx: Context) -> dict[str, Any]:
    """Return what attack.json says about the attack; a cap that bites is said aloud too."""
    attack, poison, covers = ATTACKS[params.attack], planned.poison, planned.covers
    for what, chosen in (("samples", poison), ("covers", covers)):
        if chosen.capped:
            ctx.progress("poison", 1, 1, f"capped: {len(chosen.rows)} of {chosen.requested} {what}, because the pool has {chosen.pool}")
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
        "covers": _counts(covers) | {"reason": _reason(covers, params)},
        "cover_rate": len(covers.rows) / len(labels),
        "cover_classes": None if planned.cover_classes is None else list(planned.cover_classes),
        "views": _files(params),
    }
    if targets:
        # What a clean-label paper quotes: the poison in the class that it is labelled as, of all samples labelled so.
        hit = np.isin(planned.given, targets)
        record["share_of_target"] = len(poison.rows) / int(hit.sum())
    if params.attack == "wanet":
        record["control_grid"] = control_grid(params.warp_grid, ctx.seed).tolist()  # without it nobody can build the trigger again
    return record


def _counts(chosen: Selection) -> dict[str, Any]:
    return {"requested": chosen.requested, "actual": len(chosen.rows), "pool": chosen.pool, "capped": chosen.capped}


def _reason(chosen: Selection, params: PoisonParams) -> str | None:
    return f"at most {params.cap:g} of the pool of {chosen.pool}" if chosen.capped else None


if __name__ == "__main__":
    main(sys.modules[__name__])
