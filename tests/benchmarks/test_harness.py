"""Ratios, exponents, floors and rows: what the figures of speed are made of. Nothing here asserts on seconds."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks.rows import ROOT
from benchmarks.speed import floors, harness, stages
from meca.method.partition import PartitionParams
from meca.params import PACKAGED, read_params
from meca.training.seeds import generator
from meca.training.trainer import Recipe


@pytest.fixture
def bench(tmp_path: Path) -> harness.Bench:
    found = harness.Bench(tmp_path / "speed.jsonl", "python -m x", quick=True)
    found.__dict__["ceilings"] = harness.Ceilings(1e11, 1e10, {"copy": 1e10, "convolution, fp32": 1e11, "convolution, bf16": 2e11}, cached=True)
    return found


def test_the_interval_holds_the_median_and_is_narrow_where_the_values_agree():
    values = [3.0, 3.1, 2.9, 3.0, 3.05, 2.95]
    low, high = harness.bootstrap(values)
    assert 2.9 <= low <= np.median(values) <= high <= 3.1
    assert harness.bootstrap([2.0] * 5) == (2.0, 2.0)
    assert harness.bootstrap(values) == (low, high)


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = sum(low <= 1 <= high for low, high in (harness.bootstrap(rng.normal(1, 0.1, 15), 400) for _ in range(200)))
    assert 0.88 <= inside / 200 <= 1


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5])
def test_the_fitted_exponent_is_that_of_the_law(power: float):
    sizes = [100, 200, 400, 800]
    noise = np.random.default_rng(0).normal(0, 0.01, 4)
    assert harness.exponent(sizes, [0.3 * n**power for n in sizes]) == pytest.approx(power, abs=1e-9)
    assert harness.exponent(sizes, [0.3 * n**power * math.exp(e) for n, e in zip(sizes, noise, strict=True)]) == pytest.approx(power, abs=0.05)


def test_pairs_alternate_and_count_the_work_of_each_arm(bench: harness.Bench):
    said: list[str] = []
    found = replace_quick(bench).pairs(lambda: said.append("a"), lambda: said.append("b"), n=6, units=(1, 1))
    assert "".join(said) == "ab" * 7  # the first pair is the warm-up
    assert found.n == 6 and found.low <= found.ratio <= found.high


def replace_quick(bench: harness.Bench) -> harness.Bench:
    bench.quick = False
    return bench


def test_an_arm_with_twice_the_work_has_half_the_time_for_each_unit(bench: harness.Bench):
    clock = iter([(4.0, 1.0), (4.0, 1.0)] * 3)
    bench.timed = lambda work: next(clock)  # type: ignore[method-assign]
    found = replace_quick(bench).pairs(lambda: None, lambda: None, n=3, units=(8, 4))
    assert found.ratio == 2 and found.seconds == (0.5, 1.0)


def test_a_row_has_the_schema_and_its_provenance(bench: harness.Bench):
    bench.row("ratio", "a", "img/s", 1234.567, **harness.Ratio(2.0, 1.9, 2.1, 5, (1.0, 2.0), 0.5).columns("b"), target_ratio=3.0)
    bench.row("micro", "c", "img/s", 5.0, busy=0.95)
    first, second = map(json.loads, bench.out.read_text().splitlines())
    wanted = {"name", "unit", "value", "floor", "ratio_to", "ratio", "ratio_low", "ratio_high", "n"}
    wanted |= {"command", "commit", "date", "hardware", "torch", "seed", "seconds", "dirty", "code_sha256", "params_sha256", "threads", "load"}
    assert wanted <= set(first) and wanted <= set(second)
    assert first["value"] == 1235 and first["ratio_to"] == "b" and first["contended"] is True
    assert second["ratio"] is None and second["contended"] is False and second["quick"] is True


def test_the_peak_sees_what_was_allocated_and_freed_again():
    # In a process of its own: in this one freed memory may be kept, and given out again without any growth.
    program = """
import torch
from benchmarks.speed import harness
harness.reset_peak("cpu")
before = harness.peak_mib("cpu")
torch.ones(2**24).sum().item()  # 64 MiB
print(harness.peak_mib("cpu") - before)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) > 50


