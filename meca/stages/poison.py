"""Plant a known attack into a data set, for evaluation; with attack `none` and no option the store passes through untouched."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from meca import __version__
from meca.attacks.kin import nearest
from meca.attacks.planting import counted, recorded, triggered, truth_table, write_views
from meca.attacks.poisoning import PoisonParams, long_tail, plan
from meca.data.store import Changes, open_store, rewrite, write_parquet
from meca.files import canonical_json, copy_folder
from meca.stages.graph import Output
from meca.stages.runtime import Context, main


def run(ctx: Context, ingested: Path, store: Output, truth: Output, *, poison: PoisonParams) -> None:
    """Write the store as the defender receives it, and the truth, which only `evaluate` may read."""
    params, clean = poison, open_store(ingested)
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
    planned = plan(labels, classes, params, ctx.seed, partial(nearest, clean.images, rows, labels, classes))
    with Changes(store, clean.images.shape[1:]) as changed:
        changed.update({int(row): (clean.images[rows[row]], int(planned.given[row])) for row in planned.noise.rows})
        if params.attack != "none":
            triggered(clean, rows, planned, params, ctx.seed, changed)
        rewrite(clean, store, changed.moved(rows), keep)
    if params.attack != "none":
        write_views(clean, truth, planned, params, ctx.seed)
        record |= recorded(planned, params, labels, ctx.seed)
        for each in planned.planted:
            of = f" of {each.name}" if len(planned.planted) > 1 else ""
            for what, chosen in (("samples", each.poison), ("covers", each.covers)):
                if chosen.capped:
                    ctx.progress("poison", 1, 1, f"capped: {len(chosen.rows)} of {chosen.requested} {what}{of}, because the pool has {chosen.pool}")
    names = open_store(store, verify=False).readable.select(["sample_id", "source"]).slice(0, len(labels))
    write_parquet(truth_table(labels, planned, names), truth / "truth.parquet")
    record |= {
        "seed": ctx.seed,
        "meca": __version__,
        "ingested": clean.info.root,
        "n": len(labels),
        "dropped": clean.info.n_train - len(labels),
        "noise": counted(planned.noise),
        "noise_rate": len(planned.noise.rows) / len(labels),
        "params": {name: value for name, value in vars(params).items()},
    }
    (truth / "attack.json").write_text(canonical_json(record), encoding="utf-8")


if __name__ == "__main__":
    main(sys.modules[__name__])
