"""DiffuseIT against its official code: features, losses and their gradients, CLIP losses, whole runs, colours."""

import pytest
import torch
from torch import Tensor

import baselines.diffuseit as module
from baselines.diffuseit import DiffuseIT, Last, diffuseit, look, moved
from cyclediff.diffusion.clip_views import Embedded, agreement, cut, target_embedding, unit, whole
from cyclediff.diffusion.colour import in_colours_of, match_colours, transfer_matrix
from cyclediff.diffusion.energies import gradient
from cyclediff.diffusion.guide import Guide, guide_of
from cyclediff.diffusion.steps import beta, transitions
from cyclediff.diffusion.vit_losses import cls_distance, contrast, self_similarity, structure
from cyclediff.models.vit import keys_and_tokens, resized

from .guided_nets import CLIPS, NETS, normalized, tiny_vit
from .nets import RecordedNoise, cases, golden, tiny_denoiser

NAME, CODE = "diffuseit", "DiffuseIT"
DATA = golden(NAME)
CASES = list(cases(NAME))


class OneImage(RecordedNoise):
    """A recording of a batch of one image."""

    def rows(self, start: int, stop: int) -> "OneImage":
        assert (start, stop) == (0, 1)
        return self


def pm1(u8: Tensor) -> Tensor:
    return u8.float().movedim(2, 0)[None] / 127.5 - 1


SOURCE, TARGET = (pm1(DATA[f"loop.{key}_u8"]) for key in ("src", "trg"))


def method(case: str, **changed) -> DiffuseIT:
    config = cases(NAME)[case]
    settings = {
        "guided_by": "image" if config["image_guided"] else "text",
        "timesteps": config["timestep_respacing"],
        "t0": int(config["timestep_respacing"]) - config["skip_timesteps"],
        "lambda_ssim": config["lambda_ssim"],
        "lambda_contra": config["lambda_contra_ssim"],
        "lambda_dir_cls": config["lambda_dir_cls"],
        "diff_iter": config["diff_iter"],
        "lambda_trg": config["lambda_trg"],
        "lambda_l2_trg": config["l2_trg_lambda"],
        "lambda_clip": config["clip_guidance_lambda"],
        "lambda_range": config["range_lambda"],
        "cuts": config["aug_num"],
        "noise_aug_all": config["use_noise_aug_all"],
        "prog_contrast": config["use_prog_contrast"],
        "regularize_content": config["regularize_content"],
        "range_restart": config["use_range_restart"],
        "resample": config["resample_num"],
        "ddim": config["ddim"],
        "match_colours": config["use_colormatch"],
    }
    return DiffuseIT(**settings | {"vit": tiny_vit(), "clip": CLIPS} | changed)