def test_the_parameters_are_read_as_a_yaml_library_reads_them():
    assert harness.default_params().tree == yaml.safe_load(PACKAGED.read_text(encoding="utf-8"))
    few = harness.default_params(epochs=1)
    assert few.group("partition", PartitionParams).recipe.epochs == 1 and few.group("train_clean", Recipe).epochs == 1


# Forward GF, train GF, forward + input gradient GF, million parameters: counted apart from this code, docs of the task.
COUNTED = {
    ("resnet18", "cifar", 32): (1.111, 3.33, 2.22, 11.2),
    ("resnet18", "imagenet", 32): (0.074, 0.217, 0.148, 11.2),
    ("resnet18", "imagenet", 128): (1.18, 3.48, 2.37, 11.2),
    ("resnet34", "cifar", 32): (2.32, 6.95, 4.64, 21.3),
    ("resnet34", "imagenet", 32): (0.150, 0.444, 0.299, 21.3),
    ("mobilenet_v2", "imagenet", 32): (0.0122, 0.0367, 0.0244, 2.24),
    ("compact", "s2d", 32): (0.0324, 0.097, 0.0648, 0.287),
}


@pytest.mark.parametrize("key", COUNTED, ids=str)
def test_operations_are_counted_to_two_percent(key: tuple[str, str, int]):
    found = floors.cost(*key)
    assert (found.forward / 1e9, found.train / 1e9, found.gradient / 1e9, found.parameters / 1e6) == pytest.approx(COUNTED[key], rel=0.02)


def test_the_floor_of_a_pass_on_one_h200_is_the_known_one():
    assert floors.cost("resnet18", "cifar").floor(floors.H200, train=50_000) == pytest.approx(0.21, rel=0.02)
    assert floors.cost("resnet18", "cifar").floor(floors.H200, score=50_000) == pytest.approx(0.21, rel=0.02)
    assert floors.cost("resnet34", "cifar").floor(floors.H200, train=50_000) == pytest.approx(0.44, rel=0.02)


def test_a_floor_is_proportional_to_the_pictures_and_never_below_a_part_of_it():
    each = floors.cost("compact", "s2d")
    one = each.floor(floors.H200, train=1)
    assert each.floor(floors.H200, train=7) == pytest.approx(7 * one)
    assert each.floor(floors.H200, train=1, score=1) >= max(one, each.floor(floors.H200, score=1))
    assert each.floor(floors.H200, 4, score=1) > each.floor(floors.H200, 1, score=1)


def test_the_steps_of_the_stages_are_those_of_the_recipes():
    params = read_params(PACKAGED)
    partition, clean = params.group("partition", PartitionParams).recipe, params.group("train_clean", Recipe)
    found = floors.passes(10_000, 0.1)
    assert found["partition"] == {"train": partition.epochs * (10_000 // 64) * 64, "score": 10_000}
    assert found["train_clean"] == {"train": clean.epochs * (9_000 // 64) * 64}
    assert floors.trained(replace(clean, epochs=1, min_steps=10), 64) == 640
    assert set(found) == set(floors.STAGES)


def test_the_five_stages_run_and_leave_a_row_each(bench: harness.Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MECA_DATA", raising=False)
    stages.stages(bench, "compact", "s2d", 200, until=0.0)
    rows = [json.loads(line) for line in bench.out.read_text().splitlines()]
    assert [row["name"].split(",")[0] for row in rows] == [*floors.STAGES, "all five"]
    assert all(row["state"] == "cold" and row["group"] == "stage" for row in rows)
    assert rows[-1]["value"] == pytest.approx(sum(row["value"] for row in rows[:-1]), rel=1e-2)


def test_poison_is_planted_on_its_share_and_nowhere_else():
    images, labels = harness.random_set(200)
    changed, given, poisoned = stages.planted(images, labels)
    assert int(poisoned.sum()) == 10 and bool((given[poisoned] == stages.TARGET_CLASS).all())
    assert torch.equal(changed[~poisoned], images[~poisoned]) and torch.equal(given[~poisoned], labels[~poisoned])
    assert bool((changed != images).flatten(1).any(1)[poisoned].all())


def test_a_network_of_the_benchmarks_is_the_same_each_time():
    a, b = (harness.network(harness.describe("compact", "s2d", 8)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert generator("a").initial_seed() != generator("b").initial_seed()
