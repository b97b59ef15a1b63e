"""A number with which a stage could not work, or would answer without having asked, is refused before the first stage."""

from pathlib import Path

import pytest

from meca.errors import UsageError
from meca.params import PRESETS
from meca.stages.parameters import validate
from meca.verbs import clean
from tests.making import make_folder, settings


@pytest.mark.parametrize("preset", PRESETS)
def test_what_ships_is_accepted(preset: str) -> None:
    validate(settings(preset=preset))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("partition.signals", ["kll"], "[partition] expected signals to be one or both of kl, loss, got"),
        ("partition.signals", [], "expected signals to be one or both"),
        ("partition.masks", 0, "expected masks >= 1, got 0"),
        ("partition.patch", 0, "expected patch >= 1, got 0"),
        ("partition.alpha", 7.0, "expected alpha in [0, 1], got 7.0"),
        ("enhance.rounds", 0, "[enhance] expected rounds >= 1, got 0"),
        ("enhance.plain", 4.0, "expected plain in (0, 1), got 4.0"),
        ("enhance.core", 0.0, "expected core in (0, 1), got 0.0"),
        ("partition.mask_of", "samples", "expected partition.mask_of to be ('set', 'sample'), got 'samples'"),
        ("enhance.rescore", "some", "expected enhance.rescore to be ('rest', 'all', 'never'), got 'some'"),
        ("enhance.mean_over", "part", "expected enhance.mean_over to be ('batch', 'parts'), got 'part'"),
        ("enhance.alpha_growth", 0.0, "[enhance] expected alpha_growth in (0, 1], got 0.0"),
        ("enhance.alpha_growth", 1.5, "[enhance] expected alpha_growth in (0, 1], got 1.5"),
        ("split.groups", 1, "[split] expected groups >= 2, got 1"),
        ("split.typical", [], "expected typical numbers in (0, 1), one at least, got"),
        ("split.typical", [0.5, 1.0], "expected typical numbers in (0, 1), one at least, got"),
        ("split.lower_content", 0.0, "expected lower_content in (0, 1], got 0.0"),
        ("split.lower_flips", 1.5, "expected lower_flips in (0, 1], got 1.5"),
        ("split.end", 0.6, "expected end in (0, 0.5), got 0.6"),
        ("split.probe", 0, "expected probe >= 2, got 0"),
        ("split.least_content", 0.0, "expected least_content > 0, got 0.0"),
        ("split.least_flips", -1.0, "expected least_flips > 0, got -1.0"),
        ("split.false_discovery", 1.5, "expected false_discovery in (0, 1], got 1.5"),
        ("split.rounds", 0, "expected rounds >= 1, got 0"),
        ("split.recipe.epochs", 0, "expected epochs >= 1, got 0"),
        ("relabel_finetune.probe", 0, "[relabel_finetune] expected probe >= 1, got 0"),
        ("network.width", 0, "[network] expected width >= 1, got 0"),
        ("detector.width", -1, "[detector] expected width >= 1, got -1"),
        ("split.rule", "misclassified", "expected split.rule 'tests' with enhance.method 'two_outputs', got 'misclassified'"),
        ("enhance.method", "unlearn", "expected split.rule 'misclassified' with enhance.method 'unlearn', got 'tests'"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_stage(field: str, value: object, sentence: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "in")
    with pytest.raises(UsageError) as refused:
        clean(str(tmp_path / "in"), tmp_path / "out", settings(**{field.replace(".", "__"): value}))
    assert sentence in str(refused.value)
    assert not list(tmp_path.rglob("*.parquet")) and not (tmp_path / "out").exists()