def denoiser():
    return tiny_denoiser("adm_source", torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def guide(case: str) -> Guide:
    if cases(NAME)[case]["image_guided"]:
        return guide_of(SOURCE, tiny_vit(), target=TARGET)
    texts = [Embedded(*(DATA[f"clip.{clip.name}.text_raw_{side}"][None] for side in ("src", "trg"))) for clip in CLIPS]
    return guide_of(SOURCE, tiny_vit(), CLIPS, texts)


@pytest.fixture
def recorded_cuts(monkeypatch):
    """Replays the cuts of a case."""

    def replay(case: str) -> None:
        if f"{case}.cuts_params" in DATA:
            rows = list(DATA[f"{case}.cuts_params"].split(cases(NAME)[case]["aug_num"]))
            monkeypatch.setattr(module, "draw_cuts", lambda noise, images, n: rows.pop(0)[None])

    return replay


def levels_of(case: str):
    how = method(case)
    return denoiser().schedule.levels(how.timesteps, "respaced")[-how.t0 - 1 :]


def test_vision_transformer(parity):
    data, network = golden(NETS), tiny_vit().network.args[0]
    out = keys_and_tokens(network, 11, data["vit_check.x"])
    parity(CODE, "vision transformer (DINO's)", out[:, 1], data["vit_check.tokens_last_block"])
    parity(CODE, "vision transformer (DINO's)", network.norm(out[:, 1, 0]), data["vit_check.out_cls_after_norm"])
    parity(
        CODE, "vision transformer (DINO's)", keys_and_tokens(network, 0, data["vit_check.x"])[:, 1],
        data["vit_check.tokens_block0"],
    )  # fmt: skip


def test_features(parity):
    prepared, (keys, cls) = tiny_vit().prepare(DATA["x_src"]), tiny_vit()(DATA["x_src"])
    parity(CODE, "features: prepared image, keys, self-similarity, CLS", prepared, DATA["feat.pre"])
    parity(CODE, "features: prepared image, keys, self-similarity, CLS", keys, DATA["feat.keys"])
    parity(CODE, "features: prepared image, keys, self-similarity, CLS", cls, DATA["feat.cls"])
    parity(CODE, "features: prepared image, keys, self-similarity, CLS", self_similarity(keys), DATA["feat.self_sim"])


def test_sizes_of_images_that_are_not_square():
    rows = DATA["feat.resize224_max480_examples"].tolist()
    assert [resized(h, w, 224) for h, w, *_ in rows] == [tuple(row[2:]) for row in rows]


def features_of(name: str):
    keys, cls = tiny_vit()(DATA[name])
    return keys, cls, self_similarity(keys)


KEYS, CLS, SIMILARITY = features_of("x_src")
LOSSES = {  # x → (n,); the official code sums over the batch, or takes the mean
    "ssim": (lambda x: structure(tiny_vit()(x).keys, SIMILARITY[: len(x)]), sum),
    "contra": (lambda x: contrast(tiny_vit()(x).keys, KEYS[: len(x)]), torch.mean),
    "dir_cls": (lambda x: -cls_distance(tiny_vit()(x).cls, features_of("x_prev")[1][: len(x)]), sum),
    "trg_cls": (lambda x: cls_distance(tiny_vit()(x).cls, features_of("x_trg")[1][: len(x)]), sum),
    "range": (lambda x: (x - x.clamp(-1, 1)).square().mean(dim=(1, 2, 3)), sum),
    "l2_trg": (lambda x: (x - DATA["x_trg"][: len(x)]).square().mean(dim=(1, 2, 3)), torch.mean),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, batch, parity):
    loss, over_batch = LOSSES[name]
    x = DATA["x_out"][:batch]
    parity(CODE, "losses on features, range and pixels", over_batch(loss(x)), DATA[f"loss.{name}.b{batch}"])
    slope = gradient(lambda x: over_batch(loss(x))[None], x)
    parity(CODE, "their gradients by the image", slope, DATA[f"loss.{name}.grad_b{batch}"], 1e-3, relative=True)


def test_contrast_of_random_tokens(parity):
    q, k = DATA["patchloss.q"][None], DATA["patchloss.k"][None]
    parity(CODE, "contrast of keys", contrast(q, k)[0], DATA["patchloss.mean"])
    slope = gradient(lambda q: contrast(q, k), q)[0]
    parity(CODE, "its gradient by the keys", slope, DATA["patchloss.grad_q"], 1e-3, relative=True)


@pytest.mark.parametrize("total", ["text_dir", "text_nodir", "image_dir", "image_nodir"])
def test_weighted_sum_of_a_step(total, parity):
    """The default weights; no noise, so that all losses see one image; without the losses that are not the ViT's."""
    how = DiffuseIT("image", "100", 60, tiny_vit(), lambda_l2_trg=0, lambda_range=0)
    frac = {"text_dir": 2, "text_nodir": 0.5}.get(total, 1)
    target = features_of("x_trg")[1][:1] if total.startswith("image") else None
    led = Guide(KEYS[:1], SIMILARITY[:1], CLS[:1], target=DATA["x_trg"][:1], target_cls=target)
    index = how.diff_iter + total.endswith("_dir")
    level, last = denoiser().schedule.at(0), Last(features_of("x_prev")[1][:1], torch.zeros(1))
    x = DATA["x_out"][:1]

    def energy(x):
        found, _ = module.losses(x, x, level, index, led, last, how, RecordedNoise([]))
        found["contra"] = frac * found["contra"]
        return torch.stack(list(found.values())).sum(dim=0)

    parity(CODE, "weighted sum with default weights", energy(x)[0], DATA[f"vit_total.{total}"])
    slope = gradient(energy, x)
    parity(CODE, "its gradient by the image", slope, DATA[f"vit_total.{total}.grad"], 1e-3, relative=True)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.name)
