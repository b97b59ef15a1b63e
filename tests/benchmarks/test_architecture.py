"""The picture of the house is that of its imports, and its figures count what is there."""

from pathlib import Path

import pytest

from benchmarks.architecture import BEGIN, END, arrows_of, circles, figures, levels, written


def house(root: Path, **files: str) -> Path:
    for folder in ("meca", "tasks", "flows", "benchmarks", "infra", "tests"):
        (root / folder).mkdir()
        (root / folder / "__init__.py").write_text("")
    for name, text in files.items():
        file = root.joinpath(*name.split("__")).with_suffix(".py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).write_text("a: 1\nb: 2\n")
    return root


def test_a_room_imports_what_any_of_its_modules_imports_also_inside_a_function(tmp_path):
    root = house(
        tmp_path,
        meca__errors="",
        meca__data__store="from meca.errors import Wrong\n",
        meca__data__reader="def read():\n    from meca import text\n",
        meca__text="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from meca.data import store\n",
        tasks__cell="import meca.data.store\n",
    )
    arrows = arrows_of(root)
    assert arrows["meca.data"] == {"meca.errors", "meca.text"}
    assert arrows["meca.text"] == set() == arrows["meca.errors"]
    assert arrows["tasks.cell"] == {"meca.data"}
    assert levels(arrows) == {"meca.errors": 0, "meca.text": 0, "meca.data": 1, "tasks.cell": 2}
    found = figures(root)
    assert (found.rooms, found.arrows) == ({"meca": 3, "tasks": 1, "flows": 0}, {"meca": 2, "tasks": 0, "flows": 0})
    assert found.sizes["meca"] == (5, 6) and found.configuration == {"params.yaml": 2, "dvc.yaml": 2}
    assert (found.circles, found.long, found.longest) == ([], 0, 0)


@pytest.mark.parametrize("back", [True, False])
def test_rooms_that_reach_each_other_are_a_circle_and_share_a_storey(back):
    arrows = {"meca.a": {"meca.b"}, "meca.b": {"meca.c"}, "meca.c": {"meca.a"} if back else set(), "meca.d": {"meca.a"}}
    assert circles(arrows) == ([("meca.a", "meca.b", "meca.c")] if back else [])
    assert levels(arrows)["meca.d"] == (1 if back else 3)


def test_parameters_are_counted_without_self_and_context(tmp_path):
    root = house(tmp_path, meca__a="def f(ctx, a, b, c, d, e, f, g): ...\nclass A:\n    def m(self, a, b, c, *, d, e, f): ...\n")
    assert (figures(root).long, figures(root).longest) == (1, 7)


def test_a_page_gets_the_figures_between_its_markers_and_keeps_all_else(tmp_path):
    found = figures(house(tmp_path, meca__a="def f(): ...\n", meca__b="import meca.a\n"))
    page = written(f"before\n{BEGIN}\nold\n{END}\nafter\n", found)
    assert page.startswith(f"before\n{BEGIN}\n") and page.endswith(f"{END}\nafter\n") and "old" not in page
    assert "| `meca` | 2 | 1 |" in page and "Circles: none." in page and written(page, found) == page
    with pytest.raises(SystemExit, match="found not both"):
        written(f"{BEGIN} alone", found)
