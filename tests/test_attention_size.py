"""Attention control of latents of another size than the network was trained on: the same layers are edited."""

from dataclasses import replace

import pytest
import torch

from cyclediff.attention_control import AttentionControl
from cyclediff.attention_edit import AttentionEdit
from cyclediff.diffusion.paired import paired_evaluation, plan_control
from cyclediff.local_blend import LocalBlend, StepMaps, masks
from cyclediff.models.load_text import load_text_to_image

from .tiny_sd import stable_diffusion

SIDE = 8  # of the latents that the tiny network was trained on; its layers have 8² and 4² positions


@pytest.mark.parametrize(
    ("limit", "size", "expected"),
    [
        (1024, (64, 64), 32 * 32), (256, (64, 64), 16 * 16), (1024, (48, 96), 24 * 48), (256, (48, 96), 12 * 24),
        (1024, (43, 65), 22 * 33), (256, (43, 65), 11 * 17), (4096, (43, 65), 43 * 65),
        (300, (64, 64), 256), (0, (64, 64), 0),
    ],
)  # fmt: skip
def test_positions_of_the_same_layers(limit, size, expected):
    """A stride of 2 rounds up, as a convolution with a padding of 1 does."""
    blend = LocalBlend("cat", stored=max(1, limit))
    found = AttentionControl(max_queries=limit, blend=blend).at_size(64, *size)
    assert found.max_queries == expected
    assert found.blend == replace(blend, stored=max(1, expected))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_text_to_image(str(stable_diffusion(tmp_path_factory.mktemp("sd"))))


def layers(model, control, size, monkeypatch) -> tuple[list[bool], list[bool]]:
    """Of each layer, in order: whether its self attention is replaced, and whether its maps are stored."""
    replaced, stored = [], []
    edits_self, wants = AttentionEdit.edits_self, StepMaps.wants
    monkeypatch.setattr(AttentionEdit, "edits_self", lambda *a: replaced.append(edits_self(*a)) or replaced[-1])
    monkeypatch.setattr(StepMaps, "wants", lambda *a: stored.append(wants(*a)) or stored[-1])
    sides = model.condition(["a cat"]), model.condition(["a dog"], 3.0)
    plan = plan_control(control, *sides, 4)
    x = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(1))
    paired_evaluation(*sides, plan)(x, x, model.schedule.at(500), 0)
    monkeypatch.undo()
    assert len(stored) > 3
    return replaced, stored


@pytest.mark.parametrize("size", [(8, 8), (11, 7), (5, 24), (16, 16)])
def test_a_network_edits_the_same_layers(model, size, monkeypatch):
    blend = LocalBlend("cat", "dog", down=(0, 1), up=(0, 2), stored=16)
    control = AttentionControl(0.8, 0.8, "replace", max_queries=16, blend=blend)
    expected = layers(model, control, (SIDE, SIDE), monkeypatch)
    assert any(expected[0])
    assert not all(expected[0])
    assert layers(model, control.at_size(SIDE, *size), size, monkeypatch) == expected
    if size != (SIDE, SIDE):
        assert layers(model, control, size, monkeypatch) != expected


def test_maps_of_odd_latents_lie_on_their_grid():
    """33 × 16 latents, halved four times: 3 × 1."""
    maps = torch.zeros(1, 2, 2, 3)
    maps[0, 1, :, 2] = 1
    _, found = masks(maps, LocalBlend("cat", "dog"), (33, 16))
    assert found[0, 0].any(1).nonzero().flatten().tolist() == list(range(22, 33))
    assert found[0, 0].all(1).sum() == 11