def test_where_clip_features_should_point(clip, parity):
    raw = [DATA[f"clip.{clip.name}.text_raw_{side}"] for side in ("trg", "src")]
    image = clip.images(whole((DATA["x_src"][:1] + 1) / 2, clip.size))
    what = "CLIP: embeddings of texts and source, target embedding"
    parity(CODE, what, unit(raw[0].mean(dim=0))[None], DATA[f"clip.{clip.name}.E_T"])
    parity(CODE, what, unit(image)[0], DATA[f"clip.{clip.name}.E_I0"])
    parity(CODE, what, target_embedding(*raw, image), DATA[f"clip.{clip.name}.tgt"])


@pytest.mark.parametrize("kind", ["ncuts0", "cuts"])
def test_clip_loss(kind, parity):
    targets = [DATA[f"clip.{clip.name}.tgt"] for clip in CLIPS]
    cuts = [rows[None] for rows in DATA["clip.cuts_params"].split(3)] if kind == "cuts" else None
    x = DATA["x_out"][:1]

    def loss(x):
        return -agreement(CLIPS, targets, (x + 1) / 2, cuts)

    parity(CODE, "CLIP loss, whole and in cuts", loss(x)[0], DATA[f"clip.loss_{kind}"])
    slope = gradient(loss, x)
    parity(CODE, "its gradient by the image", slope, DATA[f"clip.loss_{kind}.grad"], 1e-3, relative=True)


def test_cuts(parity):
    rows = DATA["clip.cuts_params"][:3][None]
    shown = normalized(cut((DATA["x_out"][:1] + 1) / 2, rows, CLIPS[0].size))
    parity(CODE, "random cuts", shown, DATA["clip.cuts_images_first_model"])


@pytest.mark.parametrize("case", CASES)
def test_levels_and_betas(case, parity):
    how, data = method(case), {key: DATA[f"{case}.{key}"] for key in ("alphas_cumprod", "betas", "timestep_map")}
    levels = denoiser().schedule.levels(how.timesteps, "respaced")
    assert [level.t for level in levels[-2::-1]] == data["timestep_map"].tolist()
    alphas = torch.tensor([level.a**2 for level in levels[-2::-1]], dtype=torch.float64)
    betas = torch.tensor([beta(*step) for step in transitions(levels)[::-1]], dtype=torch.float64)
    parity(CODE, "spaced alpha_bar and beta", alphas, data["alphas_cumprod"], 1e-9)
    parity(CODE, "spaced alpha_bar and beta", betas, data["betas"], 1e-9)


