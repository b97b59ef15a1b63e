"""The page is one file that asks for nothing, runs nothing, shows every outcome, and is the same bytes for the same run."""

import base64
import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meca.errors import MecaError
from meca.params import read_params
from meca.report import page
from meca.report.images import block_features, estimate_trigger, nearest
from meca.stages import report, runtime
from meca.text import plain
from tests.report.fixture import NAMES, TARGET, make_run, parts

REPORT = page.ReportParams(30, 10, 10)
HOSTILE = (
    "<script>alert(1)</script>",
    "cat[/]",
    "\x1b]8;;http://evil.example\x07link",
    "\u202egnp.exe",
    'a" onload="alert(1)',
    "{{ 7*7 }}",
    "$x^",
    "</style><img src=x onerror=alert(1)>",
    "名前\u2066",
    "javascript:alert(1)",
)


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def rendered(folder, **changes):
    return page.render(page.read_run(**parts(make_run(folder, **changes))), 0, REPORT)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    return rendered(tmp_path_factory.mktemp("run"))


def test_the_page_loads_nothing(poisoned):
    found = Page(poisoned)
    loading = {
        name: value for tag, attrs in found.tags for name, value in attrs.items() if name in ("src", "href", "srcset", "data", "action", "poster")
    }
    assert loading
    for _, attrs in found.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            assert attrs.get(name, "#").startswith(("#", "data:image/"))
    assert not re.search(r"url\(|@import|https?://", poisoned)
    svgs = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", poisoned)
    assert svgs
    for svg in svgs:
        drawn = base64.b64decode(svg).decode()
        assert "<script" not in drawn and "<image" not in drawn
        assert not re.search(r'(?:xlink:)?href="(?!#)', drawn)


def test_the_policy_forbids_scripts_and_requests(poisoned):
    (policy,) = [attrs["content"] for tag, attrs in Page(poisoned).tags if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert "script-src" not in policy


def test_names_from_data_are_text_and_nothing_else(tmp_path):
    text = rendered(tmp_path, names=HOSTILE, source='<b onclick="x">\u202e')
    found = Page(text)
    assert {tag for tag, _ in found.tags} <= set(
        "html head meta title style body svg defs path use header div span b i h1 h2 h3 p nav a main section table thead tbody tr th td small "
        "figure figcaption img details summary code pre dl dt dd footer ul li".split()
    )
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert [a for t, a in found.tags if t == "a" and not a["href"].startswith("#")] == []
    assert "<script>alert(1)</script>" in "".join(found.text)
    assert "49" not in [part.strip() for part in found.text if "7*7" in part]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)


def test_the_same_run_gives_the_same_bytes(tmp_path, poisoned):
    assert rendered(tmp_path) == poisoned


def test_the_page_says_verdict_counts_and_how_to_repeat(tmp_path):
    folder = make_run(tmp_path, truth=False)
    text = "".join(Page(page.render(page.read_run(**parts(folder)), 0, REPORT)).text)
    summary = json.loads((folder / "published/summary.json").read_text())
    assert summary["sentence"] in text
    assert "3.1 to 7.6 %" in text
    for key in ("input_sha256", "sanitized_sha256", "params_sha256"):
        assert summary[key] in text
    assert "meca clean synthetic --output OUT --preset default --set seed=0" in text
    assert "meca verify OUT" in text
    shown = re.search(r"images of (\d+) samples; it does not show the other (\d+)", text)
    assert shown and int(shown[1]) + int(shown[2]) == summary["counts"]["input"]


def test_the_page_of_a_control_has_a_line_for_each_trigger_and_none_without_one(tmp_path):
    text = rendered(tmp_path / "weak", verdict="weak")
    assert 'class="badge weak weak"' in text and "◐" in text
    found = re.findall(r"<td>(.*?)</td>", text[text.index('<table class="control">') :].split("</table>")[0])
    assert found == ["patch (badnet)", "5 %", "5", "1 of 1", "1 of 1", "found", "pattern (blend)", "5 %", "5", "0 of 1", "1 of 1", "missed"]
    for verdict in ("no_evidence", "poisoned"):
        assert "What the test could find here" not in rendered(tmp_path / verdict, verdict=verdict)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"verdict": "no_evidence"}, "No target class is suspected"),
        ({"verdict": "inconclusive"}, "nothing was removed or relabelled"),
        ({"verdict": "weak"}, "None, weak test"),
        ({"truth": False}, "What cannot be known without it"),
        ({"truth": False, "n_test": 0}, "There is no test split"),
        ({"suspicion": False}, "unknown"),
        ({"size": 8}, "Poison found"),
        ({"size": 64, "n_train": 120, "n_test": 20}, "data:image/jpeg"),
    ],
)
def test_every_outcome_has_a_page(tmp_path, changes, expected):
    text = rendered(tmp_path, **changes)
    assert expected in text
    assert "None" not in Page(text).text and "nan" not in "".join(Page(text).text)


def test_grey_images_have_a_page(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (140, 28, 28, 1)).astype(np.uint8)
    assert "Poison found" in rendered(tmp_path, images=images, labels=rng.integers(0, 10, 140), n_train=120)


