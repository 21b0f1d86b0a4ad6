"""What the gradient of plug-and-play guidance costs beside that of the plain graph: a part of `make bench`."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from benchmark_networks import side_by_side
from rich.table import Table

from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.white_box import WhiteBox
from cyclediff.guidance import draw_code
from cyclediff.pets import networks

STEPS, COUNT = 50, 2
WEIGHTS = Path(networks.__file__).parent / "weights" / "dog.safetensors"


def slope(checkpointing: bool) -> None:
    """One gradient with respect to the codes of `COUNT` dogs, through `STEPS` steps."""
    denoiser, noise = networks.load(str(WEIGHTS)).denoiser, Noise(0, [str(i) for i in range(COUNT)])
    levels = denoiser.schedule.levels(STEPS, "respaced")
    generator = WhiteBox(denoiser, levels, STEPS - 1, checkpointing=checkpointing)
    z = draw_code(noise, torch.zeros(COUNT, 3, networks.SIZE, networks.SIZE), STEPS - 1).requires_grad_()
    generator(z, noise).square().sum().backward()


def print_memory(checkpointing: bool) -> None:
    """Print by how much a gradient raised this process's peak memory, in MiB."""
    import resource

    networks.load(str(WEIGHTS)).denoiser  # noqa: B018
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slope(checkpointing)
    print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def memory(checkpointing: bool) -> float:
    """The same, measured in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import benchmark_guidance as b; "
    code += f"b.print_memory({checkpointing})"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def rows_of_guidance(table: Table) -> None:
    """Memory and time of the gradient that guidance takes, as a share of the plain graph's."""
    ours, plain = memory(True), memory(False)
    title = f"guidance, gradient through {STEPS} steps, {COUNT} dogs"
    table.add_row(f"{title}: memory added", f"{ours:.0f} of {plain:.0f} MiB = {ours / plain:.2f} ×", "≤ 0.35 ×")
    best = side_by_side({"ours": lambda: slope(True), "plain": lambda: slope(False)}, rounds=3)
    ours, plain = best["ours"], best["plain"]
    table.add_row("  time", f"{ours:.1f} against {plain:.1f} s = {ours / plain:.2f} ×", "≤ 1.5 ×")
