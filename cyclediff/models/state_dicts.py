"""Which of the state dicts in a file is meant: the network, its moving average, or one that the user names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cyclediff.errors import UserError
from cyclediff.models.checkpoint import StateDict
from cyclediff.models.weights import plain_shape

AVERAGE_WORDS = {"ema", "avg", "averaged", "average", "shadow", "swa"}
DDPM_AVERAGE = "[4]"  # DDPM's training scripts save [network, optimizer, epoch, step, average]
COUNTERS = {"n_averaged", "num_updates", "initted", "step", "decay"}  # what averages keep beside their weights
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Za-z][a-z]*")
SHOWN = 6
HOW = "in the model's configuration"


@dataclass(frozen=True)
class Candidate:
    """A part of a file that is the network, or the most like it.

    Args:
        name: its place in the file, in dots; empty for a plain state dict.
        state: official name → tensor.
        prefix: what is in front of the official names in the file, with its dot.
        place: the group of tensors that it is in.
        outside: the other tensors of that group.
    """

    name: str
    state: StateDict
    prefix: str
    place: str
    outside: frozenset[str]

    @property
    def average(self) -> bool:
        """Whether it is a moving average, by its name or by the counter that torch's AveragedModel keeps."""
        return _is_average(self.name) or "n_averaged" in self.outside


def choose(
    groups: Mapping[str, StateDict], wanted: Mapping[str, tuple[int, ...]], ema: bool, name: str | None, origin: str
) -> StateDict:
    """The state dict that a network is loaded from.

    A prefix in front of all names, such as `module.`, `_orig_mod.` or `model.`, is removed.

    Args:
        groups: of the file, from `read_checkpoint`.
        wanted: official name → shape, of all tensors of the network.
        ema: whether the moving average is meant where the file holds a network and its average.
        name: place of the state dict in the file, where it is named; then nothing is chosen.
        origin: the file, for messages.

    Returns:
        Official name → tensor. Where nothing in the file fits: what is most like the network.

    Raises:
        UserError: if more than one fits and `ema` does not say which, or the one that is meant is not there.
    """
    candidates = [one for place, tensors in groups.items() for one in _candidates(place, tensors, wanted)]
    fitting = [one for one in candidates if _fits(one.state, wanted)]
    if name is not None:
        return _named(name, candidates, groups, origin)
    whole = [one for one in fitting if not _unexplained(one, fitting)]
    if not fitting:
        return _most_like(candidates, wanted, groups)
    if not whole:
        other = sorted(_unexplained(fitting[0], fitting))
        raise UserError(
            f"{origin} holds {len(other)} tensors that are not of this network ({', '.join(other[:3])}, …) beside "
            f"{_shown(fitting[0])}, which is; if only that is meant: state_dict={fitting[0].name or '.'} {HOW}"
        )
    meant = [one for one in whole if one.average == ema] if len(whole) > 1 else whole
    if len(meant) != 1:
        raise UserError(
            f"{origin} holds {len(whole)} state dicts of this network ({', '.join(map(_shown, whole[:SHOWN]))}), and "
            f"ema={str(ema).lower()} does not say which; name one: state_dict={whole[-1].name} {HOW}"
        )
    chosen = meant[0]
    if ema and not chosen.average and (other := _unreadable_average(groups, fitting)):
        raise UserError(
            f"{origin} holds the network ({_shown(chosen)}) and an average that cannot be read ({other}), and ema=true "
            f"asks for the average; save the average as a state dict, or take the network: ema=false {HOW}"
        )
    if ema and not chosen.average and (others := groups.keys() - {one.place for one in fitting}):
        raise UserError(
            f"{origin} holds the network ({_shown(chosen)}) beside {_few(sorted(others))}, and no average, which "
            f"ema=true asks for; if the network itself is meant: ema=false {HOW}"
        )
    if not ema and chosen.average:
        raise UserError(
            f"{origin} holds an average ({_shown(chosen)}) and not the network, which ema=false asks for; set ema=true "
            f"{HOW}"
        )
    return chosen.state


def _candidates(place: str, tensors: StateDict, wanted: Mapping[str, tuple[int, ...]]) -> list[Candidate]:
    """One for each prefix under which the group has a name of the network."""
    prefixes = {key.removesuffix(own) for key in tensors for own in _suffixes(key) if own in wanted}
    found: list[Candidate] = []
    taken: set[str] = set()  # by networks that fit, under a longer prefix
    for prefix in sorted(prefixes, key=len, reverse=True):
        under = {key for key in tensors.keys() - taken if key.startswith(prefix)}
        state = {key.removeprefix(prefix): tensors[key] for key in tensors if key in under}
        name = ".".join(filter(None, (place, prefix.removesuffix("."))))
        found.append(Candidate(name, state, prefix, place, frozenset(tensors.keys() - under)))
        taken |= under if _fits(state, wanted) else set()
    return found


def _suffixes(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _fits(state: StateDict, wanted: Mapping[str, tuple[int, ...]]) -> bool:
    return state.keys() == wanted.keys() and all(plain_shape(state[key].shape) == wanted[key] for key in wanted)


def _unexplained(one: Candidate, fitting: list[Candidate]) -> set[str]:
    """Other tensors of the group that belong to no network that fits, and count nothing."""
    siblings = {other.prefix + own for other in fitting if other.place == one.place for own in other.state}
    return {key for key in one.outside - siblings if key.rpartition(".")[2] not in COUNTERS}


def _named(name: str, candidates: list[Candidate], groups: Mapping[str, StateDict], origin: str) -> StateDict:
    for one in candidates:
        if name == (one.name or "."):
            return one.state
    if name in groups:
        return groups[name]
    there = [_shown(one) for one in candidates] or list(groups)
    raise UserError(f"{origin} holds no state dict {name}; it holds {', '.join(there[:SHOWN])}")


def _most_like(
    candidates: list[Candidate], wanted: Mapping[str, tuple[int, ...]], groups: Mapping[str, StateDict]
) -> StateDict:
    """The part with the most names of the network; the largest group where none has one."""
    if not candidates:
        return max(groups.values(), key=len)
    return max(candidates, key=lambda one: len(one.state.keys() & wanted.keys())).state


def _unreadable_average(groups: Mapping[str, StateDict], fitting: list[Candidate]) -> str | None:
    """A group that is named as an average and is not this network, in words."""
    for place, tensors in groups.items():
        if any(one.place == place for one in fitting):
            continue
        if _is_average(place):
            listed = all(key.startswith("[") for key in tensors)
            return f"{place}: {len(tensors)} tensors" + (" in a list, without names, as torch_ema keeps them" * listed)
        if flat := next((key for key in tensors if _is_average(key) and "exp_avg" not in key), None):  # exp_avg: Adam's
            return f"{'.'.join(filter(None, (place, flat)))}: one tensor"
    return None


def _is_average(name: str) -> bool:
    return name.startswith(DDPM_AVERAGE) or not AVERAGE_WORDS.isdisjoint(word.lower() for word in WORD.findall(name))


def _few(names: list[str]) -> str:
    return ", ".join([*names[:3], "…"] if len(names) > 3 else names)


def _shown(one: Candidate) -> str:
    return one.name or "the file's own tensors"
