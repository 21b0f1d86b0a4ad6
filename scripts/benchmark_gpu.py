"""What the project promises on a CUDA device: the paper's networks, random, against the published codes' forms.

python scripts/benchmark_gpu.py --miniature    small networks on whatever is here, to see that it works

The official loop's form is one image at a time in float32 (as torch has it), encoded, then decoded; ours is that of a
run with batch_size=auto dtype=bfloat16 compile_mode=default. Both evaluate the same networks at the same timesteps.
"""

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmark_editing import sd_sized, tiny
from benchmark_networks import side_by_side
from make_random_checkpoints import NOT_SHAPES
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cyclediff.attention_layers import install
from cyclediff.cyclediffusion import CycleDiffusion, decode, encode
from cyclediff.diffusion.denoiser import LearnedVarianceDenoiser
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.models import adm
from cyclediff.models.inference import for_inference, sample_of
from cyclediff.models.text_to_image import TextModel, caller
from cyclediff.runtime.batch_size import find_batch_size

ARCH = Path(__file__).parents[1] / "conf" / "model" / "arch" / "adm256.yaml"
WORDS = ("pink", "blue", "green", "teal", "purple", "small", "big", "ginger")
ETA = 0.1
ALONE = 4  # images that the official loop's form makes, one at a time


def rows_of_gpu(table: Table) -> None:
    """All rows; a line where there is no CUDA device."""
    if torch.cuda.is_available():
        measure(table, "cuda", small=False)
    else:
        print("gpu: there is no CUDA device here, so nothing was measured")


@torch.no_grad()
def measure(table: Table, device: str, small: bool) -> None:
    """All rows, of the paper's networks or of small ones."""
    torch.manual_seed(0)
    table.add_row(f"on {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}", "", "")
    arch: Any = OmegaConf.to_container(OmegaConf.load(ARCH))
    shape = {key: value for key, value in arch.items() if key not in (*NOT_SHAPES, "_target_", "learn_sigma")}
    if small:
        shape |= {"image_size": 32, "model_channels": 32, "channel_mult": (1, 2), "attention_downsampling": (2,)}
        rows_of_translation(table, device, shape | {"num_head_channels": 32}, steps=3, most=4, matrix=256)
        row_of_editing(table, device, tiny(), side=16, steps=3)
    else:
        rows_of_translation(table, device, shape, steps=20, most=256, matrix=8192)
        row_of_editing(table, device, sd_sized(), side=64, steps=20)


def rows_of_translation(table: Table, device: str, shape: dict[str, Any], steps: int, most: int, matrix: int) -> None:
    """CycleDiffusion between two networks of one shape, and how well they use the device."""
    side = shape["image_size"]
    unet: Any = adm.build(**shape)
    unet.eval().requires_grad_(False).to(device)
    own = copy.deepcopy(unet)
    schedule = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
    levels = schedule.levels(steps)
    plain = LearnedVarianceDenoiser(lambda xt, t: unet(xt, t).sample, schedule)
    network = for_inference(own, sample_of, device, "bfloat16", "default")
    fast = LearnedVarianceDenoiser(network, schedule)
    method = CycleDiffusion(T=steps, T_es=steps, eta=ETA)

    def evaluate(images: int) -> None:
        fast(torch.zeros(images, 3, side, side, device=device), schedule.at(500))
        wait(device)

    batch = find_batch_size(evaluate, most)
    x0 = torch.rand(max(batch, ALONE), 3, side, side, device=device) * 2 - 1

    def alone(k: int) -> Tensor:
        code = encode(x0[k : k + 1], plain, levels, ETA, Noise(1, [str(k)], device=device))
        return decode(code, plain, levels, ETA)

    def theirs() -> Tensor:
        return torch.cat([alone(k) for k in range(ALONE)])

    def ours(denoiser: LearnedVarianceDenoiser = fast) -> Tensor:
        return method(x0[:batch], denoiser, denoiser, Noise(1, [str(k) for k in range(batch)], device=device))

    shown, ratio = rates((theirs, ALONE), (ours, batch), device)
    what = f"CycleDiffusion, ADM {side}×{side}, {steps} steps: batch {batch} in bf16, compiled, against 1 in float32"
    table.add_row(what, f"{shown}: {ratio:.1f} ×", "≥ 8 ×")
    pairs = zip(ours().clamp(-1, 1), theirs().clamp(-1, 1), strict=False)
    error = torch.stack([(a - b).square().mean() for a, b in pairs]).mean()
    table.add_row("  the images of both", f"{(-10 * torch.log10(error / 4)).item():.0f} dB from one another", "≥ 40 dB")
    table.add_row("  inside the networks", f"{share_inside(ours, fast, device):.1%} of the time", "≥ 95 %")
    with FlopCounterMode(display=False) as counter:
        plain(x0[:1], schedule.at(500))
    a, b = torch.randn(2, matrix, matrix, device=device, dtype=torch.bfloat16)
    best = side_by_side({"network": lambda: evaluate(batch), "product": lambda: (a @ b, wait(device))})
    achieved = counter.get_total_flops() * batch / best["network"] / 1e12
    product = 2 * matrix**3 / best["product"] / 1e12
    shown = f"{achieved:.3g} TFLOP/s, {achieved / product:.0%} of the product's {product:.3g}"
    table.add_row(f"  one evaluation, against a bf16 product of {matrix}³", shown, "")


