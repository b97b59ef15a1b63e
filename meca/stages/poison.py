"""Plant a known attack into a data set, for evaluation; with attack `none` the store passes through untouched."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meca.attacks import ATTACKS
from meca.errors import InputRefused
from meca.files import canonical_json
from meca.poisoning import PoisonParams, select
from meca.stages.runtime import Context, main
from meca.store import open_store, rewrite

GROUPS = ("seed", "poison")
OUTPUTS = ("store", "truth")


def run(ctx: Context, ingested: Path, store: Path, truth: Path) -> None:
    """Write the store as the defender receives it, and the truth, which only `evaluate` may read."""
    params = ctx.params.group("poison", PoisonParams)
    clean = open_store(ingested)
    if params.attack == "none":
        store.rmdir()
        shutil.copytree(ingested, store)
        (truth / "attack.json").write_text(canonical_json({"attack": "none"}), encoding="utf-8")
        return
    attack = ATTACKS[params.attack]
    labels = clean.labels[clean.train]
    chosen = select(labels, len(clean.info.class_names), params, attack.clean_label, np.random.default_rng([ctx.seed, 1]))
    pixels = np.asarray(clean.images[clean.train][chosen.rows])
    triggered = attack.trigger(pixels, params)
    if np.array_equal(triggered, pixels):
        # As a sine of 6 periods does over 12 pixels: it is zero at each of them.
        raise InputRefused(f"The trigger of attack {params.attack!r} changes no pixel of these images; change its fields in params.yaml: [poison].")
    given = labels[chosen.rows] if attack.clean_label else np.full(len(chosen.rows), params.target_class)
    rewrite(clean, store, {int(row): (image, int(label)) for row, image, label in zip(chosen.rows, triggered, given, strict=True)})
    is_poisoned = np.zeros(len(labels), dtype=bool)
    is_poisoned[chosen.rows] = True
    columns = {"row": np.arange(len(labels)), "is_poisoned": is_poisoned, "is_cover": np.zeros(len(labels), dtype=bool), "original_label": labels}
    pq.write_table(pa.table(columns), truth / "truth.parquet", compression="zstd")
    np.save(truth / "triggered.npy", attack.trigger(np.asarray(clean.images[clean.test]), params), allow_pickle=False)
    record = {
        "attack": params.attack,
        "target_class": params.target_class,
        "clean_label": attack.clean_label,
        "requested": chosen.requested,
        "poisoned": len(chosen.rows),
        "poison_rate": len(chosen.rows) / len(labels),
        "capped": chosen.capped,
        "pool": chosen.pool,
        "params": {name: value for name, value in vars(params).items()},
    }
    if chosen.capped:
        ctx.progress("poison", 1, 1, f"capped: {len(chosen.rows)} of {chosen.requested} samples, because the pool has {chosen.pool}")
    (truth / "attack.json").write_text(canonical_json(record), encoding="utf-8")


if __name__ == "__main__":
    main(sys.modules[__name__])