def test_five_hundred_noisy_images_and_neighbours_stay_below_the_cap(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1000, 48, 48, 3)).astype(np.uint8)  # noise: nothing compresses it, 48 is the largest exact size
    run = page.read_run(**parts(make_run(tmp_path, images=images, labels=rng.integers(0, 10, 1000), n_train=900)))
    text = page.render(run, 0, page.ReportParams(300, 100, 600))
    assert len(text.encode()) < page.MAX_BYTES
    assert "since the page stays below 5 MB" in text


def test_every_class_that_holds_flagged_samples_is_marked_and_the_trigger_is_that_of_the_first(tmp_path):
    folder = make_run(tmp_path)
    file = folder / "work/relabel_finetune/decisions.parquet"
    table = pq.read_table(file)
    for others, said in (((), "labelled automobile. Each"), ((3, 7), "labelled automobile or with one of 2 other classes; those of the first")):
        words = [
            "poisoned" if (word == "poisoned" and label == TARGET) or label in others else "clean"
            for word, label in zip(table["verdict"].to_pylist(), table["label"].to_pylist(), strict=True)
        ]
        pq.write_table(table.set_column(table.column_names.index("verdict"), "verdict", pa.array(words)), file)
        text = "".join(Page(page.render(page.read_run(**parts(folder)), 0, REPORT)).text)
        assert text.count("target?") == 1 + len(others) and all(f"{NAMES[c]}target?" in text for c in (TARGET, *others))
        assert said in text


def test_many_classes_do_not_make_a_long_page(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 150, 700)
    images = rng.integers(0, 256, (700, 8, 8, 3)).astype(np.uint8)
    text = rendered(tmp_path, images=images, labels=labels, names=[f"class {i}" for i in range(150)], n_train=500, n_test=200)
    assert "130 more classes" in text


def test_decisions_of_another_store_are_refused(tmp_path):
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", n_train=300)
    with pytest.raises(MecaError, match="400 train rows once each, got 300"):
        page.read_run(**{**parts(one), "relabel_finetune": other / "work/relabel_finetune"})


def test_the_stage_writes_the_page_twice_alike(tmp_path):
    folder = make_run(tmp_path)
    params = read_params()
    pages = []
    for name in ("one", "two"):
        record = runtime.execute(report, {**parts(folder), "out": tmp_path / name}, params, scratch=tmp_path / "scratch")
        assert set(record["params"]) == {"seed", "report"}
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_the_stage_needs_no_torch():
    code = "import sys, meca.stages.report, meca.report.plots; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "meca.report.page" in modules and "torch" not in modules


def test_the_estimate_finds_the_planted_patch(tmp_path):
    run = page.read_run(**parts(make_run(tmp_path)))
    flagged = np.flatnonzero((run.verdict == "poisoned") & (run.label == TARGET))
    kept = np.flatnonzero(run.action == "keep")
    features = block_features(run.store.images, np.arange(400))
    found = estimate_trigger(run.store.images, flagged, kept[nearest(features[flagged], features[kept])])
    strength = np.abs(found.t).max(2)
    inside = np.zeros((32, 32), bool)
    inside[-4:-1, -4:-1] = True
    assert strength[inside].min() > 2 * strength[~inside].max()


def test_the_estimate_finds_the_wave_of_sig_in_the_frequencies(tmp_path):
    run = page.read_run(**parts(make_run(tmp_path, attack="sig")))
    flagged = np.flatnonzero((run.verdict == "poisoned") & (run.label == TARGET))
    kept = np.flatnonzero(run.action == "keep")
    features = block_features(run.store.images, np.arange(400))
    found = estimate_trigger(run.store.images, flagged, kept[nearest(features[flagged], features[kept])])
    strongest = {tuple(int(v) for v in np.unravel_index(i, (32, 32))) for i in np.argsort(found.spectrum, axis=None)[-2:]}
    assert strongest == {(16, 16 - 6), (16, 16 + 6)}  # six periods over the width


def test_nearest_equals_a_naive_loop_and_never_the_forbidden_one():
    rng = np.random.default_rng(0)
    candidates = rng.integers(0, 256, (70, 12)).astype(np.float32)
    queries = candidates[:300:3]
    forbidden = np.arange(0, 70, 3)
    expected = []
    for query, bar in zip(queries.astype(float), forbidden, strict=True):
        distance = ((candidates.astype(float) - query) ** 2).sum(1)
        distance[bar] = np.inf
        expected.append(int(distance.argmin()))
    assert nearest(queries, candidates, forbidden).tolist() == expected
    assert nearest(queries, candidates).tolist() == forbidden.tolist()
    assert nearest(queries[:1], candidates[:1], np.array([0])).tolist() == [-1]


def test_features_are_the_block_means():
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 8, 3)).astype(np.uint8)
    found = block_features(images, np.array([2, 0]))
    assert found[0, 0] == images[2, :2, :2, 0].astype(int).sum() // 4
    assert found.shape == (2, 4 * 4 * 3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("cat[/]", "cat[/]"),
        ("\x1b[31mred\x1b]8;;x\x07", "[31mred]8;;x"),
        ("a\nb\tc\rd", "a b c d"),
        ("\u202eabc\u2066\u200bd", "abcd"),
        ("x\ud800y\x9bz", "xyz"),
        ("名前 é 🐱", "名前 é 🐱"),
        (NAMES[0], "airplane"),
        (3, "3"),
    ],
)
def test_plain_text_has_no_controls(given, expected):
    assert plain(given) == expected


def test_plain_text_is_cut():
    assert plain("x" * 300, 10) == "xxxxxxxxx…"
