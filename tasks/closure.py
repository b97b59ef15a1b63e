"""Which files of the project a program imports, so that DVC sees an edit in any of them.

python -m tasks.closure          rewrite the lines with code below `deps` in dvc.yaml
python -m tasks.closure --check  exit 1 if a line is missing or too many
"""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

__all__ = ["closure", "module_file", "rewrite", "stage_module"]

PACKAGES = ("meca", "tasks")
RESOURCES = (".html", ".css", ".js", ".svg", ".md", ".txt")  # what a package reads beside its code; params.yaml is tracked by key


def module_file(root: Path, module: str) -> Path | None:
    """Return the file of a module of the project, None for anything else."""
    if module.split(".")[0] not in PACKAGES:
        return None
    path = root.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def closure(root: Path, module: str) -> list[str]:
    """Return the project's files that running `module` can import, relative to `root`, sorted.

    Imports inside functions count, and so do the packages above a module and the resources inside a package.
    """
    found: set[Path] = set()
    open_ = [module]
    seen: set[str] = set()
    while open_:
        name = open_.pop()
        if name in seen:
            continue
        seen.add(name)
        file = module_file(root, name)
        if file is None:
            continue
        found.add(file)
        if file.name == "__init__.py":
            found.update(p for p in file.parent.iterdir() if p.suffix in RESOURCES)
        open_ += [name.rpartition(".")[0], *_imports(file, name)]
    return sorted(file.relative_to(root).as_posix() for file in found)


def _imports(file: Path, module: str) -> Iterator[str]:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # a name may be a module


def stage_module(cmd: str) -> str:
    """Return the module that a stage's command runs.

    Raises:
        ValueError: The command is not of the form `python -m module ...`.
    """
    match shlex.split(cmd):
        case ["python", "-m", module, *_]:
            return module
    raise ValueError(f"Expected a command `python -m <module> ...` in dvc.yaml, got {cmd!r}.")


def rewrite(root: Path, text: str) -> str:
    """Return the text of a dvc.yaml with the code below `deps` as it should be; comments and all else stay."""
    code = re.compile(rf"      - (?:{'|'.join(PACKAGES)})/\S+\.\w+$")
    lines: list[str] = []
    pending: list[str] = []
    in_deps = False
    for line in [*text.splitlines(), ""]:
        if in_deps and code.fullmatch(line):
            continue
        if in_deps and not line.startswith("      "):
            lines += pending
            in_deps = False
        if match := re.match(r"\s+(?:cmd: )?python -m (\S+)", line):
            pending = [f"      - {file}" for file in closure(root, match[1])]
        in_deps = in_deps or line == "    deps:"
        lines.append(line)
    return "\n".join(lines[:-1]) + "\n"


def main() -> None:
    """Rewrite or check the dvc.yaml of the working directory."""
    parser = argparse.ArgumentParser(prog="python -m tasks.closure", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if there is something to change")
    arguments = parser.parse_args()
    path = Path("dvc.yaml")
    before = path.read_text(encoding="utf-8")
    after = rewrite(Path(), before)
    if arguments.check and after != before:
        raise SystemExit("dvc.yaml does not list what the stages import: run `python -m tasks.closure`.")
    if after != before:
        path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
