"""From folders of images to numbers, each with its interval and the protocol it was made by.

python -m eval.evaluate --generated A --source B --reference C --protocol cyclediffusion
"""

import argparse
import csv
import io
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from eval import ranks
from eval.edits import EDITS, read_edits
from eval.files import write_atomically
from eval.metrics.distances import distances, reference_features
from eval.metrics.features import file_digest
from eval.metrics.measure import columns, joined, measure
from eval.metrics.pictures import Pairing, list_images, pair
from eval.metrics.statistics import interval, mean_replicates, resamples
from eval.protocols import RECIPES, Protocol, load_protocol

RESAMPLES = 1000
FEW = 2048  # images below which FID's bias is large
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Scores:
    """What an evaluation says.

    Args:
        metrics: per metric its value, 95 % interval, number of images that have it, direction and protocol string.
        rows: per image id its own values, None where it has none.
        replicates: of metrics that are no means over images: their values on the resamples of `resamples`.
        pairing: which images were paired, and which not.
        unreadable: images that could not be decoded, and are not part of the numbers.
    """

    metrics: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, float | None]]
    replicates: dict[str, list[float]]
    pairing: Pairing
    unreadable: list[str]


def evaluate(
    generated: Path,
    source: Path,
    reference: Path | None,
    counterpart: Path | None,
    protocol: Protocol,
    cache: Path | None = None,
) -> Scores:
    """Score a folder of translations or edits; images are paired by stem. Under torchrun, every process has a part.

    Args:
        generated: the results, PNGs.
        source: what they were made from, and for edits their texts (edits.csv).
        reference: images of the target domain, or an .npz of clean-fid or pytorch-fid, for FID and KID.
        counterpart: the true results, where there are such.
        protocol: how to score.
        cache: folder for features of the reference.

    Raises:
        ValueError: if there is nothing to score, files do not fit together, or features are not finite.
    """
    if protocol.clip:  # features of texts that it knows come from other batches, and their last digits depend on that
        protocol = replace(protocol, clip=replace(protocol.clip, known={}))
    folders, pairing = pair(generated, source, counterpart)
    edits = read_edits(source)
    without = [stem for stem in pairing.stems if stem not in edits]
    if edits and without:
        raise ValueError(f"{source / EDITS} has no line for {len(without)} images ({without[0]}, …); add them")
    wanted = columns([edits[stem] for stem in pairing.stems if edits], counterpart is not None, protocol)
    target = None
    if protocol.features is not None and reference is not None:  # before the slow part: it may be missed
        target = reference_features(reference, protocol, protocol.features, cache)
    part = measure(folders, pairing.stems[ranks.rank() :: ranks.world()], edits, protocol, wanted)
    found = joined(ranks.gather(part))
    if not found.stems:
        raise ValueError(f"none of the {len(found.unreadable)} images of {generated} can be read; make them again")
    of_sets = {}, {}
    if target is not None and found.features is not None:
        of_sets = distances(found.features, target, protocol)
    metrics, replicates = ranks.from_first(of_sets)
    counts = resamples(len(found.stems), RESAMPLES)
    for key, (higher, text) in wanted.items():
        metrics[key] = {
            **_mean(found.values[key], counts), "n_reference": None, "higher_is_better": higher, "protocol": text,
        }  # fmt: skip
    known = {key: [None if x != x else x for x in value.tolist()] for key, value in found.values.items()}  # x != x: NaN
    rows = {stem: {key: value[i] for key, value in known.items()} for i, stem in enumerate(found.stems)}
    return Scores(metrics, rows, replicates, pairing, found.unreadable)


def _mean(values: Tensor, counts: Tensor) -> dict[str, Any]:
    """Mean, interval and number of the images that have a value."""
    known = values[~values.isnan()]
    if not len(known):
        return {"value": None, "ci95": None, "n": 0}
    mean = known.mean().item()
    return {"value": mean, "ci95": interval(mean, mean_replicates(values, counts)), "n": len(known)}


def write_scores(scores: Scores, folder: Path) -> None:
    """Write per_image.csv, bootstrap.csv and metrics.json, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [[stem, *values.values()] for stem, values in scores.rows.items()]
    _write_csv(folder / "per_image.csv", ["id", *next(iter(scores.rows.values()))], lines)
    if scores.replicates:
        _write_csv(folder / "bootstrap.csv", [*scores.replicates], zip(*scores.replicates.values(), strict=True))
    pairing = {"missing": scores.pairing.missing, "extra": scores.pairing.extra, "unreadable": scores.unreadable}
    content = {"metrics": scores.metrics, "pairing": pairing}
    write_atomically((json.dumps(content, indent=2) + "\n").encode(), folder / "metrics.json")


def _write_csv(path: Path, fields: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([fields, *lines])
    write_atomically(text.getvalue().encode(), path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score folders as the command line says; print a table, and write files if asked."""
    parser = argparse.ArgumentParser("python -m eval.evaluate", description=__doc__)
    parser.add_argument("--generated", type=Path, required=True, help="folder of results, PNGs")
    parser.add_argument("--source", type=Path, required=True, help="folder of what they were made from, by equal stems")
    parser.add_argument(
        "--reference", type=Path, help="folder of images of the target domain, or an .npz of statistics"
    )
    parser.add_argument("--counterpart", type=Path, help="folder of the true results")
    parser.add_argument("--protocol", required=True, choices=RECIPES)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="folder of Inception's file")
    parser.add_argument("--weights", type=Path, help="the features' file, if not there under its published name")
    parser.add_argument("--clip", help="file, folder or hub id of CLIP")
    parser.add_argument("--kid-subset", type=int, help="images in each of 100 subsets, for KID by subsets, too")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/cyclediff"), help="of reference features")
    parser.add_argument("--output", type=Path, help="folder for metrics.json, per_image.csv and bootstrap.csv")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    ranks.start()
    try:
        if options.counterpart and not options.counterpart.is_dir():
            raise ValueError(f"{options.counterpart} is not a folder; give the folder of the true results")
        protocol = load_protocol(
            options.protocol, options.reference and _name(options.reference), options.checkpoints, options.device,
            options.weights, options.clip,
        )  # fmt: skip
        protocol = replace(protocol, kid_subset=options.kid_subset)
        folders = options.generated, options.source, options.reference, options.counterpart
        scores = evaluate(*folders, protocol, options.cache.expanduser())
        if ranks.rank() == 0 and options.output:
            write_scores(scores, options.output)
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
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    table = Table(title=f"{generated}: {len(scores.rows)} images, protocol {protocol.name}", box=box.SIMPLE_HEAD)
    table.title_justify = "left"
    for header in ("metric", "value", "95 % interval", "images"):
        table.add_column(header, justify="left" if header == "metric" else "right")
    table.add_column("protocol", overflow="fold")
    for key, entry in scores.metrics.items():
        arrow = "↑" if entry["higher_is_better"] else "↓"
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
        console.print(f"FID from {len(scores.rows)} images is biased upwards; compare it at this number only.")
    if any(network is not None and network.random for network in (protocol.features, protocol.clip, protocol.lpips)):
        console.print("RANDOM WEIGHTS: these numbers show that the program runs, nothing else.")
    if protocol.judge:
        console.print("Embedded world: not comparable with any paper's numbers.")


if __name__ == "__main__":
    main()
