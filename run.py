"""One run is one cell of a table: translate the sources with one method, score what was saved, refresh the table.

`python run.py` runs the embedded experiment; `python run.py --help` lists what can be set.
"""

import contextlib
import os
import re
import resource
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cyclediff.cli import errors as cli
from cyclediff.cli import sweep
from cyclediff.data.assets import catalogue, fingerprint, locate
from cyclediff.data.edit_lists import read_prompts
from cyclediff.data.folders import Sources
from cyclediff.errors import UserError
from cyclediff.loggers import log as loggers
from cyclediff.runtime import distributed, stop
from cyclediff.runtime import record as results
from cyclediff.runtime.lock import claimed
from cyclediff.studies.cell import check, grid_of, identity, prepare, selection_record
from cyclediff.studies.requirements import editing_weights, unpaired_weights

CONFIG = str(results.ROOT / "conf")
ASSETS = catalogue(results.ROOT / "conf")
CHANGES = r"\+*(method\.|task\.|steps|timesteps|strength|selection|protocol\.|model@)"  # published settings
SHOWN: dict[Path, list[str]] = {}  # task folder → digests of the data that this process's cells ran on


@hydra.main(version_base=None, config_path=CONFIG, config_name="config")
def run_cell(cfg: DictConfig) -> None:
    """Make one cell; a mistake ends the program here, before Hydra can wrap it."""
    with cli.telling_mistakes(CONFIG):
        make_cell(cfg)


def make_cell(cfg: DictConfig) -> None:
    """Translate and score what is not yet done of one cell, and refresh its task's table.

    Of several processes each has a part of the images; the first decides what is to do, and writes all else.
    """
    distributed.start()
    check(cfg, CONFIG)
    logger: Any = OmegaConf.to_container(cfg.logger, resolve=True)
    loggers.check(logger["name"], logger)
    weights = editing_weights(cfg, ASSETS) if cfg.task.editing else unpaired_weights(cfg, ASSETS, CONFIG)
    task_folder = Path(cfg.paths.outputs) / cfg.task.name
    sources = distributed.after_first(lambda: prepare(cfg, task_folder / "data"))
    run = results.Run(task_folder, identity(cfg, sources), distributed.rank())
    record = distributed.from_first(lambda: record_of(cfg, sources, weights))
    if not distributed.from_first(lambda: run.is_finished(record, cfg.allow_code_change)):
        method = make_method(cfg, weights)
        with contextlib.ExitStack() as held:
            distributed.from_first(lambda: held.enter_context(claimed(run.path, record["command"])))
            fill(cfg, method, run, sources, weights, record)
    elif cfg.profile:
        warnings.warn(f"{run.path} is finished, so there is nothing to profile; take another seed", stacklevel=2)
    if distributed.is_first():
        show(cfg, run, task_folder, sources)


