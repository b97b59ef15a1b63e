"""Stage evaluate: the numbers are those of the models on disk, with the truth and without it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from meca.data.store import open_store, read_parquet
from meca.errors import MecaError
from meca.method.relabel import RelabelParams
from meca.metrics import accuracy, attack_figures, detection, separation
from meca.models import NetworkParams, load_model, read_description, save_model
from meca.params import PRESETS
from meca.stages import evaluate
from meca.stages.tensors import open_train
from meca.training.device import EngineParams, prepare
from meca.training.engine import Data, Session, predict
from meca.training.trainer import Recipe
from tests.stages.chain import METHOD, N_TEST, N_TRAIN, NOTHING, quick, run, step, with_inputs

Finished = Callable[..., Path]


def read(folder: Path, file: str = "evaluation.json") -> dict:
    return json.loads((folder / "work" / "evaluate" / file).read_text())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("name", "stage"), [("final", "relabel_finetune"), ("clean", "train_clean"), ("enhanced", "enhance")])
def test_the_measures_are_those_of_the_models_on_disk(name: str, stage: str, preset: str, finished: Finished) -> None:
    folder, store = finished(preset), open_store(finished(preset) / "data" / "store")
    model, labels = load_model(folder / "work" / stage), store.labels[store.test]
    clean, triggered = (
        predict(model, torch.from_numpy(np.array(images))).argmax(1).numpy() % 4
        for images in (store.images[store.test], np.load(folder / "data" / "truth" / "triggered.npy"))
    )
    assert read(folder)[name] == {**accuracy(clean, labels, 4), **attack_figures([triggered], clean, labels, 4, [1])}


def test_both_outputs_of_a_class_count_for_it(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("evaluate", finished(), tmp_path)
    out = folder / "work" / "enhance"
    model, store = load_model(out), open_store(folder / "data" / "store")
    (last,) = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        last.bias[4:] += 1000  # every image is suspect
    save_model(model, read_description(out), out)
    step("evaluate", folder, quick(evaluate__references=False))
    predicted = predict(model, torch.from_numpy(np.array(store.images[store.test]))).argmax(1).numpy()
    assert (predicted >= 4).all()
    assert read(folder)["enhanced"]["correct"] == int((predicted - 4 == store.labels[store.test]).sum())


@pytest.mark.parametrize("preset", PRESETS)
def test_detection_compares_verdicts_with_the_truth(preset: str, finished: Finished) -> None:
    folder = finished(preset)
    truth, decisions = (
        read_parquet(folder / "data" / "truth" / "truth.parquet"),
        read_parquet(folder / "work" / "relabel_finetune" / "decisions.parquet"),
    )
    poisoned, covers = (truth[column].to_numpy(zero_copy_only=False) for column in ("is_poisoned", "is_cover"))
    flagged = np.array(read_parquet(folder / "work" / "split" / "decisions.parquet")["verdict"].to_pylist()) != "clean"
    kept = np.array(decisions["action"].to_pylist()) == "keep"
    suspicion = decisions["suspicion"].to_numpy().astype(np.float64)
    found = read(folder)["detection"]
    expected = detection(flagged, suspicion, poisoned, covers, decisions["label"].to_numpy(), 1)
    expected["poison_left"] = int((poisoned & kept).sum())
    assert {name: found[name] for name in expected} == expected
    assert found["removed"] == decisions["action"].to_pylist().count("remove")


def test_the_references_are_trained_with_the_same_recipe(finished: Finished, tmp_path: Path) -> None:
    """Where nothing is flagged, the clean model is the one without defence: the same samples, order and first weights."""
    folder = with_inputs("split", finished(), tmp_path)
    with_inputs("poison", finished(), tmp_path)
    for path in (finished() / "data" / "truth").iterdir():
        (folder / "data" / "truth").mkdir(exist_ok=True)
        (folder / "data" / "truth" / path.name).write_bytes(path.read_bytes())
    run(folder, quick(**NOTHING), METHOD[3:])
    result = read(folder)
    assert result["no_defence"] == result["clean"] == result["final"]
    assert result["passes"] == "plain" and result["references"]["plain"] == {name: result[name] for name in ("no_defence", "oracle")}
    assert result["oracle"] is not None and result["oracle"] != result["no_defence"]
    assert result["detection"]["flagged"] == 0 and result["detection"]["tpr"] == 0.0


def test_what_goes_out_is_compared_with_references_that_had_as_many_passes(finished: Finished) -> None:
    result, stages = read(finished()), finished() / "work"
    assert json.loads((stages / "relabel_finetune" / "metrics.json").read_text())["passes"] == 1 and result["passes"] == "tuned"
    assert {name: result[name] for name in ("no_defence", "oracle")} == result["references"]["tuned"] != result["references"]["plain"]


def test_a_reference_is_tuned_as_relabel_finetune_tunes_the_clean_model(finished: Finished, tmp_path: Path) -> None:
    """On what train_clean kept, the reference before the further passes is the clean model, and after them what that stage makes of it."""
    params, device = quick(), prepare(quick().group("engine", EngineParams))
    given = open_train(finished() / "data" / "store", device)
    kept = np.array(read_parquet(finished() / "work" / "split" / "decisions.parquet")["verdict"].to_pylist()) == "clean"
    recipes = (params.group("train_clean", Recipe), params.group("relabel_finetune", RelabelParams).recipe)

    def weights(model: torch.nn.Module) -> dict:
        return {name: value.tolist() for name, value in model.state_dict().items()}

    network = params.group("network", NetworkParams)
    found = evaluate.references({"it": kept}, given, network, recipes, device, lambda *_: Session(params.seed, device), weights)
    clean = load_model(finished() / "work" / "train_clean")
    assert found["plain"]["it"] == weights(clean)
    further = Session(params.seed, device).train(clean, Data(*given[1:]), recipes[1], "relabel_finetune", torch.from_numpy(kept))
    assert found["tuned"]["it"] == weights(further) != found["plain"]["it"]


def test_a_stage_before_that_does_not_say_its_passes_is_run_again(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("evaluate", finished(), tmp_path)
    (folder / "work" / "relabel_finetune" / "metrics.json").write_text("{}")
    with pytest.raises(MecaError, match=r"number of passes in .*metrics\.json, got None; run stage relabel_finetune again"):
        step("evaluate", folder, quick(evaluate__references=False))


def test_the_references_can_be_left_out(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("evaluate", finished(), tmp_path)
    step("evaluate", folder, quick(evaluate__references=False))
    with_references, without = read(finished()), read(folder)
    assert (without["no_defence"], without["oracle"]) == (None, None)
    assert {**with_references, "no_defence": None, "oracle": None, "references": None} == without


def test_without_an_attack_it_says_what_cannot_be_known(tmp_path: Path) -> None:
    folder = run(tmp_path, quick(attack="none"))
    result, metrics = read(folder), read(folder, "metrics.json")
    assert result["known"] is False and result["detection"] is result["no_defence"] is result["oracle"] is None
    assert len(result["unknown"]) == 3 and result["final"]["asr"] is None and result["final"]["n"] == N_TEST
    assert "asr" not in metrics and "tpr" not in metrics and metrics["acc"] == result["final"]["acc"]


def test_without_test_images_there_is_no_accuracy(tmp_path: Path) -> None:
    folder = run(tmp_path, quick(attack="none"), n_test=0)
    result = read(folder)
    assert result["final"] is result["clean"] is result["enhanced"] is None
    assert result["unknown"][-1] == "accuracy (there is no test split)"
    assert read(folder, "metrics.json")["acc"] is None


def test_the_flat_figures_are_those_of_the_record(finished: Finished) -> None:
    result, metrics = read(finished()), read(finished(), "metrics.json")
    verdict = json.loads((finished() / "work" / "relabel_finetune" / "verdict.json").read_text())
    for prefix, name in (("", "final"), ("clean_", "clean"), ("enhanced_", "enhanced"), ("no_defence_", "no_defence"), ("oracle_", "oracle")):
        for key in ("acc", "asr", "asr_k", "asr_n", "ra"):
            assert metrics[prefix + key] == result[name][key]
    assert metrics["min_recall"] == min(r for r in result["final"]["recall"] if r is not None)
    assert (metrics["leak"], metrics["leak_power"]) == (verdict["leak"], verdict["leak_power"])
    lines = [json.loads(line) for line in (finished() / "work" / "evaluate" / "curves.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["phase"] == "rounds"]
    assert [(line["model"], line["acc"], line["asr"]) for line in rounds] == [
        (name, result[name]["acc"], result[name]["asr"]) for name in ("enhanced", "clean", "final")
    ]
    assert N_TRAIN == result["detection"]["flagged"] + json.loads((finished() / "work" / "train_clean" / "metrics.json").read_text())["kept"]


def test_wrong_labels_without_an_attack_are_counted_apart(tmp_path: Path) -> None:
    folder = run(tmp_path, quick(attack="none", poison__label_noise=0.25))
    result, metrics = read(folder), read(folder, "metrics.json")
    found = result["detection"]
    assert result["known"] is False and (found["tpr"], found["poisoned"], found["noise"]) == (None, 0, 24)
    assert found["noise_flagged"] == metrics["noise_flagged"] <= found["flagged"]
    assert round(found["fpr"] * (N_TRAIN - 24)) == found["flagged"] - found["noise_flagged"]
    assert sum(result["separation"]["final"]["clean"]) == N_TRAIN - 24 and result["separation"]["final"]["roc"] is None
    assert len(result["unknown"]) == 2 and "asr" not in metrics


@pytest.mark.parametrize("attack", ["two_targets", "all_to_all", "tact"])
def test_attacks_with_rules_of_their_own_are_measured_by_them(attack: str, finished: Finished, tmp_path: Path) -> None:
    """The models of another run will do: only the truth differs."""
    folder = with_inputs("evaluate", finished(), tmp_path)
    with_inputs("poison", finished(), tmp_path)
    params = quick(attack=attack, evaluate__references=False)
    step("poison", folder, params)
    step("evaluate", folder, params)
    store, model = open_store(folder / "data" / "store"), load_model(folder / "work" / "relabel_finetune")
    result, metrics, labels = read(folder), read(folder, "metrics.json"), store.labels[store.test]
    found, counted = result["final"], result["detection"]
    for each in result["separation"].values():
        assert (sum(each["poison"]), sum(each["clean"])) == (counted["poisoned"], N_TRAIN - counted["poisoned"] - counted["covers"])
    truth = folder / "data" / "truth"
    answers = [predict(model, torch.from_numpy(np.load(path))).argmax(1).numpy() % 4 for path in sorted(truth.glob("triggered*.npy"))]
    if attack == "two_targets":
        shares = [(answer[labels != c] == c).mean() for answer, c in zip(answers, (1, 2), strict=True)]
        assert [each["asr"] for each in found["per_trigger"]] == [metrics["asr_1"], metrics["asr_2"]] == pytest.approx(shares)
        assert metrics["asr"] == pytest.approx(max(shares))
    elif attack == "all_to_all":
        assert found["asr"] == pytest.approx((answers[0] == (labels + 1) % 4).mean()) and found["asr_n"] == N_TEST
        assert result["detection"]["auroc_target"] is None and found["target_recall"] is None
    else:
        for name, among in (("asr", labels == 0), ("asr_all", labels != 1), ("asr_leak", labels > 1)):
            assert found[name] == metrics[name] == pytest.approx((answers[0][among] == 1).mean())


@pytest.mark.parametrize("changes", [{"attack": "badnet+blend"}, {"poison__targets": 3}, {"poison__sources": 2}], ids=str)
def test_dials_are_measured_by_the_target_and_the_source_classes_of_each_trigger(changes: dict, finished: Finished, tmp_path: Path) -> None:
    """The models of another run will do: only the truth differs."""
    folder = with_inputs("evaluate", finished(), tmp_path)
    with_inputs("poison", finished(), tmp_path)
    params = quick(**changes, evaluate__references=False)
    step("poison", folder, params)
    step("evaluate", folder, params)
    store, model, truth = open_store(folder / "data" / "store"), load_model(folder / "work" / "relabel_finetune"), folder / "data" / "truth"
    found, metrics, labels = read(folder)["final"], read(folder, "metrics.json"), store.labels[store.test]
    answers = [predict(model, torch.from_numpy(np.load(path))).argmax(1).numpy() % 4 for path in sorted(truth.glob("triggered*.npy"))]
    if "attack" in changes:
        shares = [(answer[labels != c] == c).mean() for answer, c in zip(answers, (1, 2), strict=True)]
        assert [each["asr"] for each in found["per_trigger"]] == [metrics["asr_1"], metrics["asr_2"]] == pytest.approx(shares)
        assert [each["attack"] for each in found["per_trigger"]] == ["badnet", "blend"] and metrics["asr"] == pytest.approx(max(shares))
    elif "poison__targets" in changes:
        own = np.array([1, 2, 3, 1])[labels]  # (1 + y mod 3) mod 4
        assert found["asr"] == pytest.approx((answers[0] == own)[labels != own].mean()) and found["asr_n"] == N_TEST
        assert found["target_recall"] is None
    else:
        (sources,) = (each["source_classes"] for each in json.loads((truth / "attack.json").read_text())["triggers"])
        inside = np.isin(labels, sources)
        for name, among in (("asr", inside), ("asr_all", labels != 1), ("asr_leak", ~inside & (labels != 1))):
            assert found[name] == metrics[name] == pytest.approx((answers[0][among] == 1).mean())


def test_the_oracle_is_trained_without_poison_and_with_covers_and_wrong_labels(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_inputs("evaluate", finished(), tmp_path)
    with_inputs("poison", finished(), tmp_path)
    step("poison", folder, quick(attack="wanet", poison__label_noise=0.2))
    seen = []

    def train(session, model, data, recipe, purpose, kept):
        seen.append(kept.numpy().copy())
        return model

    monkeypatch.setattr(Session, "train", train)
    step("evaluate", folder, quick(attack="wanet"))
    truth = read_parquet(folder / "data" / "truth" / "truth.parquet")
    poisoned, others = truth["is_poisoned"].to_numpy(zero_copy_only=False), [truth[name].to_pylist() for name in ("is_cover", "is_noise")]
    assert all(any(other) for other in others)
    by_size = sorted(seen, key=np.sum)
    assert [np.array_equal(kept, ~poisoned) for kept in by_size] == [True, True, False, False] and by_size[2].all() and by_size[3].all()


@pytest.mark.parametrize("preset", PRESETS)
def test_separation_is_that_of_the_suspicions_on_disk(preset: str, finished: Finished) -> None:
    folder = finished(preset)
    truth = read_parquet(folder / "data" / "truth" / "truth.parquet")
    poisoned, covers = (truth[column].to_numpy(zero_copy_only=False) for column in ("is_poisoned", "is_cover"))
    found = read(folder)["separation"]
    for where, file in (("partition", "partition/scores.parquet"), ("final", "relabel_finetune/decisions.parquet")):
        suspicion = read_parquet(folder / "work" / file)["suspicion"].to_numpy().astype(float)
        assert found[where] == separation(suspicion, poisoned, ~poisoned & ~covers)
        assert sum(found[where]["poison"]) == poisoned.sum() and sum(found[where]["clean"]) == (~poisoned & ~covers).sum()
