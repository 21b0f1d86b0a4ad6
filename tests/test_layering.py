"""Imports point downwards, without circles, and nothing heavy is imported before it is needed."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cyclediff", "baselines", "eval")
OWN_FILES = ("cyclediffusion", "shared_encoding", "similarity", "guidance", "local_blend", "prompt_alignment")
OWN_FILES += ("attention_control", "attention_edit", "attention_layers")
LAYERS = [  # from top to bottom; a module imports from its own layer and from those below
    {"run"},
    {"cyclediff.cli"},
    {"cyclediff.loggers"},
    {"cyclediff.studies"},
    {"cyclediff.runtime"},
    {"cyclediff.pets"},
    {"cyclediff.data"},
    {"cyclediff.models"},
    {f"cyclediff.{name}" for name in OWN_FILES},
    {"cyclediff.method"},
    {"cyclediff.diffusion"},
    {"cyclediff.errors"},
]
OF_EVAL = {
    "eval.files",
    "eval.random_mark",
    "eval.records",
    "eval.weight_files",
}  # what any module of cyclediff may import
USERS_OF_EVAL = ("cyclediff.cli", "cyclediff.loggers", "cyclediff.studies")  # may import all of eval
TRAINERS = "cyclediff.studies.train_"  # how a method is trained; baselines import the maths only, so there is no circle
HEAVY = {"torch", "diffusers", "torchmetrics", "torchvision", "scipy", "transformers", "cleanfid", "requests"}
HEAVY |= {"open_clip", "timm", "pyarrow", "wandb", "tensorboard", "lpips", "jinja2"}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [ROOT / "run.py", *(file for folder in PACKAGES for file in sorted((ROOT / folder).rglob("*.py")))]
MODULES = {name_of(file): file for file in FILES}


def statements(node: ast.AST, inside_functions: bool) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:` and, if asked, those of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if not inside_functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from statements(child, inside_functions)


@cache
def imports(file: Path, inside_functions: bool = True) -> frozenset[str]:
    """Names of the modules that a file imports; `from package import module` is the module."""
    found = set()
    for node in statements(ast.parse(file.read_text()), inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{file} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in MODULES}
            if names - MODULES.keys():
                found.add(node.module)
    return frozenset(found)


def ours(name: str) -> set[str]:
    return {found for found in imports(MODULES[name]) if found.split(".")[0] in (*PACKAGES, "run", "scripts", "tests")}


def is_in(name: str, places: set[str] | tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def layer_of(name: str) -> int:
    return next((i for i, layer in enumerate(LAYERS) if is_in(name, layer)), -1)


CYCLEDIFF = [name for name in MODULES if name == "run" or name.startswith("cyclediff.")]


@pytest.mark.parametrize("name", CYCLEDIFF)
def test_every_module_has_a_layer_and_imports_downwards(name):
    assert layer_of(name) >= 0, f"{name} is in no layer"
    for other in ours(name):
        if is_in(other, ("baselines",)):
            assert name.startswith(TRAINERS), f"{name} imports {other}"
        elif is_in(other, ("eval",)):
            assert is_in(other, OF_EVAL) or is_in(name, USERS_OF_EVAL), f"{name} imports {other}"
        else:
            assert layer_of(other) >= layer_of(name), f"{name} imports {other}"


def test_baselines_import_the_maths_and_what_a_method_is():
    for name in (name for name in MODULES if name.startswith("baselines.")):
        for other in ours(name):
            assert is_in(other, ("cyclediff.diffusion", "cyclediff.method")), f"{name} imports {other}"


def test_eval_stands_alone():
    for name in (name for name in MODULES if name.startswith("eval.")):
        for other in ours(name):
            assert is_in(other, ("eval",)), f"{name} imports {other}"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1 or node in graph[node]:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert sorted(circles(graph)) == [["b", "c"], ["e"]]


def test_no_circles():
    """Imports inside functions count too."""
    assert circles({name: ours(name) & MODULES.keys() for name in MODULES}) == []


def test_diffusers_stays_in_models():
    for name, file in MODULES.items():
        if "diffusers" in {other.split(".")[0] for other in imports(file)}:
            assert is_in(name, ("cyclediff.models", "cyclediff.pets.networks")), f"{name} imports diffusers"


@pytest.mark.parametrize("file", [file for file in FILES if file.name == "__init__.py"], ids=name_of)
def test_a_folder_says_in_one_sentence_what_belongs_there(file):
    tree = ast.parse(file.read_text())
    assert len(tree.body) == 1
    text = ast.get_docstring(tree)
    assert text
    assert "\n" not in text
    assert [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text)] == [len(text)]


def test_every_folder_of_python_files_is_a_package():
    for folder in {file.parent for file in FILES} - {ROOT}:
        assert (folder / "__init__.py").is_file()


def test_nothing_heavy_is_imported_before_it_is_needed():
    """`python run.py --help` and a misspelt key answer at once."""
    seen, queue = set(), ["run"]
    while queue:
        name = queue.pop()
        seen.add(name)
        for other in imports(MODULES[name], inside_functions=False):
            assert other.split(".")[0] not in HEAVY, f"{name} imports {other}"
            if other in MODULES and other not in seen:
                queue.append(other)
    assert "cyclediff.cli.main" in seen


def test_help_loads_nothing_heavy():
    """Not through other packages either; a package that is only looked for is not loaded."""
    show = f"print('loaded', sorted({HEAVY} & sys.modules.keys()), file=sys.stderr)"
    code = f"import atexit, runpy, sys; atexit.register(lambda: {show}); sys.argv = ['run.py', '--help']"
    code += "; runpy.run_path('run.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith("loaded []")
