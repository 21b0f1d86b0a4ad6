"""What a step of DiffuseIT costs beside the sum of its parts, on the networks of pets: a part of `make bench`."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor

from baselines.diffuseit import DiffuseIT, Last, look, moved
from cyclediff.diffusion.clip_views import Clip, embed
from cyclediff.diffusion.guide import guide_of
from cyclediff.diffusion.noise import Noise
from cyclediff.pets import networks
from cyclediff.pets.render import render, sample_factors
from cyclediff.pets.vit import load_pets_vit
from cyclediff.studies.clip_towers import load_towers

WEIGHTS = Path(networks.__file__).parent / "weights"
COUNT, CUTS, ROUNDS = 8, 8, 15
PIXELS = networks.SIZE
Mode = Literal["text", "image"]
MODES: tuple[Mode, ...] = ("text", "image")
OFFICIAL = {  # DiffuseIT@8386b9a, model_vit/loss_vit.py, in a step with all of its losses
    "text": "2 of the source, and 1 of the last step's image",
    "image": "2 of the source, 1 of the target image, and 1 of the last step's image",
}


def interleaved(forms: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each form in each round; the forms take turns, so that a busy moment hits all of them."""
    for form in forms.values():
        form()
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, form in forms.items():
            began = time.perf_counter()
            form()
            found[name].append(time.perf_counter() - began)
    return found


def backward(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Evaluate a function, and take the gradient of its sum with respect to x."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(function(leaf).sum(), leaf)


def counted_vit(vit: Any, counts: Counter[str]) -> Any:
    """The same, with the images that it sees counted."""

    def network(prepared: Tensor) -> Tensor:
        counts["vit"] += len(prepared)
        return vit.network(prepared)

    return replace(vit, network=network)


def counted_clip(clip: Any, counts: Counter[str]) -> Any:
    """The same, with the views that it sees counted."""

    def network(views: Tensor) -> Tensor:
        counts["clip"] += len(views)
        return clip.network(views)

    return replace(clip, network=network)


def method(guided_by: Mode, vit: Any, clips: Sequence[Clip]) -> DiffuseIT:
    """With all of its losses in every step, and without restarts."""
    return DiffuseIT(
        guided_by, "50", 30, vit, clips if guided_by == "text" else (), diff_iter=0, cuts=CUTS, resample=1,
        range_restart=False, variance="small",
    )  # fmt: skip


def given(guided_by: str) -> dict[str, Any]:
    """A text, or a target image, for each of the images."""
    if guided_by == "text":
        return {"texts": [("a white cat on a blue ground", "a brown dog on a green ground")] * COUNT}
    return {"targets": render(sample_factors(COUNT, torch.Generator().manual_seed(2)), "dog")}


def row_of_time(table: Table, guided_by: Mode) -> None:
    """A step beside its parts, and both as multiples of one evaluation of the UNet with its gradient."""
    denoiser = networks.load(str(WEIGHTS / "dog.safetensors")).condition()
    vit, clips = load_pets_vit(str(WEIGHTS / "vit.safetensors")), load_towers(str(WEIGHTS / "clip"))
    how, more, noise = method(guided_by, vit, clips), given(guided_by), Noise(1, [str(i) for i in range(COUNT)])
    x0 = render(sample_factors(COUNT, torch.Generator().manual_seed(1)), "cat")
    texts = None if "texts" not in more else [embed(clip, more["texts"]) for clip in clips]
    guide = guide_of(x0, vit, how.clip, texts, more.get("targets"))
    last = Last(guide.cls, x0.new_zeros(COUNT) if guide.agreed is None else guide.agreed)
    t, s = denoiser.schedule.levels("50", "respaced")[25:27]

    def step() -> None:
        n = noise.randn_like(x0)
        moved(x0, look(x0, denoiser, t, s, 24, guide, last, how, noise), t, s, n, False)

    views = torch.rand(COUNT * CUTS, 3, clips[0].size, clips[0].size)
    parts: dict[str, Callable[[], Any]] = {
        "UNet": lambda: backward(lambda x: denoiser(x, t).x0, x0),
        "ViT": lambda: backward(lambda x: vit.network(vit.prepare(x)), x0),
    }
    if guided_by == "text":
        parts["CLIP"] = lambda: backward(clips[0].images, views)
    seconds = interleaved({"step": step, **parts})
    unit = median(seconds["UNet"])
    whole = median(seconds["step"]) / unit
    sum_of_parts = sum(median(seconds[part]) for part in parts) / unit
    ratio = median(
        one / sum(others) for one, *others in zip(seconds["step"], *(seconds[part] for part in parts), strict=True)
    )
    shown = ", ".join(f"{part} {median(seconds[part]) / unit:.2f}" for part in parts)
    what = f"DiffuseIT guided by {guided_by}, {COUNT} pets: a step in evaluations of the UNet with gradient"
    table.add_row(what, f"{whole:.2f}, its parts {sum_of_parts:.2f} ({shown})", "")
    table.add_row("  a step beside the sum of its parts", f"{ratio:.2f} ×", "≤ 1.15 ×")


def row_of_counts(table: Table, guided_by: Mode) -> None:
    """How often the ViT and CLIP see what is fixed: what is left when a longer run is compared with a shorter one."""
    denoiser = networks.load(str(WEIGHTS / "dog.safetensors")).condition()
    vit, clips = load_pets_vit(str(WEIGHTS / "vit.safetensors")), load_towers(str(WEIGHTS / "clip"))
    found = []
    for t0 in (3, 6):
        counts: Counter[str] = Counter()
        how = method(guided_by, counted_vit(vit, counts), [counted_clip(clip, counts) for clip in clips])
        x0, more = torch.zeros(1, 3, PIXELS, PIXELS), {key: value[:1] for key, value in given(guided_by).items()}
        replace(how, t0=t0)(x0, None, denoiser, Noise(1, ["a"]), **more)
        found.append(counts)
    steps = 3
    a_step = {name: (found[1][name] - found[0][name]) / steps for name in ("vit", "clip")}
    own = {"vit": 1, "clip": CUTS if guided_by == "text" else 0}  # of the step's own image
    fixed = {name: a_step[name] - own[name] for name in own}
    shown = f"ViT {fixed['vit']:.0f}, CLIP {fixed['clip']:.0f}"
    table.add_row(
        f"DiffuseIT guided by {guided_by}: evaluations of fixed images in a step", shown,
        f"0 (official code: ViT {OFFICIAL[guided_by]})",
    )  # fmt: skip


@torch.no_grad()
def rows_of_diffuseit(table: Table) -> None:
    """Time of a step beside its parts, and evaluations of what is fixed."""
    for guided_by in MODES:
        row_of_time(table, guided_by)
        row_of_counts(table, guided_by)


if __name__ == "__main__":
    from rich.console import Console

    rows = Table("what", "measured", "promised")
    rows_of_diffuseit(rows)
    Console(width=130).print(rows)
