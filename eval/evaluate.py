"""From folders of images to numbers, each with its interval and its protocol.

python -m eval.evaluate --generated A --source B --reference C --protocol cyclediffusion
"""

import argparse
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from eval import ranks, terminal
from eval.edits import EDITS, Edit, read_edits
from eval.files import list_images, write_atomically
from eval.metrics.categories import to_csv
from eval.metrics.clip import ClipScorer
from eval.metrics.distances import distances, reference_features
from eval.metrics.editing import warn_without_direction, without_direction
from eval.metrics.features import file_digest
from eval.metrics.measure import columns, joined, measure
from eval.metrics.pictures import Pairing, pair, spelled_like
from eval.metrics.pie_bench import warn_of_whole_masks
from eval.metrics.sets import SETS, of_own
from eval.metrics.statistics import interval, mean_replicates, resamples
from eval.protocols import RECIPES, Protocol, load_protocol
from eval.records import SCHEMA, MetricRecord, ScoresRecord, write_scores

RESAMPLES = 1000
FEW = 2048  # images below which FID's bias is large
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Args:
        metrics: by key, as metrics.json has them (`eval.records.MetricRecord`).
        rows: per image id its own values, None where it has none.
        replicates: of each metric with an interval, its values on resamples of the images: on 1000, or for FID and KID
            on the first 200 of these.
        pairing: which images were paired, and which not.
        unreadable: images that could not be decoded, and are not part of the numbers.
        random_weights: the networks behind the numbers that are untrained.
    """

    metrics: dict[str, MetricRecord]
    rows: dict[str, dict[str, float | None]]
    replicates: dict[str, list[float]]
    pairing: Pairing
    unreadable: list[str]
    random_weights: list[str]


def evaluate(
    generated: Path,
    source: Path,
    reference: Path | None,
    ground_truth: Path | None,
    protocol: Protocol,
    cache: Path | None = None,
) -> Scores:
    """Score a folder of translations or edits; images are paired by stem. Under torchrun, every process has a part.

    Args:
        generated: the results, PNGs.
        source: what they were made from, and for edits their texts (edits.csv).
        reference: images of the target domain, or an .npz of clean-fid or pytorch-fid, for FID and KID.
        ground_truth: the true results, where there are such.
        protocol: how to score.
        cache: folder for features of the reference.

    Raises:
        ValueError: if there is nothing to score, files do not fit together, or features are not finite.
    """
    if protocol.clip:  # kept features of texts come from other batches, and their last digits depend on that
        protocol = replace(protocol, clip=replace(protocol.clip, known={}))
    folders, pairing = pair(generated, source, ground_truth)
    edits = spelled_like(read_edits(source), folders.source)
    without = [stem for stem in pairing.stems if stem not in edits]
    if edits and without:
        raise ValueError(f"{source / EDITS} has no line for {len(without)} images ({without[0]}, …); add them")
    if protocol.emu_edit and not edits:
        raise ValueError(f"{protocol.name} scores edits by their captions, and {source} has no {EDITS}; add it")
    if edits and protocol.clip:
        _read_texts({stem: edits[stem] for stem in pairing.stems}, protocol.clip)
    wanted = columns([edits[stem] for stem in pairing.stems if edits], ground_truth is not None, protocol)
    targets: dict[str, Any] = {}
    if reference is not None:  # before the slow part: it may be missing
        networks = protocol.extractors
        targets = {name: reference_features(reference, protocol, networks[name], cache) for name in networks}
    part = measure(folders, pairing.stems[ranks.rank() :: ranks.world()], edits, protocol, wanted)
    found = joined(ranks.gather(part))
    if not found.stems:
        raise ValueError(f"none of the {len(found.unreadable)} images of {generated} can be read; make them again")
    of_sets = {}, {}
    if ranks.rank() == 0 and targets and found.features:
        of_sets = distances(found.features, targets, protocol)
    metrics, replicates = ranks.from_first(of_sets)
    counts = resamples(len(found.stems), RESAMPLES)
    for key, (metric, text) in wanted.items():
        mean, resampled = _mean(found.values[key], counts)
        metrics[key] = metric.entry(text, **mean)
        if resampled:
            replicates[key] = resampled
    if protocol.pie and ranks.rank() == 0:
        scored = found.values.get("background_psnr", found.values.get("official_psnr"))
        if scored is not None:
            warn_of_whole_masks(edits, dict(zip(found.stems, scored.tolist(), strict=True)))
    known = {key: [None if x != x else x for x in value.tolist()] for key, value in found.values.items()}  # x != x: NaN
    rows = {stem: {key: value[i] for key, value in known.items()} for i, stem in enumerate(found.stems)}
    return Scores(metrics, rows, replicates, pairing, found.unreadable, _random_networks(protocol, metrics))


def _read_texts(edits: dict[str, Edit], clip: ClipScorer) -> None:
    """Encode all texts together, so that each has the same features in all processes; warn of what CLIP cannot read."""
    clip.texts([text for edit in edits.values() for text in (edit.source, edit.target)])
    if ranks.rank() == 0:
        clip.warn_of_cut(text for edit in edits.values() for text in (edit.source, edit.target))
        same = without_direction(edits, clip)
        none = len(same) == len(edits)
        what_follows = "so there is no mean of it" if none else "they are left out of its mean"
        warn_without_direction(same, len(edits), what_follows)


def _mean(values: Tensor, counts: Tensor) -> tuple[dict[str, Any], list[float]]:
    """Mean, interval and number of the images that have a value, and the mean's replicates."""
    known = values[~values.isnan()]
    if not len(known):
        return {"value": None, "ci95": None, "n": 0, "n_reference": None}, []
    mean, replicates = known.mean().item(), mean_replicates(values, counts)
    about = {"value": mean, "ci95": interval(mean, replicates), "n": len(known), "n_reference": None}
    return about, replicates.tolist()


