"""Scores of a run's pictures under the protocol of the configuration."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from cyclediff.data.assets import fingerprint, locate
from cyclediff.data.fitting import PAD
from cyclediff.data.hub import commit_of
from cyclediff.errors import UserError
from cyclediff.runtime.identity import score_settings
from cyclediff.runtime.settings import user_errors
from cyclediff.runtime.study import Scored
from cyclediff.studies.context import Context, get_class, load_network
from cyclediff.studies.sources import Sources

if TYPE_CHECKING:
    from eval.metrics.own import OwnMetric
    from eval.protocols import Protocol

HUB, OPENAI = "hf-hub:", "openai"  # prefix and name by which a network is found that is no file here


def require_clip(node: Any, key: str) -> None:
    """Require that a CLIP can be found.

    Args:
        node: its configuration; None for no CLIP.
        key: its place in the configuration.

    Raises:
        UserError: if there is no such file, folder or name.
    """
    if node and not (locate(node.path).exists() or node.path == OPENAI or node.path.startswith(HUB)):
        raise UserError(
            f"{key}.path={node.path} is no file or folder here; give a file, a folder, {OPENAI}, or {HUB}ID"
        )


def clip_path(node: Any) -> str:
    """A local file or folder of CLIP, or the name that open_clip knows."""
    found = locate(node.path)
    return str(found) if found.exists() else node.path


def clip_fingerprint(node: Any, context: Context) -> str:
    """What identifies a CLIP's weights."""
    if locate(node.path).exists():
        return fingerprint(locate(node.path), context.assets, context.cache)
    if node.path.startswith(HUB):
        return f"{node.path}@{commit_of(node.path.removeprefix(HUB))}"
    return f"{node.path}:{node.get('model')}"


def is_same_clip(one: Any, other: Any, context: Context) -> bool:
    """Whether two nodes of the configuration are one CLIP: the same weights in the same architecture."""
    nodes = [node for node in (one, other) if node]
    known = [(clip_fingerprint(node, context), node.get("model")) for node in nodes]
    return len(known) == 2 and known[0] == known[1]


def score_identity(context: Context, sources: Sources) -> dict[str, Any]:
    """Everything that can change the numbers of a run's pictures, besides the pictures."""
    cfg = context.cfg
    found = {part: _fingerprint(path, context) for part, path in _files(cfg, sources).items()}
    found |= {part: clip_fingerprint(cfg.protocol[part], context) for part in _others(cfg, sources)}
    if cfg.protocol.clip:
        found["clip"] = clip_fingerprint(cfg.protocol.clip, context)
    found |= {f"own.{key}": one.full_protocol for key, one in own_metrics(cfg).items()}
    return score_settings(cfg) | {"weights": found, "data": sources.score_identity()}


def load_protocol(cfg: DictConfig, sources: Sources, device: str) -> "Protocol":
    """The protocol of the configuration with its networks loaded.

    Raises:
        UserError: if weights are missing or do not fit.
    """
    from eval.metrics.pie_bench import OFFICIAL, PieBench
    from eval.metrics.sets import networks_of
    from eval.protocols import Protocol

    node, files, reference = cfg.protocol, _files(cfg, sources), sources.reference
    sets = tuple(node.get("sets", ("fid", "kid")))

    def network(part: str, **settings: Any) -> Any:
        return load_network(node[part], path=str(files[part]), device=device, **settings) if part in files else None

    def pie() -> PieBench:
        if "structure" not in files:
            path = locate(node.structure.path)
            warnings.warn(f"the structure distance is left out, because {path} is not here", stacklevel=2)
        official = network("lpips", rule="torchmetrics") if OFFICIAL in node.rules else None
        return PieBench(tuple(node.rules), network("structure"), network("lpips"), official)

    with user_errors():
        networks_of(sets)
        clip = load_network(node.clip, path=clip_path(node.clip), device=device) if node.clip else None
        others = {p: load_network(node[p], path=clip_path(node[p]), device=device) for p in _others(cfg, sources)}
        found = Protocol(
            name=node.name,
            size=None if sources.shape else node.size,
            resize=node.resize,
            features=network("features"),
            reference=reference.name if reference else "",
            judge=files.get("judge"),
            clip=clip,
            reference_resize=node.reference_resize,
            infinity=node.infinity,
            lpips=network("lpips"),
            sets=sets,
            set_features={part: others[part] for part in others if part != "dino"},
            pie=pie() if node.get("rules") else None,
            emu_edit=others.get("dino"),
            own=own_metrics(cfg),
            shape=f"{sources.shape}/{node.resize}" if sources.fit == PAD else sources.shape,
        )
    require_sides(sources, found)
    return found


