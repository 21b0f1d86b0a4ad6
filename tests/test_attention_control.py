"""Prompt-to-Prompt's attention maps: the official controllers' numbers, and closed forms in a network."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from cyclediff.attention_control import AttentionControl
from cyclediff.attention_layers import ControlledAttention, attention_maps, install
from cyclediff.prompt_alignment import equalizer, mixing

from .nets import cases, golden, golden_json
from .prompts import prompt_of

LENGTH, STEPS, HEADS = 77, 10, 2
RESIDUAL = {"norm_num_groups": 8, "residual_connection": True}


def golden_plans(case):
    """A plan for each target prompt: in one case they have different weights."""
    config = cases("p2p_attention")[case]
    source, *targets = (prompt_of(text) for text in config["prompts"])
    words, values = config.get("equalizer_words", []), config.get("equalizer_values", [])
    weights = [{words[0]: value} for value in values] if case == "reweight" else [dict(zip(words, values, strict=True))]
    for index, target in enumerate(targets):
        control = AttentionControl(
            cross=config.get("cross_replace_steps", 0.8),
            self_attention=config.get("self_replace_steps", 0.4),
            mode="refine" if case.startswith("refine") else "replace",
            weights=weights[index % len(weights)] or None,
        )
        yield index, control.plan([source], [target], LENGTH, STEPS)


@pytest.mark.parametrize("case", cases("p2p_attention"))
def test_golden_tables(case):
    data, prefix = golden("p2p_attention"), "prev_" if case == "refine_reweight" else ""
    for k, plan in golden_plans(case):
        assert plan.alpha[0].equal(data[f"{case}.cross_replace_alpha"][:, k, 0, 0])
        assert plan.self_steps == range(*cases("p2p_attention")[case]["num_self_replace"])
        if "reweight" in case:
            assert plan.equalizer[0].equal(data[f"{case}.equalizer"][k])
        if case.startswith("replace"):
            assert plan.mapper[0].equal(data[f"{case}.mapper"][k])
            assert not plan.keep.any()
        elif case.startswith("refine"):
            alphas = data[f"{case}.{prefix}alphas"][k, 0, 0]
            assert plan.keep[0].equal(1 - alphas)
            assert plan.mapper[0].sum(0).equal(alphas)
            assert plan.mapper[0].argmax(0)[alphas == 1].equal(data[f"{case}.{prefix}mapper"][k][alphas == 1])
        else:
            assert plan.mapper[0].equal(torch.eye(LENGTH))


def golden_layers():
    return sorted(key.removesuffix(".in") for key in golden("p2p_attention") if key.endswith(".in"))


@pytest.mark.parametrize("key", golden_layers())
def test_golden_maps(key, parity):
    """Layers 0 and 2 are self attention, 1 and 3 cross attention; rows: 3 unconditional, source, 2 targets."""
    case, step, layer = key.split(".")
    kind = ("self_attention", "cross")[int(layer[-1]) % 2]
    maps, expected = (golden("p2p_attention")[f"{key}.{end}"].unflatten(0, (-1, HEADS)) for end in ("in", "out"))
    rows, before = maps, maps.clone()
    for k, plan in golden_plans(case):
        edit = plan.at(int(step.removeprefix("step")), [3], [4 + k], [0])
        rows = rows if edit is None else getattr(edit, kind)(rows)
    parity("Prompt-to-Prompt", f"{kind.split('_')[0]}-attention maps: {case}", rows, expected, 1e-6)
    assert rows[:4].equal(expected[:4])
    assert maps.equal(before)


def test_some_golden_maps_are_edited():
    """As the golden README says: 31 of the 44."""
    data, layers = golden("p2p_attention"), golden_layers()
    assert (len(layers), sum(not data[f"{key}.in"].equal(data[f"{key}.out"]) for key in layers)) == (44, 31)


@pytest.mark.parametrize(
    ("queries", "replaced"), golden_json("p2p_alignment")["self_replace_by_query_count"]["stable"].items()
)
def test_golden_self_attention_limit(queries, replaced):
    prompt, maps = prompt_of("a cat"), torch.rand(2, 1, int(queries), 3)
    edit = AttentionControl().plan([prompt], [prompt], LENGTH, STEPS).at(0, [0], [1], [0])
    assert edit.self_attention(maps)[1].equal(maps[0]) == replaced
    assert edit.self_attention(maps)[1].equal(maps[1]) != replaced


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cross": 1.2}, r"cross must be .* 0 ≤ a ≤ b ≤ 1; got 1.2"),
        ({"cross": {"default_": 0.5, "cat": [0.6, 0.4]}}, r"cross\['cat'\] must be .*; got \[0.6, 0.4\]"),
        ({"self_attention": [-0.1, 0.4]}, r"self_attention must be .*; got \[-0.1, 0.4\]"),
        ({"mode": "swap"}, "mode must be replace, refine or auto; got 'swap'"),
        ({"cross": None}, "cross must be .*; got None"),
        ({"cross": [0.1, "x"]}, "cross must be .*; got .0.1, 'x'"),
        ({"cross": True}, "cross must be .*; got True"),
        ({"self_attention": None}, "self_attention must be .*; got None"),
        ({"max_queries": 2.5}, "max_queries must be a whole number of at least 0; got 2.5"),
        ({"blend": True}, r"blend must be null or settings such as \{source: cat, target: dog\}; got True"),
        ({"max_queries": -1}, "max_queries must be a whole number of at least 0; got -1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        AttentionControl(**settings)


SOURCE = "a cat sitting on a car"
TARGETS = ("a big dog sitting on a car", "a dog sitting on a car", "a fluffy cat sitting on a car at night")


def plan(targets=TARGETS, length=24, num_steps=STEPS, **settings):
    prompts = [prompt_of(text) for text in targets]
    return AttentionControl(**settings).plan([prompt_of(SOURCE)] * len(prompts), prompts, length, num_steps)


def test_auto_swaps_words_where_there_are_equally_many():
    tables = plan(mode="auto")
    for k, mode in enumerate(("refine", "replace", "refine")):
        mapper, keep = mixing(prompt_of(SOURCE), prompt_of(TARGETS[k]), mode, 24)
        assert tables.mapper[k].equal(mapper)
        assert tables.keep[k].equal(keep)
        assert keep.any() == (mode == "refine")


def test_plan_mistakes():
    prompt, longer = prompt_of("a cat"), prompt_of("a big cat")
    with pytest.raises(ValueError, match="each target needs its source; got 1 sources and 2 targets"):
        AttentionControl().plan([prompt], [prompt, prompt], 24, STEPS)
    with pytest.raises(ValueError, match="each target needs its source; got 0 sources and 0 targets"):
        AttentionControl().plan([], [], 24, STEPS)
    with pytest.raises(ValueError, match="got 2 in 'a cat' and 3 in 'a big cat'"):
        AttentionControl(mode="replace").plan([prompt], [longer], 24, STEPS)
    for step in (-1, STEPS):
        with pytest.raises(ValueError, match=f"step must be between 0 and 9; got {step}"):
            plan().at(step, [0], [1], [0])
    with pytest.raises(ValueError, match=r"must be equally many; got \(1, 2, 2\)"):
        plan().at(0, [0], [1, 2], [0, 1])
    with pytest.raises(ValueError, match="the network sees 77 token positions; the plan was made for 24"):
        plan().at(0, [0], [1], [0]).cross(torch.rand(2, 1, 4, 77))


def test_nothing_to_do_is_none():
    """Cross attention until int(0.5 × 11) = 5, or one pair's word until 8; self attention from 3 until int(9.5) = 9."""
    assert all(plan(cross=0, self_attention=0).at(step, [0], [1], [0]) is None for step in range(STEPS))
    both = plan(cross=0.5, self_attention=[0.3, 0.5])
    assert [both.at(step, [0], [1], [0]) is not None for step in range(STEPS)] == [True] * 5 + [False] * 5
    window = plan(cross=0, self_attention=[0.3, 0.95])
    assert [s for s in range(STEPS) if window.at(s, [0], [1], [0]) is not None] == [3, 4, 5, 6, 7, 8]
    word = plan(cross={"default_": 0, "night": 0.8}, self_attention=0)
    assert all(word.at(step, [0], [1], [0]) is None for step in range(STEPS))
    assert [word.at(step, [0, 0], [1, 2], [0, 2]) is not None for step in range(STEPS)] == [True] * 8 + [False] * 2
    assert plan(cross=0, max_queries=0).at(0, [0], [1], [0]) is None
    assert plan().at(0, [], [], []) is None


