"""One pass over the images of an evaluation: every file is decoded once, and all scores come from that."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.edits import Edit
from eval.metrics.editing import background_columns, background_scores, text_columns, text_scores
from eval.metrics.emu_edit import emu_columns, emu_scores
from eval.metrics.features import file_digest
from eval.metrics.lpips import LPIPS
from eval.metrics.metric import Metric
from eval.metrics.pairwise import GROUND_TRUTH_PSNR, L2, PSNR, SSIM, l2, psnr, ssim
from eval.metrics.pets import (
    ATTRIBUTE_ERROR,
    EDIT_ERROR,
    KEPT_ERROR,
    PetsJudge,
    attribute_error,
    edit_error,
    kept_error,
    load_pets_judge,
    observe,
)
from eval.metrics.pictures import Folders, Triple, read_triples
from eval.metrics.pie_bench import OFFICIAL, pie_columns, pie_scores
from eval.protocols import Protocol


@dataclass(frozen=True)
class Measured:
    """What one pass found.

    Args:
        stems: images that have values, in order.
        values: float64 (n,) for each metric that is a mean over images; NaN where an image has none.
        features: of the results, (n, d), by the name of their network; see `Protocol.extractors`.
        unreadable: images that could not be decoded.
    """

    stems: list[str]
    values: dict[str, Tensor]
    features: dict[str, Tensor]
    unreadable: list[str]


def columns(edits: Sequence[Edit], truth: bool, protocol: Protocol) -> dict[str, tuple[Metric, str]]:
    """Metrics that are means over images, in the order of a table, each with its protocol string.

    Args:
        edits: of the images; none in unpaired translation.
        truth: whether the true results are known.
        protocol: how to score.
    """
    prepared = f"-{protocol.shape}" if protocol.shape else f"{protocol.size or ''}/{protocol.resize}"
    faithful = f"png{prepared}/per-image-mean"
    if protocol.emu_edit:
        return emu_columns(protocol.emu_edit, protocol.clip, faithful)
    if not _is_plain(protocol):
        return pie_columns(protocol.pie, edits, protocol.clip, faithful) if protocol.pie else {}
    found = {
        "psnr": (PSNR, f"psnr/{faithful}/vs-source"),
        "ssim": (SSIM, f"ssim/gauss11-1.5-valid/{faithful}/vs-source"),
        "l2": (L2, f"l2/{faithful}/vs-source"),
    }
    if protocol.lpips:
        found["lpips"] = LPIPS, f"{protocol.lpips.protocol}/{faithful}/vs-source"
    if truth:
        found["ground_truth_psnr"] = GROUND_TRUTH_PSNR, f"psnr/{faithful}/vs-ground-truth"
    judged = f"attribute-error/pets-judge-{file_digest(protocol.judge)}/per-image-mean" if protocol.judge else ""
    if judged and not (edits and truth):
        found["attribute_error"] = ATTRIBUTE_ERROR, f"{judged}/vs-source"
    if edits and protocol.clip:
        found |= text_columns(protocol.clip, faithful)
    if judged and edits and truth:
        found["edit_error"] = EDIT_ERROR, f"{judged}/edited-attribute/vs-ground-truth"
        found["kept_error"] = KEPT_ERROR, f"{judged}/other-attributes/vs-source"
    if protocol.pie:
        found |= pie_columns(protocol.pie, edits, protocol.clip, faithful)
    elif any(edit.mask for edit in edits) and not judged:
        found |= background_columns(faithful, protocol.lpips)
    if taken := found.keys() & protocol.own.keys():
        raise ValueError(f"protocol.own names {min(taken)}, which is a metric of this project; give yours another name")
    return found | {key: (one.column, one.full_protocol) for key, one in protocol.own.items()}


def _is_plain(protocol: Protocol) -> bool:
    """Whether whole images are compared with their sources, too, and not only by PIE-Bench's official rules."""
    return protocol.pie is None or protocol.pie.rules != (OFFICIAL,)