def require_sides(sources: Sources, protocol: "Protocol") -> None:
    """Require that images that keep their shape are large enough for every metric.

    Raises:
        UserError: if one is not.
    """
    from eval.metrics.pairwise import SSIM_WINDOW

    networks = [protocol.lpips, *((protocol.pie.lpips, protocol.pie.official_lpips) if protocol.pie else ())]
    least = max([SSIM_WINDOW, *(network.smallest for network in networks if network)])
    small = {item: shape for item, shape in sources.shapes.items() if min(shape) < least}
    if small:
        item, (height, width) = next(iter(small.items()))
        raise UserError(
            f"{len(small)} images have sides of less than {least} pixels under data.fit={sources.fit} ({item}: {width}×"
            f"{height}), too few for metrics of {protocol.name}; leave them out, or choose data.fit=crop"
        )


def own_metrics(cfg: DictConfig) -> "dict[str, OwnMetric]":
    """The metrics of `protocol.own`, from outside of this project.

    Raises:
        UserError: if one cannot be imported or is none.
    """
    from eval.metrics.own import OwnMetric

    found = {}
    for key, node in (cfg.protocol.get("own") or {}).items():
        one: Any = get_class(node._target_)
        found[key] = one() if callable(one) else one
        if not isinstance(found[key], OwnMetric):
            raise UserError(f"protocol.own.{key}._target_={node._target_} is no metric; it must give an OwnMetric")
    return found


def score_pictures(
    pictures: Path, sources: Sources, protocol: "Protocol", cache: Path, more: Mapping[str, Mapping[str, Any]]
) -> Scored:
    """The numbers of a run's pictures.

    Args:
        pictures: folder of the results.
        sources: what they were made from.
        protocol: how to score.
        cache: folder for features of the reference.
        more: by image id: what else its row has, such as seconds.

    Raises:
        UserError: if pictures cannot be read, or files do not fit together.
    """
    from eval.evaluate import evaluate

    reference, ground_truth = sources.reference, sources.ground_truth
    with user_errors():
        scores = evaluate(
            pictures,
            sources.source.path,
            reference and reference.path,
            ground_truth and ground_truth.path,
            protocol,
            cache,
        )
    if scores.unreadable:
        raise UserError(
            f"{len(scores.unreadable)} images of {pictures} cannot be read ({scores.unreadable[0]}.png, …); delete "
            "them, and the same command makes them again"
        )
    rows = [{"id": i, **scores.rows[i], **more.get(i, {})} for i in sources.source.ids]
    about = reference and {"name": reference.name, "digest": reference.digest}
    return Scored(scores.metrics, rows, scores.replicates, random_weights=scores.random_weights, reference=about)


def seconds_of(batches: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By image id: the seconds of one process that it took; empty where no batch says so."""
    known = {item: batch["seconds"] / len(batch["ids"]) for batch in batches for item in batch["ids"]}
    return {item: {"seconds": known.get(item, "")} for item in ids}


def _files(cfg: DictConfig, sources: Sources) -> dict[str, Path]:
    """The protocol's files of weights that are used, by their part."""
    node, found = cfg.protocol, {}
    if node.features and sources.reference and "features" in _networks_of_sets(cfg):
        found["features"] = locate(node.features.path)
    for part in ("lpips", "structure"):  # extras: left out where their files are not there
        if node.get(part) and locate(node[part].path).is_file():
            found[part] = locate(node[part].path)
    if node.judge:
        found["judge"] = locate(node.judge)
    return found


def _others(cfg: DictConfig, sources: Sources) -> list[str]:
    """The protocol's networks that are used and can also come from the hub, by their part."""
    of_sets = sorted(_networks_of_sets(cfg) - {"features"}) if sources.reference else []
    return of_sets + (["dino"] if cfg.protocol.get("dino") else [])


def _networks_of_sets(cfg: DictConfig) -> set[str]:
    """Those that the protocol's metrics of sets need; see `eval.metrics.sets.SETS`."""
    from eval.metrics.sets import SETS

    return {SETS[key][0] for key in cfg.protocol.get("sets", ("fid", "kid")) if key in SETS}


def _fingerprint(path: Path, context: Context) -> str:
    return fingerprint(path, context.assets, context.cache)
