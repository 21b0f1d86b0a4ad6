"""One run from start to end: make what is missing of its artifacts, then what is missing of its numbers."""

import contextlib
import resource
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cyclediff.errors import TrainingFailed, UserError
from cyclediff.runtime import distributed
from cyclediff.runtime.lock import claimed
from cyclediff.runtime.record import Run, ScoreFolder, provenance
from cyclediff.runtime.study import Items, Study


def complete(
    cfg: DictConfig, study: Study, task_folder: Path, about: Mapping[str, Any], keep_going: bool, place: str = ""
) -> tuple[Run, ScoreFolder, Items]:
    """Complete a run: its artifacts, and its numbers under the protocol of the configuration.

    Of several processes each makes a part of the artifacts; the first decides what is to do, and writes all else.

    Args:
        cfg: of the run.
        study: what is made.
        task_folder: where the task's runs are.
        about: what run.json says besides; `command` is the command line.
        keep_going: whether a run that fails is noted in its folder instead of ending the program.
        place: which of several it is, for people; printed when its settings and data are known to be right.
    """
    items = distributed.after_first(study.items)
    if place and distributed.is_first():
        print(f"{place}{cfg.method.name}", flush=True)
    identity, score_identity = distributed.from_first(lambda: (study.identity(), study.score_identity()))
    run = Run(task_folder, identity, study.artifacts, distributed.rank())
    scores = ScoreFolder(run.path, score_identity)

    def state() -> tuple[dict[str, Any], bool, bool]:
        record = provenance(cfg.method._target_) | {
            "study": cfg.study.name,
            "task": cfg.task.name,
            "method": cfg.method.name,
            "seed": cfg.seed,
            "synthetic": cfg.task.synthetic,
            "data": items.record,
            **study.record(),
            **about,
        }
        made = run.is_finished(items.ids, record, cfg.allow_code_change)
        return record, made, made and scores.is_finished(record["code"])

    record, made, scored = distributed.from_first(state)
    if made and cfg.profile:
        warnings.warn(f"{run.path} is finished, so there is nothing to profile; take another seed", stacklevel=2)
    if not scored:
        with contextlib.ExitStack() as held:
            distributed.from_first(lambda: held.enter_context(claimed(run.path, record["command"])))
            begun: list[bool] = []
            done = made or _attempt(
                lambda: _make(cfg, study, run, items, record, begun), run.fail, keep_going, lambda: bool(begun)
            )
            if done:
                _attempt(
                    lambda: _score(cfg, study, run, scores, record),
                    lambda error: run.note_scoring(scores.path.name, error),
                    keep_going,
                )
    return run, scores, items


def _attempt(
    work: Callable[[], None],
    note: Callable[[Exception], None],
    keep_going: bool,
    notable: Callable[[], bool] = lambda: True,
) -> bool:
    """Work that may fail. Returns whether it succeeded.

    Args:
        work: the work.
        note: keeps the reason of a failure in the run's folder.
        keep_going: whether a failure that is noted is enough; otherwise it is raised, too.
        notable: whether a failure is one of this run; another one, such as a wrong setting, is raised.
    """
    try:
        work()
        return True
    except Exception as error:
        if notable() and not distributed.is_lost(error):
            with contextlib.suppress(UserError):  # where no file can be written, there is the sentence alone
                note(error)
                if keep_going:
                    if not isinstance(error, UserError):
                        traceback.print_exc()
                    return False
        raise


def _make(cfg: DictConfig, study: Study, run: Run, items: Items, record: Mapping[str, Any], begun: list[bool]) -> None:
    from cyclediff.runtime.batches import costs, make_all
    from cyclediff.runtime.execution import execution_of, pick_device, remember_smaller

    device = pick_device(cfg.device)
    study.load(device)
    execution = execution_of(cfg, run, study, device, len(items.ids) * study.parts)
    missing = distributed.from_first(lambda: len(run.missing(items.ids)))

    def start(notes: Mapping[str, Any]) -> None:
        about = {**record, "batch_size": execution.batch_size, "device": str(device), **notes}
        distributed.from_first(lambda: run.start(OmegaConf.to_yaml(cfg, resolve=True), about))
        begun.append(True)

    try:
        start(study.begin(execution, missing))
    except TrainingFailed:
        start({})  # so that the failure is noted: hours went before it
        raise
    held = make_all(cfg.method.name, study, items.ids, study.parts, run, execution, items.kinds)
    remember_smaller(cfg, study, execution, held)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    peaks = distributed.gather(peak)
    if distributed.is_first():
        found = costs(run, len(items.ids))
        run.finish(found | {"world_size": distributed.world(), "peak_memory_mib": round(max(peaks))})
        if distributed.world() > 1:
            print(format_shares(found["ranks"]))
    distributed.wait_for_all()  # what `finish` reads is in its final form


def _score(cfg: DictConfig, study: Study, run: Run, scores: ScoreFolder, record: Mapping[str, Any]) -> None:
    from cyclediff.runtime.execution import pick_device

    scored = study.finish(run.path, run.batches(), pick_device(cfg.device))
    if distributed.is_first():
        scores.write(scored, record["code"])
        run.note_scoring(scores.path.name, None)


def format_shares(ranks: list[dict[str, Any]]) -> str:
    """How evenly several processes had the work, in a line."""
    seconds = [rank["seconds"] for rank in ranks]
    slowest, mean = max(seconds, default=0), sum(seconds) / max(len(seconds), 1)
    uneven = f", slowest/mean {slowest / mean:.2f}" if mean else ""
    return f"{len(ranks)} processes made {sum(rank['images'] for rank in ranks)} images in {slowest:.1f} s{uneven}"
