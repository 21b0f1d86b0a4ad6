"""One network of pets in training: AdamW and a moving average, by cyclediff/runtime/training.py."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cyclediff.runtime.rates import half_cosine
from cyclediff.runtime.training import Training, train

CHECKPOINTS = Path("~/.cache/cyclediff/training").expanduser()  # not in the clone: a training takes hours on a CPU


def train_one(
    name: str,
    network: nn.Module,
    loss: Callable[[int], Tensor | tuple[Tensor, Tensor]],
    steps: int,
    lr: float,
    generator: torch.Generator,
    rate: Callable[[int], float] | None = None,
    average: float = 0.999,
) -> tuple[Any, dict[str, Any]]:
    """Train a network; a training that was stopped continues from its checkpoint to the same weights.

    Args:
        name: of the checkpoint's folder.
        network: trained in place, but for parameters that require no gradient.
        loss: of the batch of a step, from its number; where another number is to be shown, both.
        steps: of the optimiser.
        lr: the highest learning rate.
        generator: what `loss` draws from.
        rate: factor of the learning rate at a step; None: a short warm-up and half a cosine.
        average: decay of the moving average.

    Returns:
        The averaged network, and what its card says of the training.
    """

    def step(number: int, update: Callable[[str, Tensor], None]) -> dict[str, Tensor]:
        value = loss(number)
        value, shown = value if isinstance(value, tuple) else (value, value.detach())
        update("network", value)
        return {"loss": shown}

    parameters = [p for p in network.parameters() if p.requires_grad]
    how = Training(
        networks={"network": network},
        optimizers={"network": torch.optim.AdamW(parameters, lr, weight_decay=0.01, fused=True)},
        step=step,
        steps=steps,
        settings={"seed": generator.initial_seed()},
        generators={"draws": generator},
        rate=rate or half_cosine(steps),
        averages={"network": average},
        clip=1.0,
    )
    trained = train(how, CHECKPOINTS / f"pets_{name}", name)
    record = {"steps": steps, "loss": round(trained.history[-1]["loss"], 5), "seconds": round(trained.seconds)}
    return trained.networks["network"], record


def train_parts(about: str, parts: Mapping[str, Callable[[], None]]) -> None:
    """Parse the command line of a script with several trainings, and run those that it names."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*parts, []], help="default: all, in this order")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.names or parts:
        parts[name]()
