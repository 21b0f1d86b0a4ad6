"""What the project promises about its speed and memory, measured here and now: `make bench` (Linux).

Times are wall clock on this machine; nothing else should run on it.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]


def timed(*arguments: str) -> tuple[float, float, str]:
    """Run run.py; returns (seconds, peak memory in GiB, output)."""
    before = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output = process.stdout.read() if process.stdout else ""
    _, _, usage = os.wait4(process.pid, 0)
    return time.perf_counter() - before, usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20), output


def rows_of_runs(table: Table) -> None:
    """The program as a whole: the default experiment, the same finished, help and a mistake."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, memory, output = timed(f"paths.outputs={folder}")
        print(output)
        table.add_row("python run.py (64 cats, 6 methods)", f"{seconds:.0f} s", "minutes on 2 cores")
        table.add_row("  peak memory", f"{memory:.2f} GiB", "≤ 2 GiB")
        for share, method in network_shares(Path(folder)):
            promise = "" if method.startswith("egsde") else "≥ 90 %"  # its classifier is the method's own
            table.add_row(f"  inside the denoisers, {method}", f"{share:.1%}", promise)
        table.add_row("the same again, finished", f"{timed(f'paths.outputs={folder}')[0]:.1f} s", "≤ 5 s")
    table.add_row("python run.py --help", f"{timed('--help')[0]:.1f} s", "≤ 2 s")
    table.add_row("a misspelt key", f"{timed('metod=x')[0]:.1f} s", "≤ 2 s")


def network_shares(outputs: Path) -> list[tuple[float, str]]:
    """Share of each translation's wall time that was spent in networks, from the record."""
    records = [json.loads(path.read_bytes()) for path in sorted(outputs.glob("*/*/run.json"))]
    return [(record["costs"]["network_share"], record["method"]) for record in records]


