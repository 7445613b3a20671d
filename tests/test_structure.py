"""The house: imports point down, none is hidden, leaves are leaves; each check fails on a made-up tree."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each room imports only from rooms before it, from itself, and from the floor's earlier modules.
ORDER = ("errors", "files", "progress", "pictures", "training", "clip", "networks", "toy", "datasets", "cams", "report",
         "guidance", "refine", "segment", "options", "demo", "ablate")
LEAVES = {"networks.resnet": (), "networks.deeplab": ("networks.resnet",), "guidance.losses": (), "report.metrics": (),
          "refine.random_walk": (), "refine.crf": (), "refine.pamr": ()}
SCRIPTS = ("train_cam", "train_prompt", "make_pseudo", "train_seg", "eval")


def modules_of(root):
    """Dotted name below the package -> path."""
    package = root / "clipwsss"
    return {".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path
            for path in sorted(package.rglob("*.py")) if path != package / "__init__.py"}


def imports_of(name, path, modules):
    """(module of the package, line, whether it stands at the top) for every import of the package; scripts by name."""
    tree = ast.parse(path.read_text())
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = ["clipwsss", *here[:len(here) - node.level + 1]] + ([node.module] if node.module else [])
            else:
                base = [node.module]
            targets = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for target in targets:
            inner = target.removeprefix("clipwsss.") if target.startswith("clipwsss.") else None
            while inner and inner not in modules:
                inner = inner.rpartition(".")[0]
            if inner:
                yield inner, node.lineno, node in tree.body
            elif target.split(".")[0] in SCRIPTS:
                yield target.split(".")[0], node.lineno, node in tree.body


def circle_from(start, edges):
    """A path of imports that leads back to its beginning, or None."""
    waiting = [[start]]
    while waiting:
        path = waiting.pop()
        for target in edges[path[-1]]:
            if target == start:
                return " -> ".join([*path, target])
            if target not in path:
                waiting.append([*path, target])
    return None


def problems_of(root, leaves=LEAVES):
    modules, problems, edges = modules_of(root), [], {}
    for name, path in modules.items():
        edges[name] = set()
        for target, line, on_top in imports_of(name, path, modules):
            where = f"{name}:{line}"
            if target in SCRIPTS:
                problems.append(f"{where} imports the script {target}")
                continue
            if target != name:
                edges[name].add(target)
            if not on_top:
                problems.append(f"{where} hides its import of {target}")
            room, other = name.split(".")[0], target.split(".")[0]
            if ORDER.index(other) > ORDER.index(room):
                problems.append(f"{where} imports {target}, which stands above it")
            if name in leaves and target not in leaves[name] and target != name.rpartition(".")[0]:
                problems.append(f"{where} is a leaf and imports {target}")
            if room == "clip" != other:
                problems.append(f"{where} leaves the folder clip")
    circles = (circle_from(name, edges) for name in edges)
    return problems + [f"circle: {circle}" for circle in circles if circle]


def test_imports_point_down():
    assert len(modules_of(ROOT)) > 50
    assert problems_of(ROOT) == []


@pytest.mark.parametrize("files, expected", [
    ({"files.py": "from .training import fit\n", "training.py": ""}, "files:1 imports training, which stands above it"),
    ({"files.py": "from .errors import a\n", "errors.py": "def b():\n    from . import files\n"},
     "errors:2 hides its import of files"),
    ({"cams/maps.py": "from .files import x\n", "cams/files.py": "from . import maps\n", "cams/__init__.py": ""},
     "circle: cams.files -> cams.maps -> cams.files"),
    ({"refine/crf.py": "from ..errors import InputError\n", "errors.py": "", "refine/__init__.py": ""},
     "refine.crf:1 is a leaf and imports errors"),
    ({"clip/model.py": "from ..errors import InputError\n", "errors.py": "", "clip/__init__.py": ""},
     "clip.model:1 leaves the folder clip"),
    ({"ablate.py": "import train_cam\n"}, "ablate:1 imports the script train_cam")])
def test_each_fault_is_seen(tmp_path, files, expected):
    for name, text in files.items():
        path = tmp_path / "clipwsss" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert expected in problems_of(tmp_path)


def test_no_file_is_long_and_none_is_a_lumber_room():
    paths = [*modules_of(ROOT).values(), *(ROOT / f"{script}.py" for script in SCRIPTS)]
    for path in paths:
        lines = path.read_text().splitlines()
        assert len(lines) <= 300 and max(map(len, lines), default=0) <= 110, path
        assert path.stem not in ("utils", "util", "misc", "common", "helpers"), path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
