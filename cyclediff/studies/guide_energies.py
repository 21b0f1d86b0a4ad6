"""The energies of study=guide, from the task's networks: what is wanted of the images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from cyclediff.data.assets import locate
from cyclediff.data.images import read_rgb
from cyclediff.errors import UserError
from cyclediff.studies.context import load_network

if TYPE_CHECKING:
    from cyclediff.guidance import Energy
    from cyclediff.runtime.meter import Meter

ENERGIES = ("classifier", "clip", "identity")


def require_wanted(cfg: DictConfig, energies: Sequence[str], known: Sequence[str]) -> None:
    """Require that the task says what each energy wants.

    Args:
        cfg: of the run.
        energies: the names that the method gives weights.
        known: attributes that there are; empty if that is known only later.

    Raises:
        UserError: if something is missing, unknown or contradictory.
    """
    for name in energies:
        if name not in ENERGIES:
            raise UserError(f"method.weights has {name}; the energies are {', '.join(ENERGIES)}")
    asked = [*cfg.task.present, *cfg.task.absent]
    for name in asked:
        if known and name not in known:
            raise UserError(
                f"there is no attribute {name}; choose task.present and task.absent from {', '.join(known)}"
            )
        if asked.count(name) > 1:
            raise UserError(f"the attribute {name} is asked for twice; name it once, in task.present or task.absent")
    if "classifier" in energies and not asked:
        raise UserError(
            f"{cfg.method.name} needs an attribute; set task.present=[…]"
            + (f", of {', '.join(known)}" if known else "")
        )
    if "clip" in energies and not str(cfg.task.text or "").strip():
        raise UserError(f"{cfg.method.name} needs a text; set task.text='…'")
    if "identity" in energies:
        if not cfg.task.faces:
            raise UserError(f"{cfg.method.name} needs pictures of the person; set task.faces=[FILE, …]")
        missing = [face for face in cfg.task.faces if not locate(face).is_file()]
        if missing:
            raise UserError(f"task.faces: {missing[0]} does not exist; name pictures of one person, aligned as FFHQ's")


def build_energies(cfg: DictConfig, paths: Mapping[str, str], device: str) -> "dict[str, Energy]":
    """The energies that the method gives weights.

    Args:
        cfg: of the run.
        paths: weights of the networks, by the energy's name.
        device: where the networks are.

    Raises:
        UserError: if weights do not fit, or a network does not know what is wanted.
    """
    return {name: _build(name, cfg, paths[name], device) for name in cfg.method.weights}


def _build(name: str, cfg: DictConfig, path: str, device: str) -> "Energy":
    network = load_network(cfg.task[name], path=path, device=device)
    if name == "classifier":
        from cyclediff.models.attribute_classifier import Attribute, AttributeEnergy

        wanted = {
            key: Attribute(present)
            for present, keys in ((True, "present"), (False, "absent"))
            for key in cfg.task[keys]
        }
        return AttributeEnergy(network.classifiers, wanted, network.prepare)
    if name == "clip":
        from cyclediff.models.clip_energy import ClipEnergy, clip_of

        network.warn_of_cut([cfg.task.text])
        tokens = network.tokenize([cfg.task.text]).to(device)
        return ClipEnergy([clip_of(network.network, tokens)], copies=cfg.method.copies)
    from cyclediff.models.identity import identity_energy

    return identity_energy(network, [read_rgb(locate(face)) for face in cfg.task.faces], device)


def counted(energy: Any, name: str, meter: "Meter") -> "Energy":
    """The same energy with the evaluations of its networks counted."""
    if name == "classifier":
        counted = {key: meter.count(network, name) for key, network in energy.classifiers.items()}
        return replace(energy, classifiers=counted)
    if name == "clip":
        return replace(energy, clips=[meter.watch(clip, name) for clip in energy.clips])
    return meter.watch(energy, name)
