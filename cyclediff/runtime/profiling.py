"""Where the time of a run goes: stages on one screen, and a trace of a few evaluations for a browser's viewer."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import profiler

EVALUATIONS = 8  # of networks, in the trace
PASSED_OVER = 3  # before them: the first ones allocate and compile
OPERATORS = 8  # shown


class Profile:
    """Measures stages by the clock, each to its end on the device, and records a few evaluations of networks.

    Args:
        trace: where the trace goes; the viewers chrome://tracing and Perfetto open it.
        device: where the networks are.
    """

    def __init__(self, trace: Path, device: torch.device):
        self.seconds: dict[str, float] = defaultdict(float)
        self._trace, self._device = trace, device
        self._began = 0.0
        activities = [profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(profiler.ProfilerActivity.CUDA)
        self._profiler = profiler.profile(
            activities=activities,
            schedule=profiler.schedule(wait=PASSED_OVER, warmup=1, active=EVALUATIONS, repeat=1),
            on_trace_ready=self._save,
        )
        self._operators: list[tuple[str, float]] = []
        self._evaluations = 0

    def __enter__(self) -> "Profile":
        self._profiler.start()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds["all"] = time.perf_counter() - self._began
        self._profiler.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside, and work that it leaves to the device."""
        began = time.perf_counter()
        with profiler.record_function(name):
            yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[name] += time.perf_counter() - began

    def evaluated(self) -> None:
        """A network was evaluated."""
        began = time.perf_counter()
        self._evaluations += 1
        self._profiler.step()  # saves the trace when it is complete
        self.seconds["the profile itself"] += time.perf_counter() - began

    def show(self, name: str, images: int) -> None:
        """Print stages and operators."""
        stages = dict(self.seconds)
        whole = stages.pop("all")
        title = f"{name}: {images} images in {whole:.1f} s on {self._device}"
        table = Table("stage", "seconds", "share", title=title, title_justify="left", box=box.SIMPLE_HEAD)
        stages["the method's arithmetic, noise, rest"] = whole - sum(stages.values())
        for stage, seconds in sorted(stages.items(), key=lambda entry: -entry[1]):
            table.add_row(stage, f"{seconds:.2f}", f"{seconds / whole:.1%}")
        Console(markup=False, emoji=False).print(table)
        if not self._recorded:
            return print(f"no trace: it begins after {PASSED_OVER + 1} evaluations of networks and takes {EVALUATIONS}")
        total = sum(seconds for _, seconds in self._operators)
        table = Table("operator in networks", "share", box=box.SIMPLE_HEAD)
        for operator, seconds in self._operators[:OPERATORS]:
            table.add_row(operator.removeprefix("aten::"), f"{seconds / total:.1%}")
        Console(markup=False, emoji=False).print(table)
        print(f"trace of {self._recorded} evaluations, for chrome://tracing or Perfetto: {self._trace}")

    @property
    def _recorded(self) -> int:
        """Evaluations in the trace."""
        return min(max(self._evaluations - PASSED_OVER - 1, 0), EVALUATIONS)

    def _save(self, finished: profiler.profile) -> None:
        if not self._recorded:
            return
        finished.export_chrome_trace(str(self._trace))
        on_device = self._device.type == "cuda"
        events = [
            (event.key, (event.self_device_time_total if on_device else event.self_cpu_time_total) / 1e6)
            for event in finished.key_averages()
            if event.key.startswith("aten::")  # neither stages nor kernels
        ]
        self._operators = sorted(events, key=lambda event: -event[1])