@pytest.mark.parametrize("case", CASES)
def test_each_step_from_its_recorded_state(case, parity, recorded_cuts):
    """Gradient, losses, prediction and next state, with what the step before left."""
    config, how, led = cases(NAME)[case], method(case), guide(case)
    found = {key.removeprefix(f"{case}.step_"): DATA[key] for key in DATA if key.startswith(f"{case}.step_")}
    steps = transitions(denoiser().schedule.levels(how.timesteps, "respaced"))[::-1]
    if not config["image_guided"]:
        for clip, target in zip(CLIPS, led.clip, strict=True):
            parity(
                CODE, "CLIP: embeddings of texts and source, target embedding", target, DATA[f"{case}.tgt.{clip.name}"]
            )
    last = Last(led.cls, led.agreed if led.agreed is not None else torch.zeros(1))
    recorded_cuts(case)
    noise = noise_of_steps(case)
    for k, index in enumerate(found["i"].tolist()):
        x, (t, s) = found["x_in"][k : k + 1], steps[index]
        factor = module.content_factor(last.agreed, how) if led.clip else torch.ones(1)
        assert factor.item() == found["frac_cont"][k]
        assert (index > how.diff_iter) == found["use_dir"][k]
        now = look(x, denoiser(), t, s, index, led, last, how, RecordedNoise([]))
        seen = now.losses
        parity(CODE, "gradient of each step", now.slope, found["grad"][k : k + 1], 1e-3, relative=True)
        of_vit = sum(seen[key][0] for key in ("ssim", "contra", "dir_cls", "trg") if key in seen)
        parity(CODE, "losses of each step", of_vit, found["vit_loss"][k])
        parity(CODE, "losses of each step", seen["range"][0], found["range_loss_weighted"][k])
        if led.clip:
            parity(CODE, "losses of each step", seen["clip"][0] / how.lambda_clip, found["clip_loss"][k])
        flag = config["use_range_restart"] and index < how.t0 - 1 and seen["range"].item() > how.range_limit
        assert flag == found["flag"][k]
        if not how.ddim:
            parity(CODE, "predicted x0 of each step", now.seen.x0, found["pred"][k : k + 1])
        if not how.ddim and index > 0:
            parity(CODE, "variance of each step", now.sigma**2, found["variance"][k : k + 1])
        if how.ddim or index > 0:
            after = moved(x, now, t, s, 0.0 if how.ddim else noise[k], how.ddim)
            parity(CODE, "state after each step", after, found["sample"][k : k + 1])
        last = now.last


def noise_of_steps(case: str) -> list[Tensor]:
    """The noise of each step, from all draws: to start, in steps, and between those of the first index."""
    draws, index = list(DATA[f"{case}.noise"].split(1)), DATA[f"{case}.step_i"].tolist()
    flags, found = DATA[f"{case}.step_flag"].tolist(), []
    draws.pop(0)
    for k, i in enumerate(index):
        found.append(draws.pop(0))
        made_again = k + 1 < len(index) and i == index[0] == index[k + 1]
        if made_again or (flags[k] and i > 0):
            draws.pop(0)
    assert not draws
    return found


@pytest.mark.parametrize("case", CASES)
def test_whole_runs(case, parity, recorded_cuts):
    recorded_cuts(case)
    draws = list(DATA[f"{case}.noise"].split(1))
    used = draws[:1] if method(case).ddim else draws[:-1]  # the official code also draws what it does not use
    noise = OneImage(used)
    how = method(case, max_restarts=1000) if cases(NAME)[case]["use_range_restart"] else method(case)
    out = diffuseit(SOURCE, denoiser(), levels_of(case), guide(case), how, noise)
    assert not noise.draws
    parity(CODE, "results of text_a … image_d_restart", out, DATA[f"{case}.final_pred_pm1"], 1e-3)
    saved = in_colours_of(TARGET, out) if how.match_colours else out
    truncated = (255 * (saved[0].movedim(0, 2) + 1) / 2 + 1e-3).clamp(0, 255).to(torch.uint8)
    apart = (truncated.int() - DATA[f"{case}.saved_u8"].int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 0.02


def test_colours(parity):
    image, reference = DATA["colour.src_u8"], DATA["colour.ref_u8"]
    x, y = DATA["colour.src_norm"], DATA["colour.ref_norm"]
    matrix = transfer_matrix(x.flatten(0, 1).mT.cov(), y.flatten(0, 1).mT.cov())
    parity(CODE, "colour matching: matrix", matrix, DATA["colour.transfer_mat"], 1e-6)
    made = match_colours(image, reference)
    assert made.dtype == torch.uint8
    parity(CODE, "colour matching: grey levels", made, DATA["colour.result_u8"], 0.0)