def test_only_affected_layers_leave_the_fast_path(monkeypatch):
    """Cross attention's maps are computed where an alpha is not 0; self attention is always torch's own."""
    calls = []
    monkeypatch.setattr(
        "cyclediff.attention_layers.attention_maps", lambda *args: calls.append(args) or attention_maps(*args)
    )
    network, x, context = unet(), latents(2), texts(2)
    for settings, count in (({"cross": 0, "self_attention": 1}, 0), ({"cross": 1, "self_attention": 0}, 4)):
        calls.clear()
        run(network, x, context, plan(**settings).at(0, [0], [1], [0]))
        assert len(calls) == count


def layer(**settings) -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=32, heads=4, dim_head=8, **settings).eval()


@pytest.mark.parametrize(
    ("settings", "shape", "context", "mask"),
    [
        ({}, (3, 16, 32), None, False),
        ({"bias": True, "qk_norm": "layer_norm"}, (3, 16, 32), None, True),
        ({"cross_attention_dim": 12}, (3, 16, 32), (3, 24, 12), False),
        ({"cross_attention_dim": 12, "cross_attention_norm": "layer_norm"}, (3, 16, 32), (3, 24, 12), True),
        ({**RESIDUAL, "rescale_output_factor": 1.5, "bias": True}, (3, 32, 4, 5), None, False),
        ({"spatial_norm_dim": 6, "residual_connection": True}, (3, 32, 4, 4), None, False),
    ],
    ids=["self", "self_mask", "cross", "cross_mask", "image", "spatial_norm"],
)
def test_without_edit_is_diffusers(settings, shape, context, mask):
    attn, x = layer(**settings), torch.randn(shape)
    inputs = {"encoder_hidden_states": None if context is None else torch.randn(context), "temb": None}
    if "spatial_norm_dim" in settings:
        inputs["temb"] = torch.randn(3, 6, 2, 2)
    keys = (context or x.flatten(2).mT.shape if x.ndim == 4 else context or shape)[1]
    if mask:
        inputs["attention_mask"] = torch.where(torch.rand(3, 1, keys) < 0.3, -10000.0, 0.0)
    expected = AttnProcessor2_0()(attn, x, **inputs)
    assert (ControlledAttention()(attn, x, **inputs) - expected).abs().max() < 1e-6


