"""Measures how the source is built: rooms, arrows, circles, lines, functions, and the way from `train.py` to the loss.

    python benchmarks/structure.py                 this checkout
    python benchmarks/structure.py --root OTHER    another one, for a comparison

A room is a folder or a loose file at the top of `src/openwavlm`; an arrow from A to B means that a file of A imports one of B.
"""

import argparse
import ast
import json
from collections import deque
from pathlib import Path

PACKAGE = "openwavlm"
_LONG = 60  # lines of a function
_WAY = (  # from the launch to the loss
    "def train(config: DictConfig",
    ("class TrainingModule", "class PretrainingModule"),  # the name now and before
    ("class MaskedPrediction", "class PretrainingModule"),  # apart from the module now
    "def forward_micro_batch(",
    "class WavLMForPretraining",
    "def masked_prediction(",
)


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name → file of every module of the package."""
    source = root / "src"
    found = {}
    for path in sorted((source / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(source).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    if path.parent.name == "cli" and path.stem in ("main", "command_line"):
        found.add(f"{PACKAGE}.cli.train")  # commands are imported by name
    return found & set(modules)


def room_of(module: str) -> str:
    """The part of the package that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def functions_of(path: Path) -> list[tuple[str, int]]:
    """(name, lines) of every function, docstring included."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(node.name, node.end_lineno - node.lineno + 1) for node in nodes if node.end_lineno]


def way_to_the_loss(root: Path, modules: dict[str, Path]) -> list[Path]:
    """Files that a step passes from `train.py` to the loss over masked frames, in the order of the calls."""
    chain = [root / "train.py"]
    for definition in _WAY:
        names = (definition,) if isinstance(definition, str) else definition
        goal = next(path for path in modules.values() if any(f"\n{name}" in path.read_text() for name in names))
        chain += _chain(chain, goal, modules)
    return list(dict.fromkeys(chain))


def _chain(starts: list[Path], goal: Path, modules: dict[str, Path]) -> list[Path]:
    """The shortest chain of imports from the last of some files that leads to another one, without the first."""
    queue: deque[list[Path]] = deque([start] for start in reversed(starts))
    seen = set(starts)
    while queue:
        chain = queue.popleft()
        if chain[-1] == goal:
            return chain[1:]
        for name in sorted(imports_of(chain[-1], modules)):
            if (path := modules[name]) not in seen:
                seen.add(path)
                queue.append([*chain, path])
    raise ValueError(f"no chain of imports leads from {starts[-1]} to {goal}")


def lines_in(paths: list[Path]) -> int:
    """Lines of some files."""
    return sum(len(path.read_text().splitlines()) for path in paths)


def concepts_of(path: Path) -> int:
    """Public classes and functions at the top of a module: names that a reader of other files meets."""
    nodes = ast.parse(path.read_text()).body
    return sum(isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_") for node in nodes)


def measure(root: Path) -> dict[str, object]:
    """All figures of a checkout."""
    modules = modules_of(root)
    files = {name: path for name, path in modules.items() if path.name != "__init__.py"}
    arrows = {
        (room_of(name), room_of(other))
        for name, path in files.items()
        for other in imports_of(path, files)
        if room_of(other) != room_of(name)
    }
    functions = [(lines, f"{path.relative_to(root)}:{name}") for path in files.values() for name, lines in functions_of(path)]
    chain = way_to_the_loss(root, files)
    yaml = sorted((root / "conf").rglob("*.yaml"))
    source = [*modules.values(), *sorted((root / "data_prep").glob("*.py")), root / "train.py"]
    return {
        "rooms": len({room_of(name) for name in files}),
        "arrows": len(arrows),
        "circles": sorted(f"{one} <-> {other}" for one, other in arrows if one < other and (other, one) in arrows),
        "lines of source": lines_in(source),
        "files of source": len(source),
        "lines of YAML": lines_in(yaml),
        "public classes and functions": sum(concepts_of(path) for path in files.values()),
        "functions over 60 lines": sorted((found for found in functions if found[0] > _LONG), reverse=True),
        "files over 300 lines": sorted(
            ((lines_in([path]), str(path.relative_to(root))) for path in files.values() if lines_in([path]) > 300), reverse=True
        ),
        "train.py to the loss, files": [str(path.relative_to(root)) for path in chain],
        "train.py to the loss, lines": lines_in(chain),
    }


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    print(json.dumps(measure(parser.parse_args().root.resolve()), indent=1))


if __name__ == "__main__":
    main()
