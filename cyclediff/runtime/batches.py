"""The loop that every study shares: batches in order, read ahead, written behind, resumed."""

import time
import warnings
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch

from cyclediff.errors import UserError
from cyclediff.runtime import distributed, stop
from cyclediff.runtime.async_io import Writer, ahead
from cyclediff.runtime.batch_size import is_out_of_memory, no_room, release_memory
from cyclediff.runtime.meter import Meter
from cyclediff.runtime.profiling import Profile
from cyclediff.runtime.progress import ItemProgress
from cyclediff.runtime.record import Run
from cyclediff.runtime.study import Execution, Study


@torch.no_grad()
def make_all(
    name: str,
    study: Study,
    ids: Sequence[str],
    parts: int,
    run: Run,
    execution: Execution,
    kinds: Mapping[str, Hashable] | None = None,
) -> int:
    """Make this process's share of the batches that are not complete on disk, and log what each cost.

    Batches are cut from the whole list, so a resumed run, and one in more processes, computes the same batches. The
    next batch is read, and the last one is written, while the networks work. Where memory runs out, a batch is made
    again in pieces of half the size.

    Args:
        name: what is running, for people.
        study: what is made of a batch.
        ids: all items of the run.
        parts: results of each item, which count in the size of a batch.
        run: where results and costs go.
        execution: how.
        kinds: by id what the items of one batch must have in common; None: all are alike.

    Returns:
        The batch size that memory held.

    Raises:
        UserError: if a result cannot be written, or memory is not enough for one item.
        Stopped: if a process was asked to stop, when all have finished the batch in hand.
    """
    size, alike = execution.batch_size, dict[Hashable, list[str]]()
    for item in ids:
        alike.setdefault(kinds.get(item) if kinds else None, []).append(item)
    batches = [batch for group in alike.values() for batch in _cut(group, size, parts)]

    def to_do() -> tuple[list[Sequence[str]], float]:
        missing = set(run.missing(ids))
        return [batch for batch in batches if not missing.isdisjoint(batch)], time.time()

    todo, start = distributed.from_first(to_do)
    mine = todo[distributed.rank() :: distributed.world()]
    _warn_of_idle(todo)
    done, made = len(ids) - sum(map(len, todo)), distributed.SharedCount(f"{run.path.name} {start}")
    profile = Profile(execution.trace, execution.device) if execution.trace and mine else None
    with ItemProgress(name, len(ids), distributed.is_first()) as progress, stop.after_the_batch():
        progress.show_done(done)
        with ThreadPoolExecutor(1) as reader, Writer() as writer, profile or nullcontext():
            read = ahead(mine, study.read, reader)
            for batch in mine:
                if distributed.stopping():
                    break
                began, meters = time.perf_counter(), [Meter(batch, progress.step, profile)]
                with meters[0].stage("waiting for inputs to be read"):
                    _, inputs = next(read)
                results, size = _within_memory(study, batch, inputs, size, parts, execution, meters)
                with meters[0].stage("waiting for results to be written"):
                    _write(run, batch, results, writer)
                run.log_batch(
                    batch,
                    seconds=time.perf_counter() - began,
                    network_seconds=sum(m.seconds for m in meters) if execution.device.type == "cpu" else None,
                    forwards=sum(m.forwards for m in meters),
                    backwards=sum(m.backwards for m in meters),
                    rank=distributed.rank(),
                    world=distributed.world(),
                    start=start,
                )
                progress.finish_batch(len(batch))
                progress.show_done(done + made.add(len(batch)))
        distributed.wait_for_all()
        done += made.add(0)
        progress.show_done(done)
        if any(distributed.gather(stop.requested())):
            raise stop.Stopped(f"stopped after {done} of {len(ids)} images; the same command continues from there")
    if profile and distributed.is_first():
        profile.show(name, sum(map(len, mine)))
    return size


