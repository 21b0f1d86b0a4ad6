"""Checkpoints of every kind into networks, and the sentence for the wrong one."""

import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from safetensors.torch import save_file

from cyclediff.diffusion.denoiser import NetworkDenoiser
from cyclediff.diffusion.schedule import alpha_bar_from_betas, linear_betas
from cyclediff.errors import UserError
from cyclediff.models.checkpoint import carries_mark, read_checkpoint
from cyclediff.models.load import load_adm, load_classifier, load_ddpm, load_diffusers
from scripts.make_random_checkpoints import shapes

from .nets import GOLDEN, TINY, state_of, tiny_classifier, tiny_network

ADM = {**TINY, "channel_mult": (1, 1), "num_head_channels": 16, "learn_sigma": True, "attention_order": "legacy"}
DDPM = {"image_size": 16, "ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": (8,)}
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
T = torch.tensor([700, 700])


def adm_state():
    return state_of("tiny_nets", "adm_target.")


def saved(path, content):
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(
    ("keys", "name"),
    [("adm_afhq256", "afhq_dog"), ("ddpm_celebahq256", "celebahq_female"), ("dse_afhq256", "dse_cat2dog")],
)
def test_the_configured_networks_take_the_whole_published_list(keys, name):
    """Every tensor of the real files has its place and no place is left: names and shapes are equal."""
    published = json.loads((GOLDEN / f"{keys}_keys.json").read_text())["tensors"]
    assert {key: list(shape) for key, shape in shapes(name).items()} == published


def eps_of(model):
    denoiser = model.condition()
    return denoiser(X, denoiser.schedule.at(700)).eps


def test_schedules_of_own_networks(tmp_path):
    """ADM's cosine schedule of 4000 steps, against diffusers' and the formula of arXiv 2102.09672 (Eq. 17)."""
    path = saved(tmp_path / "a.pt", adm_state())
    alpha_bar = load_adm(path, **ADM, schedule="cosine", num_train_timesteps=4000).condition().schedule.alpha_bar
    theirs = DDPMScheduler(4000, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert (alpha_bar - theirs).abs().max() < 2e-6
    s = torch.tensor(0.008, dtype=torch.float64)
    f = [torch.cos((t / 4000 + s) / (1 + s) * torch.pi / 2) ** 2 for t in (0, 2001)]
    assert abs(alpha_bar[2000] - f[1] / f[0]) < 1e-12
    short = load_adm(path, **ADM, num_train_timesteps=500).condition().schedule.alpha_bar
    assert torch.allclose(short, alpha_bar_from_betas(linear_betas(500, 2e-4, 0.04)), rtol=1e-12)
    state = saved(tmp_path / "d.pth", state_of("tiny_nets", "ddpm_target."))
    model = load_ddpm(state, **DDPM, schedule="cosine", num_train_timesteps=4000)
    assert model.condition().schedule.num_train == 4000
    for wrong, message in (
        ({"schedule": "sqrt"}, "linear or cosine; got sqrt"),
        ({"num_train_timesteps": 0}, "from 2"),
    ):
        with pytest.raises(UserError, match=message):
            load_adm(path, **ADM, **wrong)


def test_learned_variance_is_the_official_fraction(tmp_path):
    denoiser = load_adm(saved(tmp_path / "a.pt", adm_state()), **ADM).condition()
    seen, fraction = denoiser.with_variance(X, denoiser.schedule.at(700))
    out = tiny_network("adm_target")(X, T)
    assert (seen.eps - out[:, :3]).abs().max() < 1e-5
    assert (fraction - (out[:, 3:] + 1) / 2).abs().max() < 1e-5


def test_ddpm_and_classifier(tmp_path):
    model = load_ddpm(saved(tmp_path / "d.pth", state_of("tiny_nets", "ddpm_target.")), **DDPM)
    assert (eps_of(model) - tiny_network("ddpm_target")(X, T)).abs().max() < 1e-5
    assert isinstance(model.condition(), NetworkDenoiser)
    shape = {**TINY, "channel_mult": (1, 1), "num_head_channels": 16, "classes": 2, "attention_order": "legacy"}
    features = load_classifier(saved(tmp_path / "c.pt", state_of("tiny_nets", "dse.")), **shape)
    assert (features(X, T) - tiny_classifier().features(X, T)).abs().max() < 3e-5


@pytest.mark.parametrize("layout", ["pipeline", "root"])
def test_diffusers_folders(layout, tmp_path):
    torch.manual_seed(0)
    unet = UNet2DModel(
        16, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2
    ).eval()
    scheduler = DDPMScheduler(500, beta_end=0.03)
    if layout == "pipeline":
        DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "net")
    else:  # as the oldest hub repositories have it
        unet.save_pretrained(tmp_path / "net")
        scheduler.save_pretrained(tmp_path / "net")
    denoiser = load_diffusers(str(tmp_path / "net")).condition()
    schedule = denoiser.schedule
    for t in (3, 400):
        assert (denoiser(X, schedule.at(t)).eps - unet(X, torch.tensor([t, t])).sample).abs().max() < 1e-5
    assert torch.allclose(schedule.alpha_bar, alpha_bar_from_betas(linear_betas(500, 1e-4, 0.03)), rtol=1e-12)
    assert torch.allclose(schedule.alpha_bar.float(), scheduler.alphas_cumprod, atol=1e-6)


