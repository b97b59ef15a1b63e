"""params.yaml: no unknown key, no missing key, no second meaning."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from meca.data.readers import IngestParams
from meca.errors import UsageError
from meca.params import PACKAGED, PRESETS, Params, read_params, with_settings

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
    assert PACKAGED.samefile(ROOT / "params.yaml")


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


TREE = {"preset": "paper", "seed": 0, "g": GOOD, "h": {"inner": {"a": 1, "b": 2}}, "paper": {"g": {"steps": 9}, "h": {"inner": {"b": 3}}}}


def test_the_preset_paper_lays_its_leaves_over_the_groups() -> None:
    params = Params(TREE, "params.yaml")
    assert params.group("g", Group).steps == 9 and params.raw("h") == {"inner": {"a": 1, "b": 3}}
    default = Params({**TREE, "preset": "default"}, "params.yaml")
    assert default.raw("g") == GOOD and default.raw("h") == TREE["h"]
    with pytest.raises(UsageError, match="expected preset to be one of default, paper, got 'fast'"):
        Params({**TREE, "preset": "fast"}, "params.yaml").raw("g")
    with pytest.raises(UsageError, match=r"\[paper\.g\] has unknown 'stepz' \(did you mean 'steps'\?\)"):
        Params({**TREE, "paper": {"g": {"stepz": 9}}}, "params.yaml").raw("g")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_setting_is_in_force_in_every_preset(preset: str) -> None:
    changed = with_settings(Params({**TREE, "preset": preset}, "params.yaml"), {"g.steps": "11", "h.inner.b": 7})
    assert changed.group("g", Group).steps == 11 and changed.raw("h")["inner"]["b"] == 7
    assert TREE["g"] == GOOD, "the original is as it was"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_that_ships_can_be_set_in_every_preset(preset: str) -> None:
    params = with_settings(read_params(PACKAGED), {"preset": preset})

    def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        return {key: leaf for name, value in node.items() for key, leaf in leaves(value, f"{prefix}.{name}".lstrip(".")).items()}

    for key, value in leaves(params.numbers).items():
        if key != "preset":
            assert leaves(with_settings(params, {key: [value]}).numbers)[key] == [value], key


def test_recipes_have_what_they_share_and_may_say_otherwise() -> None:
    tree = {"recipe": {"momentum": 0.9}, "g": {"recipe": {"epochs": 1}, "x": {"y": 1}}, "h": {"epochs": 2, "momentum": 0.5}}
    params = Params(tree, "params.yaml")
    assert params.raw("g") == {"recipe": {"epochs": 1, "momentum": 0.9}, "x": {"y": 1}} and params.raw("h") == tree["h"]
    assert params.sources("g") == ["g", "recipe"]


# SHA-256 of all numbers in force.
BEFORE = {
    "default": "768e8b0c9385662f46b48344af0b482107693be2aa4a71e0495c8215894e3f31",
    "paper": "e648f12f3cb535385882168618417cecbcebb84266e4bd5c8d9e8985cca3d51a",
}


@pytest.mark.parametrize("preset", PRESETS)
def test_what_ships_is_in_force_number_for_number(preset: str) -> None:
    numbers = with_settings(read_params(PACKAGED), {"preset": preset}).numbers
    found = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()
    assert found == BEFORE[preset], "a number was changed: if you meant to, put the new digest here"


def test_numbers_in_force_name_the_preset_where_it_has_a_say() -> None:
    params = Params(TREE, "params.yaml")
    assert params.in_force(["g"]) == {"seed": 0, "preset": "paper", "g": {**GOOD, "steps": 9}}
    assert "preset" not in Params({**TREE, "paper": {}}, "params.yaml").in_force(["g"])
    assert params.digest(["g"]) != params.digest(["h"]) != params.digest()


def test_a_file_of_the_form_with_blocks_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("preset: default\nsplit: {default: {rule: x}, paper: {rule: y}}\n")
    with pytest.raises(UsageError, match=r"params.yaml is of an older meca: \[split\] has the blocks default and paper"):
        read_params(tmp_path / "params.yaml")


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


@pytest.mark.parametrize(
    "changes", [{"size": -1}, {"size": 5000}, {"budget": 0}, {"fit": "crop"}, {"train_limit": -1}, {"shapes_train": 5}, {"quarantine_share": 1.5}]
)
def test_ingest_refuses_numbers_without_meaning(changes: dict) -> None:
    name = next(iter(changes))
    with pytest.raises(UsageError, match=f"expected ingest.{name}"):
        IngestParams(**{**read_params(PACKAGED).raw("ingest"), **changes})


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ("big", r"to be auto, a side in pixels \(0: the size of the first image\), or HEIGHTxWIDTH such as 96x128, got 'big'"),
        ("96 x 128", "such as 96x128, got '96 x 128'"),
        ("96x", "such as 96x128, got '96x'"),
        ("", "such as 96x128, got ''"),
        ("٣٢", "such as 96x128, got"),
        ("9" * 5000, "such as 96x128, got '9{40}'"),
        ("-1", "to be 0 or more, got -1"),
        ("0x32", "to be 1 or more, got 0x32"),
        ("32x1025", "to be at most 1024 pixels, got 32x1025"),
        ("1025", "to be at most 1024 pixels, got 1025"),
        (100_000, "to be at most 1024 pixels, got 100000"),
    ],
)
def test_a_size_that_means_nothing_is_refused_with_what_was_expected(size: int | str, sentence: str) -> None:
    with pytest.raises(UsageError, match=rf"params\.yaml: expected .*ingest\.size .*{sentence}"):
        IngestParams(**{**read_params(PACKAGED).raw("ingest"), "size": size})


@pytest.mark.parametrize("size", ["auto", 0, 32, "96x128", "1x1024", 1024])
def test_every_form_of_a_size_can_be_set_and_a_number_stays_one(size: int | str) -> None:
    for given in (size, str(size)):
        assert with_settings(read_params(PACKAGED), {"ingest.size": given}).group("ingest", IngestParams).size == size
    assert with_settings(read_params(PACKAGED), {"ingest.source": "32"}).raw("ingest")["source"] == "32", "a path"


def test_a_file_of_an_older_meca_means_what_it_meant() -> None:
    tree = dict(read_params(PACKAGED).tree)
    tree["ingest"] = {name: value for name, value in tree["ingest"].items() if name not in ("fit", "budget")} | {"size": 64}
    found = Params(tree, "params.yaml").group("ingest", IngestParams)
    assert (found.size, found.fit) == (64, "squash")
    del tree["ingest"]["size"]
    with pytest.raises(UsageError, match=r"\[ingest\] lacks \['size'\]"):
        Params(tree, "params.yaml").group("ingest", IngestParams)


def test_a_file_that_is_read_again_is_read_anew_and_nobody_shares_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(PACKAGED.read_text())
    first = read_params(path)
    wanted = first.digest()
    first.raw("ingest")["size"] = 1
    first.tree["ingest"]["size"] = 1
    assert read_params(path).digest() == wanted
    path.write_text(PACKAGED.read_text().replace("\nseed: 0", "\nseed: 1"))
    assert read_params(path).tree["seed"] == 1