def test_keys_and_values_are_those_of_the_context_given():
    """They are kept from one call to the next, but not for another context, and not from or for autograd."""
    ours, attn, x = ControlledAttention(), layer(cross_attention_dim=24), torch.randn(2, 16, 32)
    one, two = torch.randn(2, 10, 24), torch.randn(2, 10, 24)
    for context in (one, one, two, one):
        with torch.no_grad():
            expected = AttnProcessor2_0()(attn, x, encoder_hidden_states=context)
            assert (ours(attn, x, encoder_hidden_states=context) - expected).abs().max() < 1e-6
    with torch.enable_grad():
        ours(attn, x, encoder_hidden_states=one).sum().backward()
    assert attn.to_k.weight.grad.abs().max() > 0


@pytest.mark.parametrize("mask", [False, True])
def test_self_attention_with_the_base_rows_map(mask):
    """softmax(q_base k_base) v_own, by hand."""
    attn, x = layer(), torch.randn(3, 16, 32)
    bias = torch.where(torch.rand(3, 1, 16) < 0.3, -10000.0, 0.0) if mask else None
    edit = plan(self_attention=1, max_queries=16).at(0, [1], [2], [0])
    out = ControlledAttention()(attn, x, attention_mask=bias, edit=edit)
    maps = torch.stack([by_hand(attn, row, row, None if bias is None else bias[i, 0]) for i, row in enumerate(x)])
    maps = torch.stack([maps[0], maps[1], maps[1]])
    assert (out - apply(attn, maps, x)).abs().max() < 1e-6
    assert (out - apply(attn, edit.self_attention(maps), x)).abs().max() < 1e-6
    assert out[:2].equal(ControlledAttention()(attn, x, attention_mask=bias)[:2])
    limited = plan(self_attention=1, max_queries=15).at(0, [1], [2], [0])
    assert ControlledAttention()(attn, x, edit=limited).equal(ControlledAttention()(attn, x))


def by_hand(attn, x, context, bias=None):
    """Attention maps (heads, q, k) of one row, a head at a time."""
    size = attn.to_q.out_features // attn.heads
    queries, keys = attn.to_q(x).split(size, dim=-1), attn.to_k(context).split(size, dim=-1)
    scores = torch.stack([q @ k.T / size**0.5 for q, k in zip(queries, keys, strict=True)])
    return (scores if bias is None else scores + bias).softmax(-1)


def apply(attn, maps, context):
    size = attn.to_v.out_features // attn.heads
    values = attn.to_v(context).split(size, dim=-1)
    return attn.to_out[0](torch.cat([maps[:, h] @ value for h, value in enumerate(values)], dim=-1))


