"""What the house looks like from its imports: rooms, arrows, circles, sizes; docs/architecture.svg and the table beside it.

    python -m benchmarks.architecture                    draw docs/architecture.svg, write the table of docs/architecture.md, print the figures
    python -m benchmarks.architecture --check            exit 1 where the drawing is not that of the code
    python -m benchmarks.architecture --root FOLDER      figures of another checkout (nothing of it is run)

A room is a module or a package directly below `meca`, `tasks` or `flows`; an arrow says that some module of one room imports one of another.
Imports inside functions count, those for type checkers alone do not.
"""

import argparse
import ast
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Figures", "drawing", "figures", "main"]

ROOT = Path(__file__).parents[1]
DRAWING = Path("docs/architecture.svg")
PAGE = Path("docs/architecture.md")
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
PACKAGES = ("meca", "tasks", "flows")
FOLDERS = (*PACKAGES, "benchmarks", "infra", "tests")
MANY = 6  # parameters, beside self and ctx
Arrows = dict[str, set[str]]


@dataclass(frozen=True)
class Figures:
    """Figures of a checkout."""

    sizes: dict[str, tuple[int, int]]  # folder: Python files, lines
    rooms: dict[str, int]  # package: its rooms
    arrows: dict[str, int]  # package: arrows between its rooms
    circles: list[tuple[str, ...]]  # rooms that reach each other, over all packages
    long: int  # functions with more than MANY parameters
    longest: int  # parameters of the function that has most
    median_body: float  # lines of a function's body
    configuration: dict[str, int]  # lines of params.yaml and dvc.yaml


