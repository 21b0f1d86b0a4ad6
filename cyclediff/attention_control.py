"""Prompt-to-Prompt (arXiv 2208.01626): the source's attention maps steer the layout of its edit.

    AttentionControl    the settings of a method
    ControlPlan         the tables of n (source, target) pairs of prompts, from AttentionControl.plan
    AttentionEdit       what one evaluation of the network does to which rows of its batch, from ControlPlan.at
    LocalBlend          where an edit may differ from its source; off unless it is asked for
    attention_layers    the layers that do it: network(..., cross_attention_kwargs={"edit": edit})

The maps equal those of the official controllers (google/prompt-to-prompt). Those count steps and layers; here nothing
does: but for the maps that LocalBlend adds up, everything is a value. Word swap, refinement and re-weighting are one
formula, so the pairs of a batch may differ. With `base` and `own` the maps of the source and of the target row, a
mapper P, and factors per target token,

    new = (base P + own keep) equalizer,        edited = new alpha + own (1 - alpha).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cyclediff.attention_edit import AttentionEdit
from cyclediff.diffusion.prompt import Prompt
from cyclediff.local_blend import LISTED, Blending, LocalBlend, halved, local_blend
from cyclediff.prompt_alignment import (
    DEFAULT,
    Bounds,
    Mode,
    equalizer,
    mixing,
    require_weights,
    require_words,
    window,
    window_alphas,
)

LISTED_WEIGHT = 2  # cure-lab/PnPInversion@07f97f4, run_editing_p2p.py: eq_params of an entry's second blended word


class _Rows(NamedTuple):
    """The tables of e edited rows, on the network's device; names as in `AttentionEdit`."""

    base: Tensor
    edited: Tensor
    pair: Tensor
    mapper: Tensor
    keep: Tensor
    equalizer: Tensor
    alpha: Tensor  # (e, num_steps + 1, length)
    cross_steps: list[bool]  # whether any alpha of a step is not 0


@dataclass(frozen=True)
class AttentionControl:
    """How far a target's attention maps follow its source's.

    Args:
        cross: part of the steps with edited cross attention (cross_replace_steps in the official code): b for [0, b],
            or [a, b]; or such a window for each of some words of the target, see `window_alphas` and `positions_of`.
        self_attention: part of the steps at which self-attention maps are the source's (self_replace_steps).
        mode: "replace" swaps words; "refine" keeps the maps of the tokens that both prompts have; "auto" is "replace"
            where the prompts have equal numbers of words, else "refine".
        weights: factors of the maps of words of the target; named as in `positions_of`; a number is a word. "listed":
            2 for the target's word of each pair of its own (`Prompt.blended`).
        max_queries: self attention is only replaced in layers with at most this many positions; officially 16², and 32²
            in the notebook of null-text inversion.
        blend: keep the source's latents where its edited words are not, for methods that blend; or a mapping with the
            settings of `LocalBlend`; or "listed", for the words of each pair of its own.
    """

    cross: Bounds | Mapping[str, Bounds] = 0.8
    self_attention: Bounds = 0.4
    mode: Mode = "auto"
    weights: Mapping[str, float] | str | None = None
    max_queries: int = 256
    blend: LocalBlend | Mapping[str, Any] | str | None = None

    def __post_init__(self):
        windows = self.cross if isinstance(self.cross, Mapping) else {"": self.cross}
        for word, bounds in windows.items():
            window(bounds, f"cross[{word!r}]" if word else "cross")
        window(self.self_attention, "self_attention")
        if self.mode not in ("replace", "refine", "auto"):
            raise ValueError(f"mode must be replace, refine or auto; got {self.mode!r}")
        if self.weights not in (None, LISTED):
            require_weights(self.weights)
        if type(self.max_queries) is not int or self.max_queries < 0:
            raise ValueError(f"max_queries must be a whole number of at least 0; got {self.max_queries}")
        if self.blend is not None and not isinstance(self.blend, Mapping | LocalBlend | str):
            raise ValueError(f"blend must be null or settings such as {{source: cat, target: dog}}; got {self.blend!r}")
        local_blend(self.blend)

    @property
    def listed(self) -> list[str]:
        """The settings whose words are those of each pair of its own."""
        blend = local_blend(self.blend)
        return ["weights"] * (self.weights == LISTED) + ["blend"] * (blend is not None and blend.listed)

    def at_size(self, trained: int, height: int, width: int) -> "AttentionControl":
        """The same control of the same layers, for latents of another size; their positions follow it.

        Args:
            trained: height and width of the latents for which `max_queries` and `blend` are meant.
            height: of the latents.
            width: of the latents.
        """
        blend = local_blend(self.blend)
        if blend is not None:
            blend = replace(blend, stored=max(1, _positions(blend.stored, trained, height, width)))
        return replace(self, blend=blend, max_queries=_positions(self.max_queries, trained, height, width))

    def require_words(self, targets: Sequence[str], sources: Sequence[str] | None = None) -> None:
        """Require that each word of `weights`, `cross` and `blend` is in at least one of the texts of a run.

        Args:
            targets: all target texts.
            sources: all source texts, of which only `blend` has words.

        Raises:
            ValueError: if one is in none of them, where it would do nothing; the sentence lists the texts' words.
        """
        if blend := local_blend(self.blend):
            blend.require_words(targets, sources)
        windows = self.cross if isinstance(self.cross, Mapping) else {}
        if isinstance(self.weights, Mapping):
            require_words("weights", self.weights, targets)
        require_words("cross", [word for word in windows if word != DEFAULT], targets)

    def plan(
        self,
        sources: Sequence[Prompt],
        targets: Sequence[Prompt],
        length: int,
        num_steps: int,
        device: torch.device | str = "cpu",
    ) -> "ControlPlan":
        """Make the tables of each pair of a source and a target prompt.

        Args:
            sources: n prompts.
            targets: n prompts.
            length: number of token positions that the network sees.
            num_steps: of the sampler.
            device: where the network runs.

        Raises:
            ValueError: if there are no prompts or not equally many, if one has more tokens than `length`, or if words
                are to be replaced in prompts with different numbers of them.
        """
        if not targets or len(sources) != len(targets):
            raise ValueError(f"each target needs its source; got {len(sources)} sources and {len(targets)} targets")
        tables = [mixing(source, target, self.mode, length) for source, target in zip(sources, targets, strict=True)]
        low, high = window(self.self_attention)
        blend = local_blend(self.blend)
        return ControlPlan(
            mapper=torch.stack([mapper for mapper, _ in tables]),
            keep=torch.stack([keep for _, keep in tables]),
            equalizer=torch.stack([equalizer(target, self._weights(target), length) for target in targets]),
            alpha=torch.stack([window_alphas(target, self.cross, num_steps, length) for target in targets]),
            self_steps=range(int(num_steps * low), int(num_steps * high)),
            max_queries=self.max_queries,
            blending=blend and blend.begin(sources, targets, length, num_steps, device),
            device=device,
        )

    def _weights(self, target: Prompt) -> Mapping[str, float]:
        if isinstance(self.weights, str):
            return {target.blended: LISTED_WEIGHT} if target.blended else {}
        return self.weights or {}


