"""One model on one body of evidence: the test split, and what the suspects have in common, of a finished run.

Champion and challenger are measured here by the same code on the same images; figures that each brought along from its
own data would not speak of the same thing. What the evidence is stands in the published folder, or is named there by SHA-256:
where that is signed, nothing else has a say in what is measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meca.errors import MecaError
from meca.params import Params
from meca.release.gates import Figures
from meca.release.published import Published

if TYPE_CHECKING:
    import numpy as np
    import torch

    from meca.data.store import Store

__all__ = ["Evidence", "Incomparable", "gather", "measure"]


class Incomparable(MecaError):  # noqa: N818 - the name says what the model is
    """A model cannot be measured on this evidence."""


@dataclass(frozen=True)
class Evidence:
    """What a finished run knows about its data."""

    store: "Store"
    flagged: "np.ndarray"  # bool [n_train], by stage `split`
    content: "np.ndarray"  # int64 [n_train], what the clean model sees
    is_tested: bool  # whether there was a test for a leak
    seed: int
    probe: int  # images that it took at most


def gather(store: Path, published: Published, params: Params) -> Evidence:
    """Return the evidence that a published folder is about.

    Args:
        store: The data as the defender received them.
        published: A published folder.
        params: The numbers that it was made with.

    Raises:
        MecaError: The data or the numbers are others than those of the folder.
    """
    import numpy as np

    from meca.data.columns import pc
    from meca.data.store import open_store
    from meca.stages.publish import params_digest

    summary, data = published.summary, open_store(store)
    for what, found, expected in (
        (f"The data in {store}", data.info.root, summary["input_sha256"]),
        (f"What {params.origin} says", params_digest(params), summary["params_sha256"]),
    ):
        if found != expected:
            raise MecaError(
                f"{what} has the SHA-256 {found[:12]}, and {published.path} was made with {str(expected)[:12]}; "
                "bring that back or run the pipeline again."
            )
    verdicts = published.verdicts()
    samples = data.samples.filter(pc.equal(data.samples["split"], "train")).sort_by("source")
    if not all(samples[name].equals(verdicts[name]) for name in ("source", "sample_id", "label")):
        raise MecaError(f"The verdicts in {published.path} are about other samples than {store} holds; run the pipeline again.")
    row = samples["row"].to_numpy()
    flagged, content = np.zeros(data.info.n_train, bool), np.zeros(data.info.n_train, np.int64)
    judged = verdicts.filter(row >= 0)
    # What the clean model confirmed had been flagged: `split` goes by that.
    confirmed = ["confirmed" in codes for codes in judged["reasons"].to_pylist()]
    flagged[row[row >= 0]] = pc.not_equal(judged["verdict"], "clean").to_numpy() | np.array(confirmed, bool)
    content[row[row >= 0]] = judged["clean_pred"].to_numpy()
    probe = int(params.raw("relabel_finetune")["probe"])
    return Evidence(data, flagged, content, summary["leak"] is not None, int(summary["seed"]), probe)


def measure(model: Path, evidence: Evidence) -> Figures:
    """Return accuracy, recall of the worst class and leak (docs/files.md) of the model in a folder.

    Args:
        model: A folder with model.json and model.safetensors; nothing else in it is read.
        evidence: The data.

    Raises:
        Incomparable: The model cannot be read, or was made for other classes or images of another size.
    """
    from meca.metrics import accuracy
    from meca.models import load_model, read_description
    from meca.training.device import prepare
    from meca.training.engine import predict
    from meca.training.images import mapped

    store = evidence.store
    try:
        made_for, network = read_description(model), load_model(model)
    except MecaError as error:
        raise Incomparable(str(error)) from None
    if made_for.class_names != store.info.class_names:
        raise Incomparable(
            f"it knows {len(made_for.class_names)} classes, which are not the {len(store.info.class_names)} of this data by name and order"
        )
    sizes = [(each.height, each.width, each.channels) for each in (made_for, store.info)]
    if sizes[0] != sizes[1]:
        raise Incomparable("it takes images of {}x{}x{}, and these are {}x{}x{}".format(*sizes[0], *sizes[1]))
    device = prepare()
    network = network.to(device.name)
    acc = worst = None
    n = store.info.n_test
    if n:
        predicted = predict(network, mapped(store.images[store.test], device.name)).argmax(1).cpu().numpy()
        figures = accuracy(predicted, store.labels[store.test], len(store.info.class_names))
        acc, worst = figures["acc"], None if None in figures["recall"] else min(figures["recall"])
    return Figures(acc, worst, _leak(network, evidence, device.name), n)


def _leak(network: "torch.nn.Module", evidence: Evidence, device: str) -> float | None:
    """Return what stage `relabel_finetune` calls the leak, on the very images that it took; None where it tested nothing."""
    import numpy as np
    import torch

    from meca.method.leak import cases, measure
    from meca.training.engine import Data
    from meca.training.images import mapped

    if not evidence.is_tested:
        return None
    store = evidence.store
    labels = torch.from_numpy(np.array(store.labels[store.train], dtype=np.int64)).to(device)
    data = Data(mapped(store.images[store.train], device), labels)
    flagged, content = torch.from_numpy(evidence.flagged).to(device), torch.from_numpy(evidence.content).to(device)
    return measure(network, cases(data, flagged, content, evidence.seed, evidence.probe)).worst