def row_of_editing(table: Table, device: str, forms: tuple[Any, TextModel], side: int, steps: int) -> None:
    """Eight edits with different texts in one batch, against diffusers' pipeline, which takes one; both in bf16."""
    pipeline, model = forms
    pipeline.to(device, torch.bfloat16)
    own: Any = copy.deepcopy(pipeline.unet)
    install(own)
    network = caller(own, torch.bfloat16, torch.contiguous_format)
    encoder = replace(model.encoders[0], network=pipeline.text_encoder)
    model = replace(model, network=network, module=own, encoders=(encoder,))
    texts = [(f"a {word} cat", f"a {word} dog") for word in WORDS]
    count, x0 = len(texts), torch.randn(len(texts), 4, side, side, device=device)
    method = CycleDiffusion(T=steps, T_es=steps, eta=ETA, spacing="latent")

    def theirs() -> None:
        for k, (source, target) in enumerate(texts):
            pipeline(
                target, source, image=x0[k : k + 1], strength=1.0, num_inference_steps=steps, guidance_scale=3.0,
                eta=ETA, source_guidance_scale=1.0, generator=torch.Generator(device).manual_seed(k),
                output_type="latent",
            )  # fmt: skip

    def ours() -> None:
        source, target = (model.condition([pair[k] for pair in texts], (1.0, 3.0)[k]) for k in (0, 1))
        method(x0, source, target, Noise(1, [str(k) for k in range(count)], device=device))

    shown, ratio = rates((theirs, count), (ours, count), device)
    what = f"CycleDiffusionPipeline, {side}×{side} latents, {steps} steps, bf16: {count} edits in a batch"
    table.add_row(f"{what}, against {count} calls", f"{shown}: {ratio:.1f} ×", "≥ 3 ×")


def rates(theirs: tuple[Callable[[], Any], int], ours: tuple[Callable[[], Any], int], device: str) -> tuple[str, float]:
    """Images a second of two forms that take turns, for people, and their ratio; each with its number of images."""
    forms = {"ours": ours, "theirs": theirs}
    best = side_by_side({name: lambda form=form: (form(), wait(device)) for name, (form, _) in forms.items()})
    speeds = {name: count / best[name] for name, (_, count) in forms.items()}
    return f"{speeds['ours']:.3g} images/s against {speeds['theirs']:.3g}", speeds["ours"] / speeds["theirs"]


def share_inside(translate: Callable[..., Tensor], denoiser: LearnedVarianceDenoiser, device: str) -> float:
    """Share of a translation's time between the beginnings and ends of evaluations, by the device's clock."""
    inside = []

    def network(xt: Tensor, t: Tensor) -> Tensor:
        began = moment(device)
        out = denoiser.network(xt, t)
        inside.append((began, moment(device)))
        return out

    began = moment(device)
    translate(replace(denoiser, network=network))
    ended = moment(device)
    wait(device)
    return sum(seconds(*pair) for pair in inside) / seconds(began, ended)


def moment(device: str) -> Any:
    """Now, in the device's order of work."""
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(began: Any, ended: Any) -> float:
    """Between two moments that are over."""
    return ended - began if isinstance(began, float) else began.elapsed_time(ended) / 1000


def wait(device: str) -> None:
    """Until the device has done all of its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--miniature", action="store_true", help="small networks, on the CPU if need be")
    table = Table("what", "measured", "promised")
    if parser.parse_args().miniature:
        measure(table, "cuda" if torch.cuda.is_available() else "cpu", small=True)
    else:
        rows_of_gpu(table)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
