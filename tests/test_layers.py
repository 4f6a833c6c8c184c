"""The house's directions, read from the import statements."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = ["trajectory", "errors", "intervals", "budget", "ports", "events", "files", "context", "policies", "judging",
        "loop", "state", "selecting", "journal", "byhand", "answers", "together", "packages",
        "checklist/questions", "checklist/tidying", "checklist/text"]  # fmt: skip
ADAPTERS = ("vlm", "flux2", "shapes", "judges")
TORCH = (
    "clvr/devices.py",
    "clvr/flux2/",
    "clvr/dswm",
    "clvr/judges/detector.py",
    "clvr/probe/rank.py",
    "clvr/vlm/",
    "clvr/shapes/",
    "training/",
    "nodes/",
)
PILLOW = (
    "clvr/pen.py",
    "clvr/chart.py",
    "clvr/images.py",
    "clvr/report/",
    "clvr/dswm/plot.py",
    "clvr/probe/plot.py",
    "clvr/flux2/",
    "clvr/judges/",
    "clvr/vlm/",
    "clvr/shapes/",
    "training/",
    "nodes/",
)
HEAVY = {"torch", "numpy", "diffusers", "transformers", "safetensors", "peft", "accelerate"}


def files(*folders):
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def imports(path, top_only=False):
    """Absolute dotted names that a file imports, those under TYPE_CHECKING left out."""
    found = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.update([module] if node.module else (f"{module}.{a.name}" for a in node.names))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return found


def tops(names):
    return {name.split(".")[0] for name in names}


def relative(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files("clvr"), ids=relative)
def test_the_engine_knows_neither_nodes_nor_training_nor_comfyui(path):
    forbidden = {"nodes", "training", "benchmarks", "scripts", "tests"}
    forbidden |= {"comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "execution"}
    assert not tops(imports(path)) & forbidden


@pytest.mark.parametrize("path", files("clvr"), ids=relative)
def test_the_command_line_is_imported_by_no_one(path):
    if path.name != "__main__.py" and path.parent.name != "cli":
        assert not [n for n in imports(path) if n == "clvr.cli" or n.startswith("clvr.cli.")]


@pytest.mark.parametrize("path", files("training"), ids=relative)
def test_training_does_not_know_the_nodes(path):
    assert "nodes" not in tops(imports(path))


@pytest.mark.parametrize("path", files("clvr", "nodes"), ids=relative)
def test_inside_the_pack_imports_are_relative(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            comfyui_s_own = node.module == "nodes" and [a.name for a in node.names] == ["NODE_CLASS_MAPPINGS"]
            assert comfyui_s_own or (node.module or "").split(".")[0] not in ("clvr", "nodes")
        if isinstance(node, ast.Import):
            assert not tops(a.name for a in node.names) & {"clvr", "nodes"}


PURE_FILES = [p for n in PURE for p in (*files(f"clvr/{n}"), *(ROOT / "clvr").glob(f"{n}.py"))]


@pytest.mark.parametrize("path", PURE_FILES, ids=relative)
def test_the_pure_parts_are_standard_library_alone(path):
    found = imports(path)
    own = {n for n in found if n.split(".")[0] == "clvr"}
    assert tops(found - own) <= sys.stdlib_module_names
    modules = {n.split(".")[1] for n in own if "." in n}
    assert not modules & {*ADAPTERS, "dswm", "probe", "report", "cli", "models"}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_know_the_contract_and_not_the_loop_or_each_other(name):
    others = {*ADAPTERS} - {name}
    for path in files(f"clvr/{name}"):
        modules = {n.split(".")[1] for n in imports(path) if n.startswith("clvr.")}
        assert not modules & {*others, "loop", "journal", "policies", "cli", "models", "report"}, path


@pytest.mark.parametrize("path", files("clvr/dswm"), ids=relative)
def test_merging_knows_the_file_formats_and_no_other_room(path):
    own = {n for n in imports(path) if n.startswith("clvr.") and not n.startswith("clvr.dswm")}
    assert {n.split(".")[1] for n in own} <= {"__version__", "devices", "errors", "files", "flux2", "hub", "pen"}


@pytest.mark.parametrize("path", files("clvr", "training", "nodes"), ids=relative)
def test_torch_and_pillow_stay_where_they_belong(path):
    found = tops(imports(path))
    if not relative(path).startswith(TORCH):
        assert "torch" not in found
    if not relative(path).startswith(PILLOW):
        assert "PIL" not in found


def loaded_with(path):
    """A file and those of the pack that its imports, and theirs, load with it."""
    found, open_ = set(), [path]
    while open_:
        file = open_.pop()
        if file in found:
            continue
        found.add(file)
        for name in imports(file, top_only=True):
            inside = ROOT.joinpath(*name.split("."))
            tried = (inside.with_suffix(".py"), inside / "__init__.py", inside.parent.with_suffix(".py"))
            open_ += [p for p in tried if p.is_file() and tops([name]) <= {"nodes", "clvr"}]
    return found


LISTED = sorted(imports(ROOT / "nodes" / "extension.py"))


@pytest.mark.parametrize("name", [n for n in LISTED if n.startswith("nodes.")])
def test_nodes_load_nothing_heavy_before_one_runs(name):
    for path in loaded_with(ROOT.joinpath(*name.split(".")).with_suffix(".py")):
        assert not tops(imports(path, top_only=True)) & HEAVY, path


@pytest.mark.parametrize(
    "module", ["clvr.loop", "clvr.journal", "clvr.policies", "clvr.context", "clvr.cli", "clvr.models", "clvr.probe"]
)
def test_importing_the_engine_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {*HEAVY, "PIL", "PIL.Image", "tqdm", "httpx", "pydantic"}
