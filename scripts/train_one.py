"""One network of pets in training: AdamW and a moving average, by cyclediff/runtime/training.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cyclediff.runtime.rates import half_cosine
from cyclediff.runtime.training import Training, train

CHECKPOINTS = Path("~/.cache/cyclediff/training").expanduser()  # not in the clone: a training takes hours on a CPU


def train_one(
    name: str, network: nn.Module, loss: Callable[[int], Tensor], steps: int, lr: float, generator: torch.Generator
) -> tuple[Any, dict[str, Any]]:
    """Train a network; a training that was stopped continues from its checkpoint to the same weights.

    Args:
        name: of the checkpoint's folder.
        network: trained in place.
        loss: of the batch of a step, from its number.
        steps: of the optimiser.
        lr: the highest learning rate, of a short warm-up and half a cosine.
        generator: what `loss` draws from.

    Returns:
        The averaged network, and what its card says of the training.
    """

    def step(number: int, update: Callable[[str, Tensor], None]) -> dict[str, Tensor]:
        value = loss(number)
        update("network", value)
        return {"loss": value.detach()}

    how = Training(
        networks={"network": network},
        optimizers={"network": torch.optim.AdamW(network.parameters(), lr, weight_decay=0.01, fused=True)},
        step=step,
        steps=steps,
        settings={"seed": generator.initial_seed()},
        generators={"draws": generator},
        rate=half_cosine(steps),
        averages={"network": 0.999},
        clip=1.0,
    )
    trained = train(how, CHECKPOINTS / f"pets_{name}", name)
    record = {"steps": steps, "loss": round(trained.history[-1]["loss"], 5), "seconds": round(trained.seconds)}
    return trained.networks["network"], record
