"""One model on one body of evidence: the test split, and what the suspects carry, of a finished run.

Champion and challenger are measured here by the same code on the same pictures; figures that each brought along from its
own data would not speak of the same thing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meca.errors import MecaError
from meca.files import read_json

if TYPE_CHECKING:
    import torch

    from meca.store import Store

__all__ = ["Evidence", "Figures", "Incomparable", "measure"]


class Incomparable(MecaError):  # noqa: N818 - the name says what the model is
    """A model cannot be measured on this evidence."""


@dataclass(frozen=True)
class Evidence:
    """What a finished run knows about its data."""

    store: Path
    split: Path  # who was flagged first
    final: Path  # folder of the last stage: what the clean model sees, and the verdict
    seed: int
    probe: int  # pictures that the test for a leak took at most


@dataclass(frozen=True)
class Figures:
    """What was measured; None where there is nothing to measure it on."""

    acc: float | None
    min_recall: float | None  # of the worst class
    leak: float | None
    n: int  # test images


def measure(model: Path, evidence: Evidence) -> Figures:
    """Return accuracy, recall of the worst class and leak (docs/files.md) of the model in a folder.

    Args:
        model: A folder with model.json and model.safetensors; nothing else in it is read.
        evidence: The data.

    Raises:
        Incomparable: The model cannot be read, or was made for other classes or pictures of another size.
    """
    import torch

    from meca.engine import predict, prepare
    from meca.metrics import accuracy
    from meca.models import load_model, read_description
    from meca.store import open_store

    store = open_store(evidence.store)
    try:
        made_for, network = read_description(model), load_model(model)
    except MecaError as error:
        raise Incomparable(str(error)) from None
    if made_for.class_names != store.info.class_names:
        raise Incomparable(
            f"it knows {len(made_for.class_names)} classes, which are not the {len(store.info.class_names)} of this data by name and order"
        )
    sizes = [(found.height, found.width, found.channels) for found in (made_for, store.info)]
    if sizes[0] != sizes[1]:
        raise Incomparable("it takes pictures of {}x{}x{}, and these are {}x{}x{}".format(*sizes[0], *sizes[1]))
    device = prepare()
    network = network.to(device.name)
    acc = worst = None
    n = store.info.n_test
    if n:
        predicted = predict(network, torch.from_numpy(store.pixels(store.test)).to(device.name)).argmax(1).cpu().numpy()
        found = accuracy(predicted, store.labels[store.test], len(store.info.class_names))
        acc, worst = found["acc"], None if None in found["recall"] else min(found["recall"])
    return Figures(acc, worst, _leak(network, store, evidence, device.name), n)


def _leak(network: "torch.nn.Module", store: "Store", evidence: Evidence, device: str) -> float | None:
    """Return what stage `relabel_finetune` calls the leak, on the very pictures that it took; None where it tested nothing."""
    import numpy as np
    import torch

    from meca.leak import carried, case
    from meca.stages.tensors import column, read_rows

    if read_json(evidence.final / "verdict.json").get("leak") is None:
        return None
    n = store.info.n_train
    words = read_rows(evidence.split / "decisions.parquet", ["verdict"], n)["verdict"].to_pylist()
    images = torch.from_numpy(store.pixels(store.train)).to(device)
    flagged = torch.tensor([word != "clean" for word in words], device=device)
    labels = torch.from_numpy(np.array(store.labels[store.train], dtype=np.int64)).to(device)
    content = torch.from_numpy(column(evidence.final / "decisions.parquet", "clean_pred", n).astype(np.int64)).to(device)
    tests = [case(images, labels, flagged, content, target, evidence.seed, evidence.probe) for target in sorted({*labels[flagged].tolist()})]
    return max((round(carried(network, test), 6) for test in tests if test is not None), default=None)