def fill(
    cfg: DictConfig,
    method: Any,
    run: results.Run,
    sources: Sources,
    weights: dict[str, Path],
    record: dict[str, Any],
) -> None:
    """Make the images and numbers of a run; a cell of a sweep that fails is noted, and the others go on."""
    work, begun = edit if cfg.task.editing else translate, []

    def start(**more: Any) -> None:
        distributed.from_first(lambda: run.start(OmegaConf.to_yaml(cfg, resolve=True), record | more))
        begun.append(True)

    try:
        costs = work(cfg, method, run, sources, weights, start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        scored = score(cfg, run, sources, weights)
        costs |= {"world_size": distributed.world(), "peak_memory_mib": round(max(distributed.gather(peak)))}
        if distributed.is_first():
            run.finish(scored, costs)
            if distributed.world() > 1:
                print(told_shares(costs["ranks"]))
    except (stop.Stopped, distributed.Lost):
        raise
    except Exception as error:
        if begun:
            with contextlib.suppress(UserError):  # where no file can be written, there is the sentence alone
                run.fail(error)
                if distributed.world() == 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
                    if not isinstance(error, UserError):
                        traceback.print_exc()
                    return
        raise


def record_of(cfg: DictConfig, sources: Sources, weights: dict[str, Path]) -> dict[str, Any]:
    """Where the numbers of a cell come from, for run.json."""
    overrides = HydraConfig.get().overrides.task
    record = results.provenance() | {
        "embedded": cfg.task.embedded,
        "checkpoints": {name: fingerprint(path, ASSETS) for name, path in weights.items()},
        "data": sources.record(),
        "command": shlex.join(["python", "run.py", *overrides]),
        "published_settings": not any(re.match(CHANGES, o) for o in overrides),
    }
    if cfg.task.editing:
        record |= {"tier": cfg.tier, "selection": selection_record(cfg)}
    return record


def show(cfg: DictConfig, run: results.Run, task_folder: Path, sources: Sources) -> None:
    """Refresh the task's table, and show the run to the chosen logger."""
    logger: Any = OmegaConf.to_container(cfg.logger, resolve=True)
    results.write_json(OmegaConf.to_container(cfg.paper), task_folder / "paper.json")
    results.write_json(OmegaConf.to_container(cfg.claims), task_folder / "claims.json")

    from eval.report.tables import write_tables

    write_tables(task_folder)
    loggers.log(run.path, logger)
    SHOWN.setdefault(task_folder, []).append(sources.source.digest)


def told_shares(ranks: list[dict[str, Any]]) -> str:
    """How evenly several processes had the work, in a line."""
    seconds = [rank["seconds"] for rank in ranks]
    slowest, mean = max(seconds, default=0), sum(seconds) / max(len(seconds), 1)
    uneven = f", slowest/mean {slowest / mean:.2f}" if mean else ""
    return f"{len(ranks)} processes made {sum(rank['images'] for rank in ranks)} images in {slowest:.1f} s{uneven}"


def make_method(cfg: DictConfig, weights: dict[str, Path]) -> Any:
    """The method with its settings checked and its own network loaded."""
    from cyclediff.runtime.execution import pick_device

    settings: Any = OmegaConf.to_container(cfg.method, resolve=True)
    settings.pop("models")
    method = hydra.utils.get_class(settings.pop("_target_"))
    if settings.get("attention"):
        from cyclediff.attention_control import AttentionControl

        settings["attention"] = cli.build(AttentionControl, settings["attention"])
    if "extractor" in weights:
        settings["extractor"] = hydra.utils.instantiate(
            cfg.task.extractor, path=str(weights["extractor"]), device=str(pick_device(cfg.device))
        )
    return cli.build(method, settings)


def translate(
    cfg: DictConfig,
    method: Any,
    run: results.Run,
    sources: Sources,
    weights: dict[str, Path],
    start: Callable[..., None],
) -> dict[str, Any]:
    """Translate the sources; returns what it cost, and where."""
    from cyclediff.models.checkpoint import carries_mark
    from cyclediff.runtime.batches import evaluate, sample, summarise, translate
    from cyclediff.runtime.execution import forms, note_smaller, pick_device, setup_of
    from cyclediff.runtime.precision import insist_on_bound

    device, images = pick_device(cfg.device), sources.source
    nodes = {side: cfg.task[f"{side}_model"] for side in ("source", "target") if side in weights}
    models = {
        side: hydra.utils.instantiate(node, path=str(weights[side]), device=str(device)) for side, node in nodes.items()
    }
    once = partial(evaluate, models.values(), cfg.protocol.size, device)
    setup, noted = setup_of(cfg, run, nodes, once, len(images.ids)), {}
    form = forms(nodes.values())
    if form and run.missing(images.ids):
        both = partial(sample, method, models, images, setup)
        noted["psnr_to_float32"] = distributed.from_first(lambda: insist_on_bound(cfg.method.name, form, both))
    start(batch_size=setup.batch_size, **noted)
    note_smaller(cfg, setup, nodes, translate(method, models, images, run, setup))
    random = [part for part, path in weights.items() if part != "features" and carries_mark(path)]
    return {"random_weights": random, "device": str(device), **summarise(run, len(images.ids))}


def edit(
    cfg: DictConfig,
    method: Any,
    run: results.Run,
    sources: Sources,
    weights: dict[str, Path],
    start: Callable[..., None],
) -> dict[str, Any]:
    """Edit the sources as their texts say; returns what it cost, and where."""
    from cyclediff.models.checkpoint import carries_mark
    from cyclediff.models.load_text import load_text_to_image
    from cyclediff.runtime.batches import summarise
    from cyclediff.runtime.execution import forms, note_smaller, pick_device, setup_of
    from cyclediff.runtime.precision import insist_on_bound
    from cyclediff.studies.candidates import count_rows
    from cyclediff.studies.edit import Selection, edit_images, evaluate, sample, seconds_per_row
    from eval.metrics.candidates import candidate_scores

    device, images, nodes = pick_device(cfg.device), sources.source, {"model": cfg.task.model}
    model = hydra.utils.instantiate(cfg.task.model, path=str(weights["model"]), device=str(device))
    grid, shared, texts = grid_of(cfg), bool(cfg.selection.shared_path), read_prompts(images)
    with cli.values_are_mistakes():  # also for one candidate: CLIP's weights are missed before the slow part
        scorer = hydra.utils.instantiate(cfg.protocol.clip, path=clip_path(cfg, weights), device=str(device))
    selection = Selection(grid, cfg.selection.metric, candidate_scores(scorer, images.path, device), shared)
    count = len(grid.candidates())
    once = partial(evaluate, model, device=device)  # three rows a candidate: source, target, empty prompt
    setup = setup_of(cfg, run, nodes, lambda n: once(rows=3 * n), len(images.ids) * count)
    rows = count_rows(method, grid, setup.batch_size, shared)

    def ask() -> None:
        missing, per_row = len(run.missing(images.ids)), partial(seconds_per_row, model, device=device)
        hours = missing and missing * rows * per_row(min(rows, 3 * setup.batch_size)) / distributed.world() / 3600
        time = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
        about = f"{count} candidate{'s' * (count > 1)}, {rows} network rows an image, {missing} images to do"
        print(f"{cfg.method.name}: {about}: about {time} on this {device.type}")
        if hours > cfg.confirm_above and not cfg.confirm:
            raise UserError(
                f"{cfg.method.name} would take about {hours:.1f} hours, more than confirm_above={cfg.confirm_above}; "
                "start it with confirm=true, or choose a smaller tier (tier=quick, tier=single)"
            )

    distributed.from_first(ask)
    noted, form = {}, forms(nodes.values())
    if form and run.missing(images.ids):

        def both(exactly: bool) -> Any:
            one = load_text_to_image.__wrapped__(str(weights["model"]), device=str(device)) if exactly else model
            return sample(method, one, images, texts, selection, setup)

        noted["psnr_to_float32"] = distributed.from_first(lambda: insist_on_bound(cfg.method.name, form, both))
    start(batch_size=setup.batch_size, **noted)
    note_smaller(cfg, setup, nodes, edit_images(method, model, images, texts, selection, run, setup))
    if distributed.is_first():
        run.write_candidates()
    random = ["model"] if carries_mark(weights["model"]) else []
    costs = summarise(run, len(images.ids)) | {"network_rows_per_image": rows}
    return {"random_weights": random, "device": str(device), **costs}


def clip_path(cfg: DictConfig, weights: dict[str, Path]) -> str:
    """A local file or folder of CLIP, or the name that open_clip knows."""
    return str(weights["clip"]) if weights["clip"].exists() else cfg.protocol.clip.path


def score(cfg: DictConfig, run: results.Run, sources: Sources, weights: dict[str, Path]) -> results.Scored:
    """Metrics, a row per image, and what intervals of differences need, of the saved PNGs."""
    from cyclediff.runtime.execution import pick_device
    from eval.evaluate import evaluate
    from eval.protocols import Protocol

    node, device = cfg.protocol, str(pick_device(cfg.device))
    reference, counterpart = sources.reference, sources.counterpart
    with cli.values_are_mistakes():
        features = clip = lpips = None
        if reference and "features" in weights:
            features = hydra.utils.instantiate(node.features, path=str(weights["features"]), device=device)
        if node.clip:
            clip = hydra.utils.instantiate(node.clip, path=clip_path(cfg, weights), device=device)
        if node.lpips and locate(node.lpips.path).is_file():
            lpips = hydra.utils.instantiate(node.lpips, path=str(locate(node.lpips.path)), device=device)
        judge = node.judge and results.ROOT / node.judge
        protocol = Protocol(
            node.name, node.size, node.resize, features, reference.name if reference else "", judge, clip,
            node.reference_resize, node.infinity, lpips,
        )  # fmt: skip
        scores = evaluate(
            run.images,
            sources.source.path,
            reference and reference.path,
            counterpart and counterpart.path,
            protocol,
            Path(cfg.paths.cache).expanduser(),
        )
    if scores.unreadable:
        raise UserError(
            f"{len(scores.unreadable)} images of {run.images} cannot be read ({scores.unreadable[0]}.png, …); delete "
            "them, and the same command makes them again"
        )
    metrics, candidates = scores.metrics, run.candidates()
    seconds = {i: batch["seconds"] / len(batch["ids"]) for batch in run.batches() for i in batch["ids"]}
    for key, entry in metrics.items():
        found = [row[key] for row in candidates if key in row]
        if found:
            entry["unselected"] = sum(found) / len(found)
    settings = ("trial", "source_guidance", "skip", "guidance")
    chosen = {row["id"]: {key: row[key] for key in settings} for row in candidates if row["chosen"]}
    rows = [{"id": i, **scores.rows[i], **chosen.get(i, {}), "seconds": seconds.get(i, "")} for i in sources.source.ids]
    return results.Scored(metrics, rows, scores.replicates)


def main() -> None:
    """Do what the command line asks for, and print the tables that it changed and the cells that failed."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors reach us instead of its printer
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # what torch's profiler has to say is no concern of a user
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    if not distributed.is_first():
        warnings.simplefilter("ignore")  # the first process has the same
    began, since, lost = time.time(), results.now(), False
    with cli.telling_mistakes(CONFIG):
        if sys.argv[1:2] == ["doctor"]:
            from cyclediff.cli.doctor import main as doctor

            return doctor(CONFIG, sys.argv[2:])
        stop.listen()
        try:
            run_cell()
        except Exception as error:
            if not type(error).__module__.startswith("submitit"):
                raise
            lost = True
        shown: dict[Path, Any] = SHOWN or dict.fromkeys(
            sweep.changed_tasks(began)
        )  # jobs of a cluster have shown nothing
        if distributed.is_first():
            from eval.report.tables import print_tables

            for task_folder, digests in shown.items():
                print_tables(task_folder, digests)
        failed = sweep.failed_cells(shown, since)
        if lost:
            failed.append((f"a job ended without a result; its log is in {sweep.OUTPUTS[-1]}/.hydra/.submitit", False))
        if failed:
            lines = "\nerror: ".join(line for line, _ in failed)
            cli.fail(lines, code=2 if all(mistake for _, mistake in failed) else 1)


if __name__ == "__main__":
    main()