def figures(root: Path = ROOT) -> Figures:
    """Return the figures of the checkout at `root`."""
    files = {folder: sorted((root / folder).rglob("*.py")) for folder in FOLDERS}
    trees = {file: ast.parse(file.read_text(encoding="utf-8"), str(file)) for group in files.values() for file in group}
    arrows = arrows_of(root)
    functions = [
        node
        for package in PACKAGES
        for file in files[package]
        for node in ast.walk(trees[file])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    counts = [_parameters(node) for node in functions]
    return Figures(
        sizes={folder: (len(group), sum(len(file.read_text(encoding="utf-8").splitlines()) for file in group)) for folder, group in files.items()},
        rooms={package: sum(room.split(".")[0] == package for room in arrows) for package in PACKAGES},
        arrows={package: sum(len(_within(package, to)) for room, to in arrows.items() if room.split(".")[0] == package) for package in PACKAGES},
        circles=circles(arrows),
        long=sum(count > MANY for count in counts),
        longest=max(counts, default=0),
        median_body=statistics.median([(node.end_lineno or node.lineno) - node.body[0].lineno + 1 for node in functions]),
        configuration={name: len((root / name).read_text(encoding="utf-8").splitlines()) for name in ("params.yaml", "dvc.yaml")},
    )


def _within(package: str, rooms: set[str]) -> set[str]:
    return {room for room in rooms if room.split(".")[0] == package}


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = node.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls", "ctx")]) + (given.vararg is not None) + (given.kwarg is not None)


def arrows_of(root: Path = ROOT) -> Arrows:
    """Return for each room those that it imports."""
    found: Arrows = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            module = ".".join(file.relative_to(root).with_suffix("").parts)
            here = _room(module)
            if here is None:
                continue
            to = found.setdefault(here, set())
            tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
            to |= {room for name in _imports(tree, root) if (room := _room(name)) is not None and room != here}
    return found


def _room(module: str) -> str | None:
    """Return the room of a module, None for a package's own __init__ and for what is not the project's."""
    parts = module.removesuffix(".__init__").split(".")
    return ".".join(parts[:2]) if parts[0] in PACKAGES and len(parts) > 1 else None


def _imports(tree: ast.AST, root: Path) -> Iterator[str]:
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            for alias in node.names:  # `from meca import signing` names a module, `from meca import __version__` does not
                base = root.joinpath(*node.module.split("."), alias.name)
                if base.is_dir() or base.with_suffix(".py").is_file():
                    yield f"{node.module}.{alias.name}"


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those that a type checker alone sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _running(child)


def circles(arrows: Arrows) -> list[tuple[str, ...]]:
    """Return the groups of rooms that reach each other, each sorted."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = list(arrows.get(start, ()))
        while left:
            room = left.pop()
            if room not in seen:
                seen.add(room)
                left += arrows.get(room, ())
        return seen

    reach = {room: reached(room) for room in arrows}
    groups = {tuple(sorted({room, *(other for other in reach[room] if room in reach.get(other, ()))})) for room in arrows if room in reach[room]}
    return sorted(groups)


def levels(arrows: Arrows) -> dict[str, int]:
    """Return the storey of each room: 0 imports no other, each stands above all that it imports; rooms of a circle share one."""
    group = {room: index for index, rooms in enumerate(circles(arrows)) for room in rooms}
    found: dict[str, int] = {}

    def level(room: str, path: frozenset[str] = frozenset()) -> int:
        if room not in found:
            below = [to for to in arrows.get(room, ()) if to not in path and not (room in group and group[room] == group.get(to))]
            found[room] = 1 + max((level(to, path | {room}) for to in below), default=-1)
        return found[room]

    for room in sorted(arrows):
        level(room)
    return found


def drawing(root: Path = ROOT) -> bytes:
    """Return the SVG of the rooms of `meca`, lowest storey at the bottom, an arrow for each import."""
    import io

    import matplotlib
    from matplotlib.figure import Figure

    arrows = {room: _within("meca", to) for room, to in arrows_of(root).items() if room.startswith("meca.")}
    storeys: dict[int, list[str]] = {}
    for room, storey in levels(arrows).items():
        storeys.setdefault(storey, []).append(room)
    widest = max(len(rooms) for rooms in storeys.values())
    place = {room: (widest * (at + 0.5) / len(rooms), float(storey)) for storey, rooms in storeys.items() for at, room in enumerate(sorted(rooms))}
    figure = Figure(figsize=(1.9 * widest, 1.05 * (max(storeys) + 1)))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, widest), ylim=(-0.6, max(storeys) + 0.6))
    axes.axis("off")
    for room in sorted(arrows):
        for to in sorted(arrows[room]):
            (x, y), (u, v) = place[room], place[to]
            axes.annotate("", (u, v + 0.2), (x, y - 0.2), arrowprops={"arrowstyle": "-|>", "color": "#8899aa", "lw": 0.7, "alpha": 0.6})
    for room, (x, y) in place.items():
        axes.text(
            x,
            y,
            room.removeprefix("meca."),
            ha="center",
            va="center",
            fontsize=9,
            bbox={"boxstyle": "round,pad=0.35", "fc": "#eef3f8", "ec": "#35506b"},
        )
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "meca", "svg.fonttype": "none"}):  # same code, same bytes
        figure.savefig(out, format="svg", metadata={"Date": None}, facecolor="white")
    return out.getvalue()


def written(page: str, found: Figures) -> str:
    """Return a page with the figures between its markers: those alone that an import changes, so that no other edit makes it stale."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"Expected {BEGIN} and {END} in {PAGE}, found not both; put them where the table belongs.")
    lines = ["| package | rooms | arrows |", "|:--|--:|--:|", *(f"| `{name}` | {found.rooms[name]} | {found.arrows[name]} |" for name in PACKAGES)]
    circles = "; ".join(" <-> ".join(rooms) for rooms in found.circles) or "none"
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n\nCircles: {circles}.\n{END}{after}"


def table(found: Figures) -> str:
    """Return the figures as text, a line each."""
    lines = [f"{folder:<11} {files:>4} files {count:>7,} lines" for folder, (files, count) in found.sizes.items()]
    lines += [f"{package:<11} {found.rooms[package]:>4} rooms {found.arrows[package]:>7,} arrows" for package in PACKAGES]
    lines += [f"circles     {len(found.circles):>4}" + "".join(f"\n            {' <-> '.join(rooms)}" for rooms in found.circles)]
    lines += [f"functions with more than {MANY} parameters: {found.long}; most: {found.longest}; median body: {found.median_body:g} lines"]
    return "\n".join(lines + [f"{name:<11} {count:>4} lines" for name, count in found.configuration.items()])


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, compare or count."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architecture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if there is something to change")
    parser.add_argument("--root", type=Path, help="another checkout: figures alone")
    given = parser.parse_args(argv)
    if given.root:
        print(table(figures(given.root)))
        return
    found, page = figures(), ROOT / PAGE
    made = {DRAWING: drawing(), PAGE: written(page.read_text(encoding="utf-8"), found).encode()}
    if given.check:
        stale = [str(name) for name, content in made.items() if not (ROOT / name).is_file() or (ROOT / name).read_bytes() != content]
        if stale:
            raise SystemExit(f"{' and '.join(stale)} not those of the code's imports: run `python -m benchmarks.architecture`.")
        return
    for name, content in made.items():
        (ROOT / name).write_bytes(content)
    print(table(found))


if __name__ == "__main__":
    main()
