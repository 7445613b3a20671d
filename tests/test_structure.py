"""The house: imports point down, none is hidden, leaves lift out; each check fails on a made-up tree."""
import ast
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A room imports only from rooms before it and from itself; the first ten are single modules, the floor.
ROOMS = ["distributed", "errors", "flags", "presets", "files", "npy_files", "progress", "pictures", "run",
         "training", "clip", "networks", "toy", "datasets", "cams", "report", "guidance", "refine",
         "segment", "options", "generator_options", "prompt_options", "demo", "ablation_rows", "ablate", "scripts"]
# What a leaf may import of the package beside itself; a room as a leaf stands for all its modules.
LEAVES = {"clip": [], "networks.resnet": [], "networks.vit": [], "networks.deeplab": ["networks.resnet"],
          "guidance.losses": [], "report.metrics": [], "refine.random_walk": [], "refine.crf": []}


def modules_of(root):
    """Dotted name below the package, or a script's name -> path."""
    package = root / "clipwsss"
    names = {path: ".".join(path.relative_to(package).with_suffix("").parts)
             for path in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for path, name in names.items() if name != "__init__"}
    return modules | {path.stem: path for path in root.glob("*.py")}


def room_of(path, root):
    return "scripts" if path.parent == root else path.relative_to(root / "clipwsss").with_suffix("").parts[0]