def _random_networks(protocol: Protocol, metrics: Collection[str]) -> list[str]:
    """The untrained networks behind these metrics."""
    networks: dict[str, Any] = {"features": protocol.features if set(of_own()) & set(metrics) else None}
    networks |= {**protocol.set_features, "CLIP": protocol.clip, "LPIPS": protocol.lpips, "DINO": protocol.emu_edit}
    if protocol.pie:
        networks |= {"structure": protocol.pie.structure, "LPIPS": protocol.pie.lpips or protocol.pie.official_lpips}
    return [name for name, network in networks.items() if network is not None and network.random]


def save_scores(scores: Scores, protocol: Protocol, folder: Path, edits: Mapping[str, Edit] | None = None) -> None:
    """Write metrics.json, per_image.csv and bootstrap.csv; what was not paired or read is in metrics.json, too.

    Where edits are given and have kinds, per_category.csv has the means of each kind.
    """
    pairing = {"missing": scores.pairing.missing, "extra": scores.pairing.extra, "unreadable": scores.unreadable}
    record: ScoresRecord = {
        "schema": SCHEMA,
        "protocol": protocol.name,
        "identity": {},
        "metrics": scores.metrics,
        "random_weights": scores.random_weights,
        "reference": None,
        "pairing": pairing,
    }
    write_scores(folder, record, [{"id": stem, **values} for stem, values in scores.rows.items()], scores.replicates)
    if edits and any(edit.category for edit in edits.values()):
        write_atomically(to_csv(scores.rows, edits).encode(), folder / "per_category.csv")


