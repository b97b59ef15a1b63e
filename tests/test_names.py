"""What prose names is there: files, folders, modules, targets of make, in the pages and in the comments and docstrings of the code.

Names are moved, and a comment does not fail when its file does. Pages of the past (the changelog, the log) and pages that are rendered
from rows keep the names of their day, and so do the rows themselves.
"""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = ("meca", "tasks", "flows", "tests", "benchmarks", "infra")
PAST = {"CHANGELOG.md", "docs/log.md", "docs/results.md", "docs/performance.md", "docs/hostile.md"}
# Files that are not of this repository: Python's own hooks, toolboxes that are measured beside ours, what a run or a user writes.
ELSEWHERE = {
    "sitecustomize.py", "usercustomize.py", "train_on_poisoned_set.py", "backdoor_isolation.py", "cifar10_official.py",
    "defense/abl.py", "utils/bd_dataset_v2.py", "utils/trainer_cls.py", "prefect.toml", "dvc.lock", "report.html", "published/README.md",
}  # fmt: skip
# These suites write small trees of their own, and say so.
OWN_TREES = {"tests/tasks/test_closure.py", "tests/benchmarks/test_architecture.py", "tests/benchmarks/test_rows.py", "tests/test_names.py"}

PATH = re.compile(rf"(?<![\w./$<>{{}}-])((?:{'|'.join((*TREES, 'docs'))})/[\w./-]*\w)")
FILE = re.compile(r"(?<![\w./*<>{}-])([\w-]+(?:/[\w-]+)*\.(?:py|md|html|css|toml|lock|svg))\b")
DOTTED = re.compile(rf"(?<![\w./-])((?:{'|'.join(TREES)})(?:\.[A-Za-z_]\w*)+)")
TARGET = re.compile(r"`make ([a-z-]+)")
LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)")


@cache
def tracked() -> frozenset[str]:
    """Return the files of the repository; where it has no history, those that lie there."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return frozenset(name for name in listed.stdout.splitlines() if (ROOT / name).exists())
    return frozenset(str(path.relative_to(ROOT)) for tree in (*TREES, "docs") for path in (ROOT / tree).rglob("*") if path.is_file())


@cache
def folders() -> frozenset[str]:
    return frozenset(str(parent) for name in tracked() for parent in Path(name).parents)


@cache
def ends() -> frozenset[str]:
    """Return every file by every end of its path."""
    return frozenset("/".join(parts[i:]) for parts in (name.split("/") for name in tracked()) for i in range(len(parts)))


def prose(text: str) -> Iterator[str]:
    """Return the comments and docstrings of a program."""
    yield from (token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def written() -> list[str]:
    """Return the files whose prose is checked."""
    return sorted(name for name in tracked() - PAST - OWN_TREES if name.endswith((".md", ".py")) and name.split("/")[0] in {*TREES, "docs", name})


def read(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    return "\n".join(prose(text)) if name.endswith(".py") else text


@cache
def members(module: str) -> dict[str, set[str]]:
    """Return what a module names at its top, and for each class what stands in it."""
    at = next(file for file in (ROOT / f"{module.replace('.', '/')}.py", ROOT / module.replace(".", "/") / "__init__.py") if file.is_file())

    def names(body: list[ast.stmt]) -> dict[str, set[str]]:
        found = dict[str, set[str]]()
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = set(names(node.body))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[node.name] = set()
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {target.id: set() for each in targets for target in ast.walk(each) if isinstance(target, ast.Name)}
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found |= {(alias.asname or alias.name): set() for alias in node.names}
            elif isinstance(node, ast.If | ast.Try):
                found |= names(node.body)
        return found

    return names(ast.parse(at.read_text(encoding="utf-8")).body)


@cache
def constants() -> str:
    """Return the texts in the code that are no docstrings, and the rows: tags of MLflow and commands of older rows look like modules."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in tracked() if name.startswith("benchmarks/results/")]
    for name in tracked():
        if name.endswith(".py") and name.split("/")[0] in ("meca", "tasks", "flows"):
            tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
            said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            texts += [
                node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
            ]
    return "\n".join(texts)


def is_there(dotted: str) -> bool:
    """Whether a dotted name is a module, something in one, or no name of a module at all."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        here, rest = "/".join(parts[:count]), parts[count:]
        if f"{here}.py" in tracked() or f"{here}/__init__.py" in tracked():
            if not rest:
                return True
            inside = members(".".join(parts[:count]))
            if rest[0] in inside and (len(rest) == 1 or rest[1] in inside[rest[0]]):
                return True
            break
    return dotted in folders() or dotted in constants()


def gone(text: str) -> set[str]:
    """Return the names in a text that are not there."""
    paths = {path for path in PATH.findall(text) if path not in tracked() and path not in folders()}
    # A file is named as the reader of the page or of the folder sees it, so by the end of its path.
    files = {file for file in FILE.findall(text) if file not in ELSEWHERE and file not in ends()}
    missing = paths | files | {dotted for dotted in DOTTED.findall(text) if not is_there(dotted)}
    return {name for name in missing if "NAME" not in name}  # `meca/attacks/NAME.py` is a place to fill in


def test_what_prose_names_is_there() -> None:
    missing = {name: names for name in written() if (names := gone(read(name)))}
    assert not {name: names for name, names in missing.items() if names}


@pytest.mark.parametrize("name", [name for name in written() if name.endswith(".md")])
def test_what_a_page_links_and_tells_to_make_is_there(name: str) -> None:
    text, targets = read(name), set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(TARGET.findall(text)) <= targets
    assert not [link for link in LINK.findall(text) if not (ROOT / name).parent.joinpath(link).resolve().exists()]


MOVED = ["meca/readers/shapes.py", "meca/engine.py", "meca.engine", "meca.data.store.opened", "meca.data.store.Store.opened", "method/no_look.py"]


@pytest.mark.parametrize("name", MOVED)
def test_a_name_that_is_gone_is_found_in_a_page_a_comment_and_a_docstring(name: str) -> None:
    assert gone(f"See `{name}`, and (docs/files.md).") == gone("\n".join(prose(f"x = 1  # as {name}\n"))) == {name}
    assert gone("\n".join(prose(f'def f():\n    """As `{name}` says."""\n    return "{name}"\n'))) == {name}
    assert not gone("\n".join(prose(f'x = "{name}"\n')))