def _write(run: Run, batch: Sequence[str], results: Sequence[Mapping[str, Any]], writer: Writer) -> None:
    """Artifacts in the study's order; the last kind, which says that an item is done, in the writer's thread."""
    *first, last = run.artifacts
    for item, contents in zip(batch, results, strict=True):
        for kind in first:
            run.artifacts[kind].write(run.path, item, contents[kind], run.rank)
    writer.write([(run.artifacts[last], run.path, i, r[last], run.rank) for i, r in zip(batch, results, strict=True)])


def _warn_of_idle(todo: Sequence[Sequence[str]]) -> None:
    idle = distributed.world() - len(todo)
    if todo and idle > 0:
        each = max(1, sum(map(len, todo)) // distributed.world())
        warnings.warn(
            f"{distributed.world()} processes share {len(todo)} batches, so {idle} have nothing to do; "
            f"batch_size={each} would give each some",
            stacklevel=3,
        )


def _within_memory(
    study: Study, ids: Sequence[str], inputs: Any, size: int, parts: int, execution: Execution, meters: list[Meter]
) -> tuple[list[Mapping[str, Any]], int]:
    """Results of a batch, in pieces where memory runs out, and the size that it held; each piece has a meter."""
    results: list[Mapping[str, Any]] = []
    while len(results) < len(ids):
        first = len(results)
        part = _cut(ids[first:], size, parts)[0]
        meters.append(meters[0].again(part))
        try:
            piece = None if inputs is None else inputs[first : first + len(part)]
            results += _made(study, part, piece, size, execution, meters[-1])
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise no_room() from error
        meters.pop()
        size //= 2
        warnings.warn(f"memory was not enough for a batch, so its size is {size} from now on", stacklevel=2)
        release_memory()  # after the handler, whose traceback holds what did not fit
    return results, size


def _made(
    study: Study, ids: Sequence[str], inputs: Any, size: int, execution: Execution, meter: Meter
) -> Sequence[Mapping[str, Any]]:
    try:
        made = study.make(ids, inputs, size, execution, meter)
    except (UserError, ValueError):
        meter.require_finite()  # where a network gave NaN, that is the reason
        raise
    meter.require_finite()
    return made


def _cut(ids: Sequence[str], size: int, parts: int) -> list[Sequence[str]]:
    items = max(1, size // parts)
    return [ids[first : first + items] for first in range(0, len(ids), items)]


def costs(run: Run, n: int) -> dict[str, Any]:
    """What a run cost, over all its batches, also those of earlier starts that were cut off.

    Args:
        run: whose batches are logged.
        n: number of its items.

    Returns:
        `costs`: for each image forwards and backwards (evaluations of all networks, guidance networks included) and
        seconds of one process; images_per_second of all processes together, each start as long as its slowest process;
        network_share of the time, None where it is not measured. `ranks`: seconds and images of each process in the
        last start that made images.
    """
    batches = run.batches()
    images = sum(len(batch["ids"]) for batch in batches) or n
    seconds = sum(batch["seconds"] for batch in batches)
    inside = [batch["network_seconds"] for batch in batches]
    starts: dict[float, list[dict[str, Any]]] = {}
    for batch in batches:
        nothing = [{"seconds": 0.0, "images": 0} for _ in range(batch["world"])]
        share = starts.setdefault(batch["start"], nothing)[batch["rank"]]
        share["seconds"] += batch["seconds"]
        share["images"] += len(batch["ids"])
    elapsed = sum(max(rank["seconds"] for rank in ranks) for ranks in starts.values())
    return {
        "costs": {
            "forwards_per_image": sum(batch["forwards"] for batch in batches) / images,
            "backwards_per_image": sum(batch["backwards"] for batch in batches) / images,
            "seconds_per_image": seconds / images,
            "images_per_second": images / elapsed if elapsed else None,
            "network_share": sum(inside) / seconds if seconds and None not in inside else None,
        },
        "ranks": starts[max(starts)] if starts else [],
    }
