"""Rooms of the package: each imports from floors below its own, and from no other room."""

import ast
import re
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import stat_prune

PACKAGE = Path(stat_prune.__file__).parent
PICTURE = Path(__file__).parents[1] / "docs" / "figures" / "rooms.svg"

#: From the ground up; what stands on one floor does not know of each other.
FLOORS = (
    ("errors", "linalg"),
    ("examples", "machine", "model"),
    ("families", "settings"),
    ("checkpoints", "data", "surgery"),
    ("exporting", "inferring", "measuring"),
    ("attention", "choosing", "evaluation", "reporting"),
    ("pipeline", "trimming"),
    ("baselines", "finishing", "vib"),
    ("pruning",),
    ("__init__", "cli"),
    ("__main__",),
)

#: Files in a folder beyond which nobody finds one.
MOST_FILES = 14


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[1]


def imports_of(module: str) -> set[str]:
    """Modules of this package that one imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by a relative name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in MODULES else str(node.module) for one in inner}
    return {one for one in found if one in MODULES} - {module}


def test_every_room_has_a_floor():
    assert {room_of(module) for module in MODULES} == {room for floor in FLOORS for room in floor}


def test_rooms_import_from_floors_below_theirs_alone():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = [
        f"{module} ({own}) imports {other}"
        for module in MODULES
        for other in imports_of(module)
        if (own := room_of(module)) != (below := room_of(other)) and floor[below] >= floor[own]
    ]
    assert wrong == []


def test_no_module_needs_itself():
    every = {
        module: {one for one in imports_of(module) if not module.startswith(f"{one}.")}
        for module in MODULES
        if MODULES[module].name != "__init__.py"
    }
    TopologicalSorter(every).prepare()  # raises CycleError, which names them


def test_no_two_modules_have_one_name():
    names = Counter(m.rpartition(".")[2] for m, p in MODULES.items() if p.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_files_of_tests_have_one_name():
    """pytest takes one for the other, and collects neither."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py"))
    del names["conftest.py"]
    assert [name for name, count in names.items() if count > 1] == []


def test_no_folder_is_crowded():
    counts = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    crowded = {str(folder): count for folder, count in counts.items() if count > MOST_FILES}
    assert crowded == {}


def test_the_picture_of_the_rooms_shows_them_as_they_are():
    """`make rooms` draws it anew."""
    shown = re.findall(r">([a-z_]+|[0-9]+)</", PICTURE.read_text())
    sizes = Counter(map(room_of, MODULES))
    rooms = [room for room in sizes if not room.startswith("__")]
    expected = [*rooms, *(str(sizes[room]) for room in rooms if sizes[room] > 1)]
    assert sorted(one for one in shown if one != "floor") == sorted(expected)
