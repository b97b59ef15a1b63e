"""Whatever a name says, the page shows it as text: by what a parser sees, and by what Chromium does with it."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from meca.report import page
from tests.hostile.browser import open_page
from tests.hostile.payloads import MARK, PAYLOADS, SCRIPTS
from tests.report.fixture import make_run, parts
from tests.report.test_page import Page

TAGS = set(
    "html head meta title style body svg defs path use header div span b i h1 h2 h3 p nav a main section table thead tbody tr th td small "
    "figure figcaption img details summary code pre dl dt dd footer ul li".split()
)
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def hostile_page(folder: Path, payloads: list[str]) -> str:
    """Return the page of a run in which every text that data can name is one of the payloads."""
    clean = [text.encode("utf-8", "replace").decode() for text in payloads]  # what a store can hold
    rng = np.random.default_rng(0)
    k = len(clean)
    images = rng.integers(0, 256, (12 * k, 8, 8, 3)).astype(np.uint8)
    run = make_run(folder, images=images, labels=np.arange(12 * k) % k, names=clean, n_train=10 * k, source=clean[0])
    summary = json.loads((run / "published" / "summary.json").read_text())
    summary |= {"sentence": " ".join(clean)[:500], "reason": clean[1], "warnings": clean, "meca_version": clean[0], "preset": clean[-1]}
    summary |= {
        "source": {"name": clean[0], "kind": clean[1]},
        "caps": [{"name": text, "value": text, "limit": text, "holds": True} for text in clean],
    }
    (run / "published" / "summary.json").write_text(json.dumps(summary))
    evaluation = json.loads((run / "work" / "evaluate" / "evaluation.json").read_text())
    (run / "work" / "evaluate" / "evaluation.json").write_text(json.dumps(evaluation | {"unknown": clean}))
    decisions = run / "work" / "relabel_finetune" / "decisions.parquet"
    table = pq.read_table(decisions)
    reasons = [[clean[row % k], clean[(row + 1) % k]] for row in range(table.num_rows)]
    at = table.column_names.index("reasons")
    pq.write_table(table.set_column(at, "reasons", [reasons]), decisions)
    return page.render(page.read_run(**parts(run)), 0, page.ReportParams(40, 20, 20))


BATCHES = [list(PAYLOADS[start : start + 12]) for start in range(0, len(PAYLOADS), 12)]


@pytest.mark.parametrize("number", range(len(BATCHES)))
def test_a_parser_sees_text_and_nothing_else(number: int, tmp_path: Path) -> None:
    text = hostile_page(tmp_path, BATCHES[number])
    found = Page(text)
    assert {tag for tag, _ in found.tags} <= TAGS
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on") or name == "srcdoc"]
    for _, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/")), (name, attributes)
        assert not re.search(r"url\(|expression|@import", attributes.get("style") or "")
    assert not CONTROLS.search(text)
    shown = "".join(found.text)
    scripts = [payload for payload in BATCHES[number] if payload in SCRIPTS and len(payload) <= 60]
    assert all(payload in shown for payload in scripts), "what it says is still to be read"


RAN = re.compile(rf"<html[^>]*{MARK}")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_chromium_nothing_runs_nothing_is_asked_for_and_nothing_is_complained_about(tmp_path: Path) -> None:
    for number in range(0, len(BATCHES), 3):
        text = hostile_page(tmp_path / str(number), [payload for batch in BATCHES[number : number + 3] for payload in batch])
        without = POLICY.sub("", text)
        assert without != text
        # Once as it is, and once without its policy, which would hide a hole in the escaping.
        for name, content in (("page", text), ("open", without)):
            file = tmp_path / f"{name}-{number}.html"
            file.write_text(content, encoding="utf-8")
            opened = open_page(file, tmp_path / f"profile-{name}-{number}")
            assert not RAN.search(opened.dom), "a script has run"
            assert "meca report" in opened.dom and opened.asked == [] and opened.console == []


@pytest.mark.slow
def test_a_page_that_does_not_escape_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><title>x</title>{SCRIPTS[0]}<script>console.error('said')</script>")
    opened = open_page(file, tmp_path / "profile")
    assert (
        f'{MARK}="1"' in opened.dom and any("evil.example" in address for address in opened.asked) and any("said" in line for line in opened.console)
    )