def imported(node, package):
    """Full names that an import statement may mean, `package` being the importing module's own."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    above = package[:len(package) - node.level + 1] if node.level else []
    base = [*above, *([node.module] if node.module else [])]
    return [".".join([*base, alias.name]) for alias in node.names]


def imports_of(path, root, modules):
    """(module, line, whether it stands at the top) of every import of a module or script of the tree."""
    tree, package = ast.parse(path.read_text()), path.relative_to(root).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported(node, package):
                inside = name.startswith("clipwsss.")
                target = name.removeprefix("clipwsss.") if inside else name.split(".")[0]
                while target and target not in modules:  # the last parts may be what a module holds
                    target = target.rpartition(".")[0]
                if target:
                    yield target, node.lineno, node in tree.body


def circle_from(start, edges):
    """A path of imports that leads back to its beginning, or None."""
    waiting, seen = [[start]], set()
    while waiting:
        path = waiting.pop()
        for target in edges[path[-1]]:
            if target == start:
                return " -> ".join([*path, target])
            if target not in seen:
                seen.add(target)
                waiting.append([*path, target])
    return None


def import_faults(root):
    """Every import that breaks a rule of the house, as one line each."""
    modules, faults, edges = modules_of(root), [], {}
    for name, path in modules.items():
        edges[name], room = set(), room_of(path, root)
        if room not in ROOMS:
            faults.append(f"{name} stands in no room")
            continue
        leaf = next((leaf for leaf in LEAVES if name == leaf or room == leaf), None)
        for target, line, on_top in imports_of(path, root, modules):
            edges[name].add(target)
            where, other = f"{name}:{line}", room_of(modules[target], root)
            if not on_top:
                faults.append(f"{where} hides its import of {target}")
            if other == "scripts":
                faults.append(f"{where} imports the script {target}")
            elif other in ROOMS and ROOMS.index(other) > ROOMS.index(room):
                faults.append(f"{where} imports {target}, which stands above it")
            if leaf and target not in LEAVES[leaf] and other != leaf:
                faults.append(f"{where} is a leaf and imports {target}")
    circles = (circle_from(name, edges) for name in edges)
    return faults + [f"circle: {circle}" for circle in circles if circle]


def test_imports_point_down():
    assert len(modules_of(ROOT)) > 60 and modules_of(ROOT).keys() >= {"train_cam", "clip.model", "datasets"}
    assert import_faults(ROOT) == []


FAULTS = [
    ({"files.py": "from .training import fit\n", "training.py": ""},
     ["files:1 imports training, which stands above it"]),
    ({"toy/world.py": "from ..datasets.toy import ToyDataset\n", "datasets/toy.py": ""},
     ["toy.world:1 imports datasets.toy, which stands above it"]),
    ({"toy/world.py": "import clipwsss.demo\n", "demo.py": ""},
     ["toy.world:1 imports demo, which stands above it"]),
    ({"files.py": "def b():\n    from . import errors\n", "errors.py": ""},
     ["files:2 hides its import of errors"]),
    ({"files.py": "try:\n    from clipwsss.errors import a\nfinally:\n    pass\n", "errors.py": ""},
     ["files:2 hides its import of errors"]),
    ({"cams/maps.py": "from .files import x\n", "cams/files.py": "from . import maps\n"},
     ["circle: cams.files -> cams.maps -> cams.files", "circle: cams.maps -> cams.files -> cams.maps"]),
    ({"refine/crf.py": "from .labels import snap\n", "refine/labels.py": ""},
     ["refine.crf:1 is a leaf and imports refine.labels"]),
    ({"networks/deeplab.py": "from . import resnet\nfrom ..errors import InputError\n",
      "networks/resnet.py": "", "errors.py": ""}, ["networks.deeplab:2 is a leaf and imports errors"]),
    ({"clip/model.py": "from ..errors import InputError\nfrom .towers import Transformer\n",
      "clip/towers.py": "", "errors.py": ""}, ["clip.model:1 is a leaf and imports errors"]),
    ({"ablate.py": "import train_cam\n", "../train_cam.py": ""}, ["ablate:1 imports the script train_cam"]),
    ({"../eval.py": "from train_cam import main\n", "../train_cam.py": "import clipwsss.files\n",
      "files.py": ""}, ["eval:1 imports the script train_cam"]),
    ({"helpers/text.py": ""}, ["helpers.text stands in no room"]),
    ({"cams/maps.py": "import json\nfrom ..errors import InputError\nfrom .files import read\n",
      "cams/files.py": "import numpy.files\n", "errors.py": "", "cams/__init__.py": ""}, [])]


def test_each_fault_is_seen_and_nothing_else(tmp_path):
    for number, (files, expected) in enumerate(FAULTS):
        root = tmp_path / str(number)
        for name, text in files.items():
            path = root / "clipwsss" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.resolve().write_text(text)
        assert sorted(import_faults(root)) == expected, files


def test_steps_losses_and_networks_know_nothing_of_processes():
    modules = modules_of(ROOT)
    for name, path in modules.items():
        if name.startswith(("networks.", "refine.", "clip.")) or name in ("guidance.losses", "guidance.losses"):
            assert "distributed" not in {target for target, _, _ in imports_of(path, ROOT, modules)}, name


def encoding_faults(path):
    """Places where text is read or written in the encoding of the locale."""
    faults = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        mode = node.args[1] if len(node.args) > 1 else ast.Constant("r")
        opens_text = name == "open" and owner == "" and "b" not in mode.value
        is_text = opens_text or (isinstance(node.func, ast.Attribute) and name in ("read_text", "write_text"))
        if is_text and "encoding" not in {word.arg for word in node.keywords}:
            faults.append(f"{path.name}:{node.lineno}: {name} without an encoding")
    return faults


def test_all_text_has_an_encoding(tmp_path):
    assert [fault for path in modules_of(ROOT).values() for fault in encoding_faults(path)] == []
    (tmp_path / "a.py").write_text("open(a)\nopen(a, 'w')\np.read_text()\np.write_text(t)\nopen(a, 'rb')\n"
                                   "open(a, encoding='utf-8')\nread_text(a)\nImage.open(a)\n")
    assert [fault.split(":")[1] for fault in encoding_faults(tmp_path / "a.py")] == ["1", "2", "3", "4"]


# The other leaves' own tests do the same.
def test_leaves_lift_out(tmp_path):
    shutil.copy(ROOT / "clipwsss" / "report" / "metrics.py", tmp_path)
    code = ("import sys, numpy, metrics; print(metrics.confusion(*numpy.zeros((2, 3, 4), numpy.uint8), 2)[0, 0]); "
            "sys.exit('clipwsss' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("12"), done.stderr


def size_faults(path):
    """What is too long, too wide, takes too much or is named after nothing in a file."""
    lines = path.read_text().splitlines()
    too_long = len(lines) > 400
    faults = [f"{path.name}: {len(lines)} lines"] if too_long else []
    faults += [f"{path.name}:{number}: wide" for number, line in enumerate(lines, 1) if len(line) > 110]
    if path.stem in ("utils", "util", "misc", "common", "helpers"):
        faults.append(f"{path.name}: no name")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            if node.end_lineno - node.lineno >= 70:
                faults.append(f"{path.name}: {node.name} is long")
            if len(names) - (names[:1] in (["self"], ["cls"])) > 8:
                faults.append(f"{path.name}: {node.name} takes {len(names)} parameters")
    return faults


def test_no_file_is_long_and_none_is_a_lumber_room():
    assert [fault for path in modules_of(ROOT).values() for fault in size_faults(path)] == []


def test_each_excess_is_seen(tmp_path):
    for name, text, expected in (
            ("a.py", "x = 1\n" * 401, ["a.py: 401 lines"]), ("a.py", "x = 1\n" * 400, []),
            ("a.py", f"x = 1\ny = '{'y' * 105}'\n", ["a.py:2: wide"]), ("utils.py", "", ["utils.py: no name"]),
            ("a.py", "def f():\n" + "    x = 1\n" * 70, ["a.py: f is long"]),
            ("a.py", "def f():\n" + "    x = 1\n" * 69, []),
            ("a.py", "def f(a, b, c, d, e, *, f, g, h, i): pass\n", ["a.py: f takes 9 parameters"]),
            ("a.py", "class A:\n    def f(self, a, b, c, d, e, f, g, h): pass\n", [])):
        (tmp_path / name).write_text(text)
        assert size_faults(tmp_path / name) == expected, name
