"""One trainer: optimisers, moving averages, checkpoints, and a stopped training that continues to the same weights."""

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.optim.swa_utils import AveragedModel

from cyclediff.errors import TrainingFailed
from cyclediff.runtime import checkpoints, distributed, stop
from cyclediff.runtime.gradients import average_gradients, share_weights
from cyclediff.runtime.rates import moving_average
from eval.files import remove_leftovers, write_atomically

Update = Callable[[str, Tensor], None]  # (optimiser, loss): minimise a scalar by the optimiser of that name, now
CHECKPOINT, HISTORY = "checkpoint.pt", "history.json"
ADVICE = "so try a smaller learning rate"


@dataclass(frozen=True, eq=False)
class Training:
    """What is trained, and how.

    Args:
        networks: trained in place. Their state dicts are everything that a checkpoint keeps of the method.
        optimizers: each with some of the networks' parameters.
        step: (its number from 0, update) → losses to show. It draws from `generators` only.
        steps: how many.
        settings: what else decides the weights, as JSON could hold it: data, seed, weights of losses.
        generators: what `step` draws from. Several processes need different seeds, as each draws its own batch.
        rate: factor of all learning rates at a step.
        averages: decay of the moving average of some networks.
        clip: largest norm of an optimiser's gradient; None for any.
        checkpoint_every: steps between checkpoints.
        row_every: steps between rows of the history.
        sample: (steps made, copies of the networks in eval mode, averaged where they are) → None. All processes call
            it, with equal networks, and the first should write. It must not draw from `generators`.
        sample_every: steps between calls of `sample`; it is also called after the last step.
    """

    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    step: Callable[[int, Update], Mapping[str, Tensor | float]]
    steps: int
    settings: Mapping[str, Any]
    generators: Mapping[str, torch.Generator] = field(default_factory=dict)
    rate: Callable[[int], float] = lambda step: 1.0
    averages: Mapping[str, float] = field(default_factory=dict)
    clip: float | None = None
    checkpoint_every: int = 250
    row_every: int = 50
    sample: Callable[[int, Mapping[str, nn.Module]], None] | None = None
    sample_every: int = 1000


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training gave.

    Args:
        networks: their averages where there are some.
        history: rows with step, rate, seconds, and the mean of each loss since the last row.
        seconds: of training, over all starts.
    """

    networks: Mapping[str, nn.Module]
    history: Sequence[Mapping[str, float]]
    seconds: float


def train(training: Training, folder: Path, name: str) -> Trained:
    """Train, from the checkpoint in `folder` if there is one; see `cyclediff.runtime.gradients` for several processes.

    Args:
        training: what and how.
        folder: of checkpoint.pt and history.json, which are written whole or not at all.
        name: for the progress bar.

    Raises:
        UserError: if the checkpoint belongs to other settings or is damaged, or there is no room for one.
        TrainingFailed: if a loss or a weight is not finite, or a checkpoint cannot be written.
        Stopped: if the program was asked to stop; a checkpoint of the step in hand is kept.
    """
    return _Trainer(training, folder, name).run()


class _Trainer:
    def __init__(self, training: Training, folder: Path, name: str):
        self.how, self.folder, self.name, self.file = training, folder, name, folder / CHECKPOINT
        decays = {key: moving_average(decay) for key, decay in training.averages.items()}
        self.averages = {key: AveragedModel(training.networks[key], multi_avg_fn=f) for key, f in decays.items()}
        self.base = {key: [group["lr"] for group in one.param_groups] for key, one in training.optimizers.items()}
        self.settings = checkpoints.whole_settings(training)
        self.step, self.saved, self.seconds = 0, 0, 0.0
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.stopping, self.shown = False, ""

    def run(self) -> Trained:
        distributed.after_first(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        remove_leftovers(self.folder)
        checkpoints.require_room(self.folder, self._state()["parts"])
        share_weights(self.how.networks.values())
        if self.file.is_file():
            facts = checkpoints.read(self._state(), self.file)
            self.step = self.saved = facts["step"]
            self.seconds, self.history, self.sums = facts["seconds"], facts["history"], facts["sums"]
        how, times = self.how, (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        columns = "{task.description}", *times, "{task.fields[losses]}"
        with Progress(*columns, disable=not distributed.is_first()) as bar, stop.after_the_batch():
            task = bar.add_task(self.name, total=how.steps, completed=self.step, losses="")
            while self.step < how.steps and not self.stopping:
                self._one_step()
                last = self.step == how.steps
                if self.step % how.row_every == 0 or last:
                    self._row()
                bar.update(task, completed=self.step, losses=self.shown)
                if how.sample and (self.step % how.sample_every == 0 or last):
                    self._sample(how.sample)
                if self.step % how.checkpoint_every == 0 or last or self.stopping:
                    self._save()
            if self.stopping:
                raise stop.Stopped(f"stopped after {self.step} of {how.steps} steps; the same command continues there")
        return Trained(self._networks(), self.history, self.seconds)

    def _one_step(self) -> None:
        began, rate = time.perf_counter(), self.how.rate(self.step)
        for key, one in self.how.optimizers.items():
            for group, base in zip(one.param_groups, self.base[key], strict=True):
                group["lr"] = base * rate
        with torch.enable_grad():
            losses = self.how.step(self.step, self._update)
        for key, average in self.averages.items():
            average.update_parameters(self.how.networks[key])
        self.step += 1
        for key, value in losses.items():
            self.sums[key] = self.sums.get(key, 0.0) + float(value)
        self.seconds += time.perf_counter() - began

    def _update(self, which: str, loss: Tensor) -> None:
        optimizer = self.how.optimizers[which]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        failed, asked = average_gradients(parameters, [not loss.isfinite().item(), stop.requested()])
        self.stopping = self.stopping or asked
        if failed:
            at = f"at step {self.step + 1} {self._kept()}"
            raise TrainingFailed(f"the loss of the {which} is NaN or Inf {at}, {ADVICE}")
        if self.how.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.how.clip)
        optimizer.step()

    def _row(self) -> None:
        since = self.step - (int(self.history[-1]["step"]) if self.history else 0)
        row = {"step": self.step, "rate": self.how.rate(self.step - 1), "seconds": round(self.seconds, 3)}
        means = {key: total / since for key, total in self.sums.items()}
        self.history.append(row | means)
        self.sums, self.shown = {}, " ".join(f"{key} {value:.4g}" for key, value in means.items())

    @torch.no_grad()
    def _sample(self, sample: Callable[[int, Mapping[str, nn.Module]], None]) -> None:
        copies = {key: copy.deepcopy(network).eval() for key, network in self._networks().items()}
        with torch.random.fork_rng():
            sample(self.step, copies)

    def _networks(self) -> dict[str, nn.Module]:
        return {key: self.averages[key].module if key in self.averages else n for key, n in self.how.networks.items()}

    def _save(self) -> None:
        """Write a checkpoint, unless weights are not finite: the loss has not shown that yet."""
        if not all(p.isfinite().all() for network in self.how.networks.values() for p in network.parameters()):
            raise TrainingFailed(f"a weight is NaN or Inf after step {self.step} {self._kept()}, {ADVICE}")
        facts = {"step": self.step, "seconds": self.seconds, "history": self.history, "sums": self.sums}
        try:
            if distributed.is_first():
                write_atomically((json.dumps(self.history) + "\n").encode(), self.folder / HISTORY)
            checkpoints.write(self._state() | facts, self.file)
        except OSError as error:
            raise TrainingFailed(
                f"{self.folder} cannot hold a checkpoint ({error.strerror}) of step {self.step} {self._kept()}, "
                "so make room and start the same command again"
            ) from error
        self.saved = self.step

    def _state(self) -> dict[str, Any]:
        parts = {"networks": self.how.networks, "averages": self.averages, "optimizers": self.how.optimizers}
        return {"parts": parts, "generators": self.how.generators, "settings": self.settings}

    def _kept(self) -> str:
        kept = f"the checkpoint of step {self.saved} is kept" if self.saved else "no checkpoint was written before"
        return f"of {self.how.steps}; {kept}"