def test_diffusers_networks_that_predict_something_else(tmp_path):
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (32,)}
    unet = UNet2DModel(16, **blocks).eval()
    DDPMPipeline(unet, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "v")
    denoiser = load_diffusers(str(tmp_path / "v")).condition()
    level, v = denoiser.schedule.at(700), unet(X, T).sample
    assert (denoiser(X, level).x0 - (level.a * X - level.b * v)).abs().max() < 1e-5
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "v" / "scheduler")
    load_diffusers.cache_clear()
    denoiser = load_diffusers(str(tmp_path / "v")).condition()
    level = denoiser.schedule.levels(4)[1]
    v = unet(X, torch.full((2,), 1000 * level.b)).sample
    assert level.b == pytest.approx(3 * 0.75 / (1 + 2 * 0.75))
    assert (denoiser(X, level).x0 - (X - level.b * v)).abs().max() < 1e-5
    DDPMPipeline(
        UNet2DModel(16, out_channels=6, **blocks), DDPMScheduler(prediction_type="v_prediction")
    ).save_pretrained(tmp_path / "six")
    with pytest.raises(UserError, match="predicts v_prediction with a variance, which is read only"):
        load_diffusers(str(tmp_path / "six"))
    with pytest.raises(UserError, match="no complete diffusers folder"):
        load_diffusers(str(tmp_path))


class Payload:
    """What an evil file would hold: unpickling it makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        import os

        return os.mkdir, (self.place,)


def test_a_pickle_that_needs_code_is_refused_and_not_run(tmp_path):
    place = tmp_path / "executed"
    for old in (True, False):
        torch.save({"x": Payload(str(place))}, tmp_path / "evil.pt", _use_new_zipfile_serialization=not old)
        with pytest.raises(UserError, match="running code that it contains, which is refused"):
            read_checkpoint(tmp_path / "evil.pt")
        assert not place.exists()


@pytest.mark.parametrize("name", ["whole.pt", "whole.safetensors", "old.pt"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(name, share, tmp_path):
    path = tmp_path / name
    if name == "old.pt":
        torch.save(adm_state(), path, _use_new_zipfile_serialization=False)
    else:
        saved(path, adm_state())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match="is empty; get it again" if not share else "damaged or no checkpoint; get it"):
        read_checkpoint(path)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"does not exist.*assets\.py status"):
        read_checkpoint(tmp_path / "nowhere.pt")
    for content in ({"epoch": 3}, [], torch.zeros(3), {}):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(UserError, match="holds no network weights"):
            read_checkpoint(tmp_path / "other.pt")


def test_wrong_architectures_are_recognised(tmp_path):
    adm = saved(tmp_path / "adm.pt", adm_state())
    ddpm = saved(tmp_path / "ddpm.pt", state_of("tiny_nets", "ddpm_target."))
    dse = saved(tmp_path / "dse.pt", state_of("tiny_nets", "dse."))
    with pytest.raises(
        UserError, match=r"missing \(conv_in\.bias, conv_in\.weight, conv_out\.bias, …\); \d+ unexpected"
    ) as caught:
        load_ddpm(adm, **DDPM)
    assert "a guided-diffusion (ADM) network of width 32 that reads 3 channels, with a learned variance" in str(
        caught.value
    )
    with pytest.raises(UserError, match=r"looks like a DDPM network .* of width 32"):
        load_adm(ddpm, **ADM)
    with pytest.raises(UserError, match="looks like EGSDE's domain classifier of width 32"):
        load_adm(dse, **ADM)
    with pytest.raises(
        UserError, match=r"of another shape \(.*input_blocks\.0\.0\.weight \(32, 3, 3, 3\) for \(64, 3, 3, 3\)"
    ):
        load_adm(adm, **{**ADM, "model_channels": 64})


def test_learn_sigma_must_fit(tmp_path):
    path = saved(tmp_path / "a.pt", adm_state())
    with pytest.raises(UserError, match="gives 6 channels and learn_sigma=false expects 3; set learn_sigma=true"):
        load_adm(path, **{**ADM, "learn_sigma": False})
    state = adm_state() | {"out.2.weight": torch.zeros(3, 32, 3, 3), "out.2.bias": torch.zeros(3)}
    fixed = saved(tmp_path / "b.pt", state)
    with pytest.raises(UserError, match="set learn_sigma=false"):
        load_adm(fixed, **ADM)
    assert isinstance(load_adm(fixed, **{**ADM, "learn_sigma": False}).condition(), NetworkDenoiser)


def test_a_four_channel_network(tmp_path):
    path = saved(tmp_path / "a.pt", adm_state() | {"input_blocks.0.0.weight": torch.zeros(32, 4, 3, 3)})
    with pytest.raises(UserError, match="that reads 4 channels"):
        load_adm(path, **ADM)


def test_nan_in_weights_is_named(tmp_path):
    state = adm_state()
    state["middle_block.1.norm.bias"] = torch.full((32,), float("nan"))
    with pytest.raises(UserError, match=r"holds NaN or Inf in middle_block\.1\.norm\.bias"):
        load_adm(saved(tmp_path / "a.pt", state), **ADM)


def test_leftover_and_missing_tensors(tmp_path):
    state = adm_state()
    del state["out.2.bias"]
    with pytest.raises(UserError, match=r"1 missing \(out\.2\.bias\); 1 unexpected \(label_emb\.weight\)"):
        load_adm(saved(tmp_path / "a.pt", state | {"label_emb.weight": torch.zeros(1000, 128)}), **ADM)


def test_loaded_once_per_process(tmp_path):
    path = saved(tmp_path / "a.pt", adm_state())
    assert load_adm(path, **ADM) is load_adm(path, **{**ADM, "channel_mult": [1, 1]})


def test_only_marked_weights_count_as_random(tmp_path):
    state = adm_state()
    assert not carries_mark(tmp_path)
    assert not carries_mark(tmp_path / saved(tmp_path / "a.pt", state))