def rows_of_memory(table: Table) -> None:
    """Streaming CycleDiffusion against the form that keeps the code, each in a process of its own."""
    for form in ("streaming", "encode + decode"):
        for steps in (50, 500):
            code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import benchmark as b; "
            code += f"b.translate_once({steps}, {form == 'streaming'})"
            settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed images leave the process at once
            done = subprocess.run(
                [sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True
            )
            grown = done.stdout
            promise = "independent of T" if form == "streaming" else "grows with T"
            table.add_row(f"CycleDiffusion, {form}, T = {steps}: memory added", f"{float(grown):.0f} MiB", promise)


def translate_once(steps: int, streaming: bool) -> None:
    """Translate 4 images at 256×256 with a trivial network, and print how much the peak memory grew."""
    import torch

    from cyclediff.cyclediffusion import Path as Levels
    from cyclediff.cyclediffusion import cyclediffusion, decode, encode
    from cyclediff.diffusion.denoiser import NetworkDenoiser
    from cyclediff.diffusion.noise import Noise
    from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas

    schedule = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
    denoiser = NetworkDenoiser(lambda xt, t: 0.5 * xt, schedule)
    x0, ids = torch.zeros(4, 3, 256, 256), list("abcd")
    few, levels = schedule.levels(5), schedule.levels(steps)
    cyclediffusion(x0, denoiser, denoiser, Levels(few, few), 0.1, Noise(1, ids))
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again at what is in use now
    before = peak_memory()
    if streaming:
        cyclediffusion(x0, denoiser, denoiser, Levels(levels, levels), 0.1, Noise(1, ids))
    else:
        decode(encode(x0, denoiser, levels, 0.1, Noise(1, ids)), denoiser, levels, 0.1)
    print(peak_memory() - before)


def peak_memory() -> float:
    """Peak resident memory of this process since it was last reset, in MiB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def rows_of_invariance(table: Table) -> None:
    """Do batch size and order change a result of the shipped networks?"""
    import torch

    from cyclediff.cyclediffusion import CycleDiffusion
    from cyclediff.diffusion.noise import Noise
    from cyclediff.pets.networks import load
    from cyclediff.pets.render import render, sample_factors

    weights = ROOT / "cyclediff" / "pets" / "weights"
    source, target = (load(str(weights / f"{name}.safetensors")).condition() for name in ("cat", "dog"))
    x0 = render(sample_factors(16, torch.Generator().manual_seed(1)), "cat")
    method, ids = CycleDiffusion(T=100, T_es=85, eta=0.1, refine_steps=10), [str(i) for i in range(16)]

    def translate(order: Any) -> torch.Tensor:
        with torch.no_grad():
            parts = [method(x0[rows], source, target, Noise(1, [ids[i] for i in rows])) for rows in order]
        out = torch.empty_like(x0)
        out[[i for rows in order for i in rows]] = torch.cat(parts)
        return out

    whole = translate([list(range(16))])
    for name, order in {
        "batch size 1": [[i] for i in range(16)],
        "reverse order": [list(range(15, -1, -1))],
        "split 5 + 11": [[3, 1, 4, 0, 5], [2, *range(6, 16)]],
    }.items():
        difference = (translate(order) - whole).abs().max().item()
        table.add_row(f"CycleDiffusion, batch of 16 against {name}", f"{difference:.1e}", "≤ 1e-4")


def rows_of_editing(table: Table) -> None:
    """Editing of pets, diffusers' pipeline on its network, the search."""
    import benchmark_editing as b

    b.row_of_experiment(table, timed)
    b.rows_of_pipeline(table, "tiny", b.tiny(), side=16, steps=50)
    b.rows_of_search(table)


def rows_of_sd(table: Table) -> None:
    """Diffusers' pipeline on a network of Stable Diffusion 1.4's size."""
    import benchmark_editing as b

    b.rows_of_pipeline(table, "SD-1.4-sized", b.sd_sized(), side=16, steps=2)


def row_of_tradeoff(table: Table) -> None:
    """The trade-off on pets."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, memory, output = timed("experiment=pets_tradeoff", f"paths.outputs={folder}")
        print(output)
        table.add_row("experiment=pets_tradeoff", f"{seconds:.0f} s, {memory:.2f} GiB", "≤ 600 s on 2 cores")


IN_MODULES = {  # part → functions of a module beside this one, imported when they are asked for
    "networks": ("benchmark_networks", "rows_of_forward", "rows_of_cyclediffusion", "rows_of_egsde"),
    "backbones": ("benchmark_backbones", "rows_of_backbones"),
    "candidates": ("benchmark_candidates", "rows_of_ranking", "rows_of_noise", "rows_of_pruning"),
    "guidance": ("benchmark_guidance", "rows_of_guidance"),
    "diffuseit": ("benchmark_diffuseit", "rows_of_diffuseit"),
    "training": ("benchmark_training", "rows_of_training"),
    "metrics": ("benchmark_evaluation", "rows_of_frechet", "row_of_replicates", "row_of_ssim"),
    "page": ("benchmark_page", "rows_of_page"),
    "one_pass": ("benchmark_one_pass", "rows_of_one_pass"),
    "sets": ("benchmark_sets", "rows_of_sets"),
    "precision": ("benchmark_precision", "rows_of_precision"),
    "syncs": ("benchmark_syncs", "rows_of_syncs"),
    "scale": ("benchmark_scale", "rows_of_scale"),
    "soak": ("benchmark_soak", "rows_of_soak"),
    "gpu": ("benchmark_gpu", "rows_of_gpu"),
    "versions": ("benchmark_versions", "rows_of_versions"),
}


def rows_of_module(module: str, functions: Sequence[str], table: Table) -> None:
    """The rows that functions of a module make."""
    for name in functions:
        getattr(importlib.import_module(module), name)(table)


def main() -> None:
    """Measure and print."""
    import torch

    parts: dict[str, Callable[[Table], None]] = {
        "runs": rows_of_runs,
        "memory": rows_of_memory,
        "invariance": rows_of_invariance,
        "editing": rows_of_editing,
        "sd": rows_of_sd,
        "tradeoff": row_of_tradeoff,
    }
    parts |= {part: partial(rows_of_module, module, names) for part, (module, *names) in IN_MODULES.items()}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*parts, []], help="default: all")
    title = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    table = Table("what", "measured", "promised", title=title)
    for name in parser.parse_args().names or parts:
        parts[name](table)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
