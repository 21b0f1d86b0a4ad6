"""The attention layers of a diffusers network that can edit attention maps; see `cyclediff.attention_control`."""

from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclediff.attention_edit import AttentionEdit


class ControlledAttention:
    """An attention processor for diffusers' Attention modules that can edit attention maps.

    Without an edit it computes what AttnProcessor2_0 does. With one, only edited cross attention computes its maps,
    which is slower. Self attention stays fast: its map is a function of a row's queries and keys, so a row with the
    queries and keys of its base row has the map of its base row.

    Keys and values of a context are kept and used again while the context is the same tensor, but not under autograd.

    Args:
        place: part of the network that its layers are in: down, mid or up.
    """

    def __init__(self, place: str = ""):
        self._place = place
        self._kept: WeakKeyDictionary[Any, tuple[Tensor, Tensor, Tensor]] = WeakKeyDictionary()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        edit: AttentionEdit | None = None,
    ) -> Tensor:
        """Evaluate one attention layer.

        Args:
            attn: diffusers' Attention, with the projections.
            hidden_states: (rows, q, channels) or (rows, channels, height, width).
            encoder_hidden_states: (rows, k, channels) in cross attention, None in self attention.
            attention_mask: added to the scores; (rows, 1, k), or per head (rows × heads, 1, k).
            temb: for attn.spatial_norm.
            edit: what to do to which rows.

        Returns:
            Same shape as hidden_states.
        """
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        query = _heads(attn.to_q(hidden_states), attn)
        query = query if attn.norm_q is None else attn.norm_q(query)
        if encoder_hidden_states is None:
            key, value = _keys_and_values(attn, hidden_states)
        else:
            key, value = self._of_context(attn, encoder_hidden_states)
        mask = attn.prepare_attention_mask(attention_mask, key.shape[2], key.shape[0])
        if mask is not None:
            mask = mask.unflatten(0, (-1, attn.heads))

        if encoder_hidden_states is None:
            out = self_attention(query, key, value, mask, edit)
        else:
            out = cross_attention(query, key, value, mask, edit, self._place)
        out = out.transpose(1, 2).flatten(2).to(query.dtype)
        for layer in attn.to_out:  # a linear layer and dropout
            out = layer(out)
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor

    def _of_context(self, attn: Any, context: Tensor) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():  # a CUDA graph uses the memory of what would be kept again
            return _keys_and_values(attn, attn.norm_encoder_hidden_states(context) if attn.norm_cross else context)
        kept = self._kept.get(attn)
        if kept is not None and kept[0] is context and not torch.is_grad_enabled():
            return kept[1:]
        key, value = _keys_and_values(attn, attn.norm_encoder_hidden_states(context) if attn.norm_cross else context)
        if not torch.is_grad_enabled():
            self._kept[attn] = context, key, value
        return key, value


def _keys_and_values(attn: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    key, value = _heads(attn.to_k(x), attn), _heads(attn.to_v(x), attn)
    return key if attn.norm_k is None else attn.norm_k(key), value


def _heads(x: Tensor, attn: Any) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def self_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, edit: AttentionEdit | None
) -> Tensor:
    """Attention within an image; queries (rows, heads, q, channels) → same shape."""
    if edit is not None and edit.edits_self(query.shape[2]):
        query, key, mask = edit.follow(query), edit.follow(key), None if mask is None else edit.follow(mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def cross_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, edit: AttentionEdit | None, place: str = ""
) -> Tensor:
    """Attention to the text: query (rows, heads, q, channels); key, value (rows, heads, k, channels) → shape of query.

    Rows that are not edited equal torch's own function to the last bit: a source does not depend on its edits.
    """
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    if edit is None:
        return out
    blends = edit.maps is not None and edit.maps.wants(place, query.shape[2])
    if not (edit.edits_cross or blends):
        return out
    rows = torch.cat((edit.base, edit.edited))
    maps = attention_maps(query[rows], key[rows], None if mask is None else mask[rows])
    base, own = maps.split([len(edit.base), len(edit.edited)])
    edited = edit.mixed(base, own)
    if edit.maps is not None and blends:
        edit.maps.add(base, edited)
    return out.index_copy(0, edit.edited, edited @ value[edit.edited]) if edit.edits_cross else out


def attention_maps(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(channels)), (rows, heads, q, k) in the type of query; the softmax in float32 at least."""
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    scores = scores if mask is None else scores + mask
    return scores.softmax(dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)


class HasProcessors(Protocol):
    """A diffusers network with attention."""

    @property
    def attn_processors(self) -> Mapping[str, Any]:
        """The processor of each attention layer, by its name."""
        ...

    def set_attn_processor(self, processor: Any) -> object:
        """Use other processors, by the same names."""
        ...


def install(unet: HasProcessors) -> None:
    """Make all attention layers of a diffusers network accept cross_attention_kwargs={"edit": ...}."""
    unet.set_attn_processor({name: ControlledAttention(name.split("_")[0]) for name in unet.attn_processors})