def _positions(limit: int, trained: int, height: int, width: int) -> int:
    """Of the layer that has at most `limit` positions where latents have the size `trained`; 0 if none has."""
    for times in range(trained.bit_length() + 1):
        if halved(trained, times) ** 2 <= limit:
            return halved(height, times) * halved(width, times)
    return 0


@dataclass(frozen=True, eq=False)
class ControlPlan:
    """What happens to n pairs of prompts over a whole run.

    Args:
        mapper: P, float (n, length, length), rows source, columns target.
        keep: float (n, length).
        equalizer: float (n, length).
        alpha: float (n, num_steps + 1, length).
        self_steps: the steps at which self attention is replaced.
        max_queries: see AttentionControl.
        blending: the maps that LocalBlend has added up; so such a plan is for one run of a sampler.
        device: where the network runs. What reaches it goes there once, when some rows are first asked for.
    """

    mapper: Tensor
    keep: Tensor
    equalizer: Tensor
    alpha: Tensor
    self_steps: range
    max_queries: int
    blending: Blending | None = None
    device: torch.device | str = "cpu"
    _kept: dict[tuple[tuple[int, ...], ...], _Rows] = field(default_factory=dict, repr=False)

    def at(
        self, step: int, base_rows: Sequence[int], edited_rows: Sequence[int], pairs: Sequence[int]
    ) -> AttentionEdit | None:
        """The edit of one evaluation of the network; None if there is nothing to do at this step.

        Args:
            step: 0 is the first (the noisiest) of the sampler's steps.
            base_rows: for each edited row the row of the batch with its source prompt.
            edited_rows: rows with target prompts, conditional; no row may be both edited and a base.
            pairs: for each edited row the pair that it belongs to. Rows may share a base row and a pair.

        Raises:
            ValueError: if there is no such step, or the rows are not equally many.
        """
        num_steps = self.alpha.shape[1] - 1
        if not 0 <= step < num_steps:
            raise ValueError(f"step must be between 0 and {num_steps - 1}; got {step}")
        rows = self._rows(tuple(base_rows), tuple(edited_rows), tuple(pairs))
        edit = AttentionEdit(
            base=rows.base,
            edited=rows.edited,
            mapper=rows.mapper,
            keep=rows.keep,
            equalizer=rows.equalizer,
            alpha=rows.alpha[:, step],
            edits_cross=rows.cross_steps[step],
            max_queries=self.max_queries if step in self.self_steps and len(rows.edited) else 0,
            maps=self.blending and self.blending.maps(rows.pair),
        )
        return edit if edit.edits_cross or edit.max_queries or edit.maps else None

    def _rows(self, base: tuple[int, ...], edited: tuple[int, ...], pairs: tuple[int, ...]) -> _Rows:
        """The tables of some rows, which are the same in all steps of a run."""
        counts = len(base), len(edited), len(pairs)
        if len(set(counts)) > 1:
            raise ValueError(f"base rows, edited rows and pairs must be equally many; got {counts}")
        key = base, edited, pairs
        if key not in self._kept:
            numbers = [torch.tensor(rows, dtype=torch.int64) for rows in key]
            tables = [x[numbers[2]] for x in (self.mapper, self.keep, self.equalizer, self.alpha)]
            cross_steps = tables[3].any(2).any(0).tolist()
            moved = [x.to(self.device) for x in (*numbers, *tables)]
            self._kept[key] = _Rows._make([*moved, cross_steps])
        return self._kept[key]

    def blend(self, step: int, xs: Tensor, xt: Tensor) -> Tensor:
        """The states xt after a step, (e, c, h, w), blended with their sources' xs, (n, c, h, w); see `LocalBlend`."""
        return self.blending.blend(step, xs, xt) if self.blending else xt