def measure(
    folders: Folders, stems: Sequence[str], edits: dict[str, Edit], protocol: Protocol, keys: Collection[str]
) -> Measured:
    """Score some results, in chunks.

    Args:
        folders: where images are.
        stems: which of them to score.
        edits: by stem, for editing.
        protocol: how to score.
        keys: of `columns` for all images, so that all processes have the same.

    Raises:
        ValueError: if sizes do not fit.
    """
    known, unreadable = [], []
    values = {key: torch.full((len(stems),), torch.nan, dtype=torch.float64) for key in keys}
    features: dict[str, Tensor] = {}  # of a network one block: many small ones would keep memory from shrinking
    judge = load_pets_judge(protocol.judge) if protocol.judge else None
    for triples, broken in read_triples(folders, stems, protocol.size, protocol.resize):
        unreadable += broken
        groups: dict[torch.Size, list[Triple]] = {}
        for triple in triples:  # without a size of the protocol, images can have several
            groups.setdefault(triple.image.shape, []).append(triple)
        for group in groups.values():
            rows = slice(len(known), len(known) + len(group))
            known += [triple.stem for triple in group]
            found = _scores(group, [edits[triple.stem] for triple in group if edits], protocol, judge)
            for key in values.keys() & found.keys():
                values[key][rows] = found[key]
            for name, extractor in protocol.extractors.items():
                seen = extractor([triple.picture for triple in group])
                block = features.setdefault(name, seen.new_empty(len(stems), seen.shape[1]))
                block[rows] = seen
    end = len(known)  # unreadable images have no row
    kept = {name: block[:end] for name, block in features.items()}
    return Measured(known, {key: v[:end] for key, v in values.items()}, kept, unreadable)


def joined(parts: Sequence[Measured]) -> Measured:
    """The results of several processes as one, with images in the order of their names."""
    stems = [stem for part in parts for stem in part.stems]
    order = torch.tensor(sorted(range(len(stems)), key=stems.__getitem__), dtype=torch.int64)
    values = {key: torch.cat([part.values[key] for part in parts])[order] for key in parts[0].values}
    names = dict.fromkeys(name for part in parts for name in part.features)
    features = {
        name: torch.cat([part.features[name] for part in parts if name in part.features])[order] for name in names
    }
    unreadable = sorted(stem for part in parts for stem in part.unreadable)
    return Measured([stems[i] for i in order], values, features, unreadable)


def _scores(
    group: Sequence[Triple], edits: Sequence[Edit], protocol: Protocol, judge: PetsJudge | None
) -> dict[str, Tensor]:
    """The values of all columns for some images of one size; float64 (n,) each."""
    images, sources = torch.stack([t.image for t in group]), torch.stack([t.source for t in group])
    truths = [t.truth for t in group if t.truth is not None]
    if protocol.emu_edit:
        return emu_scores(images, sources, edits, protocol.emu_edit, protocol.clip)
    pie = pie_scores(images, sources, edits, protocol.pie, protocol.clip) if protocol.pie and edits else {}
    if not _is_plain(protocol):
        return pie
    values = pie | {"psnr": psnr(images, sources), "ssim": ssim(images, sources), "l2": l2(images, sources)}
    if truths:
        values["ground_truth_psnr"] = psnr(images, torch.stack(truths))
    if judge is not None:
        seen, kept = observe(judge, images)[1], observe(judge, sources)[1]
        if edits and truths:
            categories = [edit.category for edit in edits]
            values["edit_error"] = edit_error(seen, observe(judge, torch.stack(truths))[1], categories)
            values["kept_error"] = kept_error(seen, kept, categories)
        else:
            values["attribute_error"] = attribute_error(seen, kept)
    if edits and protocol.clip:
        values |= text_scores(images, sources, edits, protocol.clip)
    if protocol.lpips:
        values["lpips"] = protocol.lpips(images, sources)
    if edits and not protocol.judge and not protocol.pie:
        values |= background_scores(images, sources, edits, protocol.lpips)
    return values | {key: one.values(images, sources) for key, one in protocol.own.items()}
