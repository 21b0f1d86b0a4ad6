"""What decides a run's artifacts, and what decides the numbers made from them: every setting, unless it is listed here.

A new setting is part of the artifacts' identity by default. A setting that only matters for numbers is in SCORING, and
one that cannot change either is in CANNOT_CHANGE, with the reason.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig, OmegaConf

SCORING = ("protocol.*",)  # patterns of settings that decide numbers only
CANNOT_CHANGE = {  # pattern of settings → why they can change neither artifacts nor numbers
    "paths.*": "where files lie; their contents are identified by checksums",
    "*.path": "weights are identified by their sha256, or their commit on the hub",
    "data.*": "images are identified by their contents (the digests of items and reference)",
    "task.source": "as data.*",
    "task.reference": "as data.*",
    "task.reference_count": "as data.*",
    "task.limit": "as data.*",
    "task.dataset.*": "as data.*",
    "protocol.afhq.*": "as data.*",
    "protocol.celeba_hq.*": "as data.*",
    "task.settings.*": "they reach a method as method.*",
    "task.generators.*": "as *.path",
    "task.tuned.*": "as *.path",
    "task.train_*": "study=train reads them as study.*, and no other study reads them",
    "method.training.*": "study=train alone reads them; its identity adds them. Trained weights have a sha256",
    "study.source": "as data.*",
    "study.target": "as data.*",
    "study.checkpoint_every": "a training that was stopped continues to the same weights",
    "task.inputs": "what a study checks before it starts",
    "protocol.inputs": "as task.inputs",
    "method.needs": "what the class declares; a difference is refused",
    "method.conditions": "as method.needs",
    "method.given": "as method.needs",
    "batch_size": "rounding only: README, Runs, says how much",
    "device": "rounding only; noise.device, which decides the noise, is part of the identity",
    "logger.*": "shows what is on disk",
    "profile": "measures time",
    "confirm": "asks before a long run",
    "confirm_above": "asks before a long run",
    "allow_code_change": "keeps what other code has made; run.json says so",
    "paper.*": "published numbers, shown beside ours",
    "published.*": "selection.grid takes from it what belongs to the method",
    "claims": "sentences that are judged by the numbers",
}


def leaves(cfg: DictConfig) -> dict[str, Any]:
    """Every setting by its full name, resolved. A list is one setting, and so is an empty group."""
    content: Any = OmegaConf.to_container(cfg, resolve=True)
    return flat(content)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their full names."""
    found = {}
    for key, value in tree.items():
        inside = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return found


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `flat`."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *groups, key = name.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[key] = value
    return tree


def artifact_settings(cfg: DictConfig, unused: Iterable[str] = ()) -> dict[str, Any]:
    """The settings that can change artifacts, nested.

    Args:
        cfg: of the run.
        unused: patterns of settings of what this run does not use, such as a network that its method does not need.
    """
    return nested({k: v for k, v in leaves(cfg).items() if not matches(k, (*CANNOT_CHANGE, *SCORING, *unused))})


def score_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings that can change nothing but the numbers, nested."""
    return nested({k: v for k, v in leaves(cfg).items() if matches(k, SCORING) and not matches(k, CANNOT_CHANGE)})


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a setting is one of these; a pattern that ends in .* also means the whole group where it is empty."""
    return any(fnmatchcase(name, pattern) or name == pattern.removesuffix(".*") for pattern in patterns)
