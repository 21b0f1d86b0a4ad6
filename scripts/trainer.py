"""One trainer for the networks of pets: AdamW, a moving average, checkpoints, and going on where it was stopped."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cyclediff.runtime.rates import moving_average

CHECKPOINTS = Path("~/.cache/cyclediff/training").expanduser()  # not in the clone: a training takes days on a CPU
EVERY = 250  # steps between checkpoints


def optimise(
    name: str,
    net: nn.Module,
    loss: Callable[[], Tensor | tuple[Tensor, Tensor]],
    steps: int,
    groups: list[dict[str, Any]],
    generator: torch.Generator,
    rate: Callable[[int], float],
    decay: float = 0.999,
) -> tuple[Any, dict[str, Any]]:
    """Train a network; a training that was stopped continues from its checkpoint.

    Args:
        name: of the checkpoint.
        net: trained in place.
        loss: of one batch; what is minimised, and a second number where another one shall be shown.
        steps: of the optimiser.
        groups: parameter groups of AdamW.
        generator: what `loss` draws from.
        rate: factor of the learning rate at a step.
        decay: of the exponential moving average of the parameters.

    Returns:
        The averaged network, and what its card says of the training.

    Raises:
        SystemExit: if the checkpoint belongs to a training whose learning rate is another by now.
    """
    ema = AveragedModel(net, multi_avg_fn=moving_average(decay))
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    parts = {"net": net, "ema": ema, "optimizer": optimizer, "scheduler": scheduler}
    checkpoint = CHECKPOINTS / f"pets_{name}.pt"
    start, seconds, average = 0, 0.0, float("nan")
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["rate"] != rate(saved["step"]):
            raise SystemExit(
                f"{checkpoint} belongs to a training of {saved['steps']} steps; delete it, or ask for as many steps"
            )
        for key, part in parts.items():
            part.load_state_dict(saved[key])
        generator.set_state(saved["generator"])
        start, seconds, average = saved["step"], saved["seconds"], saved["loss"]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.5f}")) as progress:
        bar = progress.add_task(name, total=steps, completed=start, loss=average)
        for step in range(start, steps):
            began = time.perf_counter()
            value = loss()
            value, shown = value if isinstance(value, tuple) else (value, value)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            ema.update_parameters(net)
            average = shown.item() if math.isnan(average) else 0.99 * average + 0.01 * shown.item()
            seconds += time.perf_counter() - began
            progress.update(bar, advance=1, loss=average)
            if (step + 1) % EVERY == 0:
                state = {key: part.state_dict() for key, part in parts.items()}
                state |= {"generator": generator.get_state(), "step": step + 1, "steps": steps}
                state |= {"rate": rate(step + 1), "seconds": seconds, "loss": average}
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, checkpoint.with_suffix(".tmp"))
                os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
    return ema.module, {"steps": steps, "loss": round(average, 5), "seconds": round(seconds)}
