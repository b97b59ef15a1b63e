"""Names that data brings never become markup, keys or paths."""

import re

from hypothesis import given
from hypothesis import strategies as st

from meca.params import Params
from tasks.prefect import summary
from tests.making import control_record

HOSTILE = "<script>alert(1)</script>|[x](javascript:1)\n# head"


@given(st.text(), st.integers(1, 60))
def test_a_plain_name_is_letters_digits_dot_dash_underscore(text, length):
    assert re.fullmatch(r"[A-Za-z0-9._-]+", summary.plain(text, length))
    assert len(summary.plain(text, length)) <= length


@given(st.text())
def test_text_is_one_line_without_live_markup(text):
    shown = summary.text(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[<\[`|]", shown)


def test_hostile_names_are_text_in_the_summary():
    found = {"sentence": HOSTILE, "counts": {"input": 1}, "warnings": [HOSTILE]}
    assert "<script>" not in summary.markdown(found, [{"stage": "ingest", "outcome": "ran", "seconds": 1.0}])


def test_the_summary_of_a_control_has_a_line_for_each_trigger():
    found = {"sentence": "s", "counts": {"input": 1}, "control": control_record(badnet="found", blend="missed")}
    lines = summary.markdown(found, []).splitlines()
    assert r"| patch \(badnet\) | 5 % | 1 of 1 | 1 of 1 | found |" in lines and r"| pattern \(blend\) | 5 % | 0 of 1 | 1 of 1 | missed |" in lines
    assert "planted in a copy" not in summary.markdown(found | {"control": control_record()}, [])


def test_a_path_gives_its_last_name_only():
    params = Params({"ingest": {"source": "/secret/place/my data"}, "poison": {"attack": "none"}}, "params.yaml")
    assert summary.data_name(params) == "my_data"
    assert summary.key("my_data-Summary") == "my-data-summary"
