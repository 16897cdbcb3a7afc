"""The shape of the code: no circles, no long files or functions, no crowded folders."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts): file
    for top in ("unet", "jobs", "cluster")
    for file in sorted((ROOT / top).rglob("*.py"))
}


def type_checking(tree):
    """Every node below `if TYPE_CHECKING:`, which nothing imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from map(id, ast.walk(node))


def imported(file):
    """Modules of the project that a module imports, anywhere in it."""
    tree = ast.parse(file.read_text("utf-8"))
    skipped = set(type_checking(tree))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("maskfleet.")
            and id(node) not in skipped
        ):
            for name in node.names:
                module = node.module.removeprefix("maskfleet.")
                yield f"{module}.{name.name}" if f"{module}.{name.name}" in MODULES else module


def circles(arrows):
    """Nodes that lead back to themselves."""

    def reachable(node, seen):
        for other in arrows.get(node, ()):
            if other not in seen:
                seen.add(other)
                reachable(other, seen)
        return seen

    return [node for node in arrows if node in reachable(node, set())]


ARROWS = {module: set(imported(file)) for module, file in MODULES.items()}


def folder(module):
    """The folder of a module; a module that lies loose in `jobs/` stands for itself."""
    name = module.rpartition(".")[0]
    return module if name == "jobs" else name


def test_no_modules_import_each_other():
    assert circles(ARROWS) == []


def test_no_folders_import_each_other():
    arrows = {}
    for module, others in ARROWS.items():
        arrows.setdefault(folder(module), set()).update(folder(other) for other in others)
    arrows = {name: others - {name} for name, others in arrows.items()}
    assert circles(arrows) == []


def test_files_and_functions_are_short():
    texts = {name: file.read_text("utf-8") for name, file in MODULES.items()}
    assert [name for name, text in texts.items() if len(text.splitlines()) > 400] == []
    functions = {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: lines for name, lines in functions.items() if lines > 60} == {}


def test_no_folder_is_crowded():
    files = [file for file in MODULES.values() if file.name != "__init__.py"]
    counts = {file.parent: sum(other.parent == file.parent for other in files) for file in files}
    assert {parent.name: count for parent, count in counts.items() if count > 12} == {}
