"""params.yaml: no unknown key, no missing key, no second meaning."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from meca.data.readers import IngestParams
from meca.errors import UsageError
from meca.params import PACKAGED, Params, read_params, with_settings

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Group:
    alpha: float
    steps: int
    name: str
    sizes: tuple[int, ...]
    limit: int | None


GOOD = {"alpha": 1, "steps": 2, "name": "x", "sizes": [1, 2], "limit": None}


def group(**changes: object) -> Group:
    return Params({"seed": 0, "preset": "default", "g": {**GOOD, **changes}}, "params.yaml").group("g", Group)


def test_the_packaged_file_is_the_one_at_the_root() -> None:
    assert PACKAGED.read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_ingest_has_the_fields_that_the_reader_wants() -> None:
    assert read_params(PACKAGED).group("ingest", IngestParams).source == "shapes"


def test_a_plain_yaml_reader_reads_the_same_values() -> None:
    assert yaml.safe_load(PACKAGED.read_text(encoding="utf-8")) == read_params(PACKAGED).tree


def test_values_are_converted_and_kept() -> None:
    assert group() == Group(1.0, 2, "x", (1, 2), None)
    assert isinstance(group().alpha, float)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"alhpa": 1}, r"\[g\] has unknown 'alhpa' \(did you mean 'alpha'\?\)"),
        ({"steps": 2.0}, r"expected g\.steps to be int, got 2\.0"),
        ({"steps": True}, r"expected g\.steps to be int, got True"),
        ({"alpha": "1e-3"}, r"expected g\.alpha to be float, got '1e-3'"),
        ({"alpha": False}, r"expected g\.alpha to be float, got False"),
        ({"name": 3}, r"expected g\.name to be str, got 3"),
        ({"sizes": [1, "2"]}, r"expected g\.sizes to be int, got '2'"),
        ({"limit": "no"}, r"expected g\.limit to be int or NoneType"),
    ],
)
def test_a_wrong_field_is_named(changes: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        group(**changes)


def test_a_missing_field_and_a_missing_group_are_named() -> None:
    with pytest.raises(UsageError, match=r"\[g\] lacks \['alpha'"):
        Params({"g": {"steps": 1}}, "params.yaml").group("g", Group)
    with pytest.raises(UsageError, match=r"expected a group \[h\], found none"):
        Params({}, "params.yaml").group("h", Group)


@pytest.mark.parametrize("seed", [-1, 2**31, True, "0", None, 1.0])
def test_a_seed_that_is_none_is_refused(seed: object) -> None:
    with pytest.raises(UsageError, match="expected seed to be an integer"):
        _ = Params({"seed": seed}, "params.yaml").seed


def test_the_preset_chooses_the_block() -> None:
    tree = {"preset": "paper", "g": {"default": GOOD, "paper": {**GOOD, "steps": 9}}}
    assert Params(tree, "params.yaml").group("g", Group).steps == 9
    changed = with_settings(Params(tree, "params.yaml"), {"g.steps": "11"})
    assert changed.group("g", Group).steps == 11 and changed.tree["g"]["default"]["steps"] == 2
    with pytest.raises(UsageError, match="expected preset to be one of default, paper, got 'fast'"):
        Params({**tree, "preset": "fast"}, "params.yaml").raw("g")


def test_a_setting_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no parameter 'ingest\.sizes'; did you mean 'ingest\.size'\?"):
        with_settings(read_params(PACKAGED), {"ingest.sizes": "3"})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed: 0\nseed: 1\n", r"the key 'seed' stands twice in one group \(line 2\)"),
        ("- 1\n", "expected groups of parameters, got list"),
        ("a: [\n", "is not YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_parameter_file_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        read_params(tmp_path / "params.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Expected a parameter file at .*params\.yaml, found none"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("changes", [{"size": -1}, {"size": 5000}, {"train_limit": -1}, {"shapes_train": 5}, {"quarantine_share": 1.5}])
def test_ingest_refuses_numbers_without_meaning(changes: dict) -> None:
    name = next(iter(changes))
    with pytest.raises(UsageError, match=f"expected ingest.{name}"):
        IngestParams(**{**read_params(PACKAGED).raw("ingest"), **changes})