def test_cross_attention_with_the_edited_map():
    """The paper's three edits by hand: refined tokens take the source's columns, new ones stay, weights multiply."""
    attn, x, context = layer(cross_attention_dim=12), torch.randn(3, 16, 32), torch.randn(3, 24, 12)
    weights = {"big": 3.0, "car": 0.5}
    edit = plan(cross=1, self_attention=0, weights=weights).at(0, [1], [2], [0])
    out = ControlledAttention()(attn, x, context, edit=edit)
    maps = torch.stack([by_hand(attn, *row) for row in zip(x, context, strict=True)])
    source = [0, 1, None, None, 3, 4, 5, 6, 7, *range(9, 24)]  # start a [big] [dog] sitting on a car end, padding
    edited = torch.stack([maps[2 if i is None else 1, ..., j if i is None else i] for j, i in enumerate(source)], -1)
    edited = edited * equalizer(prompt_of(TARGETS[0]), weights, 24)
    assert edited.shape == maps[2].shape
    assert (edit.cross(maps)[2] - edited).abs().max() < 1e-6
    assert (out - apply(attn, torch.stack([maps[0], maps[1], edited]), context)).abs().max() < 1e-6


def unet() -> UNet2DConditionModel:
    """In float64: four pairs of self and cross attention, at 8×8 and 4×4, and three layers without text at 4×4."""
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    return network.double().eval().requires_grad_(False)


def run(network, x, context, edit=None, installed=True):
    if installed:
        install(network)
    more = {"edit": edit} if edit else None
    return network(x, 500, encoder_hidden_states=context, cross_attention_kwargs=more).sample


def texts(rows):
    return torch.randn(rows, 24, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def latents(rows):
    return torch.randn(rows, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_a_network_without_edit_is_diffusers():
    network, x, context = unet(), latents(3), texts(3)
    expected = network(x, 500, encoder_hidden_states=context).sample
    assert (run(network, x, context) - expected).abs().max() < 1e-6
    mask = torch.ones(3, 24).index_fill(1, torch.arange(10, 24), 0)
    masked = network(x, 500, context, encoder_attention_mask=mask).sample
    network.set_attn_processor(AttnProcessor2_0())
    assert (masked - network(x, 500, context, encoder_attention_mask=mask).sample).abs().max() < 1e-6
    assert (masked - expected).abs().max() > 1e-3


def test_equal_prompts_and_latents_change_nothing():
    network, x, context = unet(), latents(1).repeat(3, 1, 1, 1), texts(1).repeat(3, 1, 1)
    for mode in ("replace", "refine"):
        edit = plan([SOURCE], cross=1, self_attention=1, mode=mode).at(0, [0, 0], [1, 2], [0, 0])
        assert (run(network, x, context, edit) - run(network, x, context)).abs().max() < 1e-12


@pytest.mark.parametrize("settings", [{"cross": 1, "self_attention": 0}, {"cross": 0, "self_attention": 1}, {}])
def test_only_edited_rows_change(settings):
    network, x, context = unet(), latents(4), texts(4)
    plain, edited = run(network, x, context), run(network, x, context, plan(**settings).at(0, [1], [3], [0]))
    assert edited[:3].equal(plain[:3])
    assert (edited[3] - plain[3]).abs().max() > 1e-3


def test_rows_on_one_base_row_equal_separate_evaluations():
    """Source, an unconditional row, and four edited rows of three pairs: word swap and refinement in one batch."""
    network, x, context = unet(), latents(6), texts(6)
    tables, pairs = plan(weights={"dog": 2.0}), [0, 1, 1, 2]
    together = run(network, x, context, tables.at(0, [0] * 4, [2, 3, 4, 5], pairs))
    for row, pair in enumerate(pairs, start=2):
        alone = run(network, x[[0, row]], context[[0, row]], tables.at(0, [0], [1], [pair]))
        assert (together[[0, row]] - alone).abs().max() < 1e-12


def test_pairs_have_their_own_sources():
    network, x, context = unet(), latents(4), texts(4)
    tables = plan()
    together = run(network, x, context, tables.at(3, [2, 1], [0, 3], [2, 0]))
    for base, row, pair in ((2, 0, 2), (1, 3, 0)):
        alone = run(network, x[[base, row]], context[[base, row]], tables.at(3, [0], [1], [pair]))
        assert (together[[base, row]] - alone).abs().max() < 1e-12


def test_an_edit_moves_to_a_type():
    edit = plan(weights={"dog": 2.0}).at(0, [0], [1], [0])
    moved = edit.to(torch.float64)
    assert moved.mapper.dtype == moved.alpha.dtype == torch.float64
    assert moved.base.dtype == moved.edited.dtype == torch.int64
    maps = torch.rand(2, 2, 4, 24, dtype=torch.float64).softmax(-1)
    assert moved.cross(maps).equal(edit.cross(maps))
    low = edit.cross(maps.half())
    assert low.dtype == torch.float16
    assert (low - maps.half())[0].abs().max() == 0
    assert (low.double() - edit.cross(maps)).abs().max() < 2e-3
