"""Imports point one way: maths ← models ← methods ← the run; eval stands alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"cyclediff", "baselines", "eval", "scripts", "run", "tests"}

MATHS = {f"cyclediff.{name}" for name in ("schedule", "steps", "noise", "denoiser", "method", "lowpass")}
MATHS |= {f"cyclediff.{name}" for name in ("prompt_alignment", "attention_control", "joint")}
ALLOWED = {  # a file or folder → the modules of this project that it may import
    "cyclediff/schedule.py": set(),
    "cyclediff/noise.py": set(),
    "cyclediff/steps.py": set(),
    "cyclediff/lowpass.py": set(),
    "cyclediff/denoiser.py": {"cyclediff.diffusion.schedule", "cyclediff.prompt_alignment"},
    "cyclediff/prompt_alignment.py": set(),
    "cyclediff/attention_control.py": {"cyclediff.prompt_alignment"},
    "cyclediff/method.py": {"cyclediff.diffusion.denoiser", "cyclediff.diffusion.noise"},
    "cyclediff/joint.py": MATHS - {"cyclediff.diffusion.paired"},
    "cyclediff/cyclediffusion.py": MATHS,
    "cyclediff/search.py": MATHS | {"cyclediff.cyclediffusion"},
    "cyclediff/selection.py": set(),
    "cyclediff/models": MATHS - {"cyclediff.diffusion.paired"} | {"cyclediff.models", "cyclediff.errors"},
    "cyclediff/pets": {"cyclediff.pets"},
    "cyclediff/loggers": {"cyclediff.loggers", "cyclediff.errors", "cyclediff.data.images"},
    "baselines": MATHS,
    "eval": {"eval"},
}
HEAVY = {"torch", "diffusers", "torchmetrics", "torchvision", "scipy", "transformers", "cleanfid", "requests"}
HEAVY |= {"open_clip", "pyarrow", "wandb", "tensorboard", "lpips", "jinja2"}


def imports(path: Path, only_module_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if only_module_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in OURS}


@pytest.mark.parametrize("place", ALLOWED)
def test_arrows(place):
    files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
    assert files
    for file in files:
        for name in ours(imports(file)):
            assert any(name == a or name.startswith(f"{a}.") for a in ALLOWED[place]), f"{file.name} imports {name}"


def test_baselines_do_not_import_one_another():
    for file in (ROOT / "baselines").glob("*.py"):
        assert not any(name.startswith("baselines") for name in imports(file))


def test_diffusers_stays_in_models():
    for folder in ("cyclediff", "baselines", "eval"):
        for file in (ROOT / folder).rglob("*.py"):
            if "diffusers" in {name.split(".")[0] for name in imports(file)}:
                assert file.parent.name == "models"


def test_nothing_heavy_is_imported_before_it_is_needed():
    """`python run.py --help` and a misspelt key answer at once."""
    seen, queue = set(), [ROOT / "run.py"]
    while queue:
        file = queue.pop()
        for name in imports(file, only_module_level=True):
            assert name.split(".")[0] not in HEAVY, f"{file.name} imports {name}"
            module = ROOT / (name.replace(".", "/") + ".py")
            if module.exists() and module not in seen:
                seen.add(module)
                queue.append(module)
    assert ROOT / "cyclediff/results.py" in seen