def main(arguments: Sequence[str] | None = None) -> None:
    """Score folders as the command line says; print a table, and write files if asked."""
    terminal.adapt_output()
    parser = argparse.ArgumentParser("python -m eval.evaluate", description=__doc__)
    parser.add_argument("--generated", type=Path, required=True, help="folder of results, PNGs")
    parser.add_argument("--source", type=Path, required=True, help="folder of what they were made from, by equal stems")
    parser.add_argument(
        "--reference", type=Path, help="folder of images of the target domain, or an .npz of statistics"
    )
    parser.add_argument("--ground-truth", type=Path, help="folder of the true results")
    parser.add_argument("--protocol", required=True, choices=RECIPES)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="folder of Inception's file")
    parser.add_argument("--weights", type=Path, help="the features' file, if not there under its published name")
    parser.add_argument("--clip", help="file, folder or hub id of CLIP")
    parser.add_argument(
        "--clip-model", help="open_clip's name of the architecture of --clip FILE: ViT-B-32-quickgelu, …"
    )
    parser.add_argument("--sets", nargs="+", choices=list(SETS), help="metrics of sets; default: fid kid")
    parser.add_argument("--cmmd-clip", default="openai", help="file, folder or hub id of CMMD's CLIP ViT-L/14@336")
    parser.add_argument("--kid-subset", type=int, help="images in each of 100 subsets, for KID by subsets, too")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/cyclediff"), help="of reference features")
    parser.add_argument("--output", type=Path, help="folder for metrics.json, per_image.csv and others")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    ranks.start()
    if ranks.rank():
        warnings.simplefilter("ignore")  # the first process has the same
    try:
        if options.ground_truth and not options.ground_truth.is_dir():
            raise ValueError(f"{options.ground_truth} is not a folder; give the folder of the true results")
        protocol = load_protocol(
            options.protocol, options.reference and _name(options.reference), options.checkpoints, options.device,
            options.weights, options.clip, options.clip_model, options.sets, options.cmmd_clip,
        )  # fmt: skip
        protocol = replace(protocol, kid_subset=options.kid_subset)
        folders = options.generated, options.source, options.reference, options.ground_truth
        scores = evaluate(*folders, protocol, options.cache.expanduser())
        if ranks.rank() == 0 and options.output:
            edits = spelled_like(read_edits(options.source), scores.rows)
            save_scores(scores, protocol, options.output, edits)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    if ranks.rank() == 0:
        _print(scores, protocol, options.generated)


def _name(reference: Path) -> str:
    """What a reference is called in protocol strings: its name, and a file's digest or a folder's number of images."""
    if reference.is_file():
        return f"{reference.name}-{file_digest(reference)}"
    return f"{reference.resolve().name}-{len(list_images(reference))}-images"


def _print(scores: Scores, protocol: Protocol, generated: Path) -> None:
    console = terminal.console()
    table = Table(title=f"{generated}: {len(scores.rows)} images, protocol {protocol.name}", box=box.SIMPLE_HEAD)
    table.title_justify = "left"
    for header in ("metric", "value", "95 % interval", "images"):
        table.add_column(header, justify="left" if header == "metric" else "right")
    table.add_column("protocol", overflow="fold")
    for key, entry in scores.metrics.items():
        arrow = {True: "↑", False: "↓", None: ""}[entry["higher_is_better"]]
        shown = "–" if entry["value"] is None else f"{entry['value']:.5g}"
        span = f"{entry['ci95'][0]:.5g} … {entry['ci95'][1]:.5g}" if entry["ci95"] else "–"
        table.add_row(f"{key} {arrow}", shown, span, str(entry["n"]), entry["protocol"])
    console.print(table)
    lists = {
        "without a result": scores.pairing.missing,
        "results without a source": scores.pairing.extra,
        "unreadable": scores.unreadable,
    }
    for what, stems in lists.items():
        if stems:
            more = ", …" if len(stems) > SHOWN else ""
            console.print(f"{len(stems)} {what}: {', '.join(stems[:SHOWN])}{more}", highlight=False, markup=False)
    if "fid" in scores.metrics and len(scores.rows) < FEW:
        header = scores.metrics["fid"]["header"]
        console.print(f"{header} from {len(scores.rows)} images is biased upwards; compare it at this number only.")
    if scores.random_weights:
        names = ", ".join(scores.random_weights)
        console.print(f"RANDOM WEIGHTS ({names}): these numbers show that the program runs, nothing else.")
    if protocol.judge:
        console.print("Pets, a synthetic benchmark: not comparable with any paper's numbers.")


if __name__ == "__main__":
    main()
