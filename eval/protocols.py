"""How numbers are made, under names: what conf/protocol says, for use without Hydra."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from eval.metrics.clip import ClipScorer, is_described, is_openai, open_clip_scorer
from eval.metrics.cmmd import cmmd_features
from eval.metrics.features import Extractor
from eval.metrics.inception import CLEAN_FID, PYTORCH_FID, clean_fid, pytorch_fid
from eval.metrics.lpips import Lpips, Rule, lpips_network
from eval.metrics.own import OwnMetric
from eval.metrics.pets import pets_judge
from eval.metrics.pie_bench import CLEAN, OFFICIAL, PieBench
from eval.metrics.sets import networks_of
from eval.metrics.structure import Structure, structure_network
from eval.metrics.vits import cls_features

PETS = Path(__file__).parents[1] / "cyclediff" / "pets" / "weights"
JUDGE = PETS / "judge.safetensors"
SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"
DINO_B8, DINO_S16 = "dino_vitbase8_pretrain.pth", "dino_deitsmall16_pretrain.pth"
DINOV2, DINOV2_MODEL = "dinov2_vitl14_pretrain.pth", "vit_large_patch14_dinov2.lvd142m"
CMMD_MODEL = "ViT-L-14-336-quickgelu"


@dataclass(frozen=True)
class Protocol:
    """How numbers are made.

    Args:
        name: of the protocol, with its version: pets/2.
        size: height and width at which images are compared; None takes them as they are.
        resize: the filter that brings source images to that size, bilinear or bicubic.
        features: of FID and KID; None leaves them out.
        reference: what the reference images are, for protocol strings.
        judge: weights of the judge of pets, a synthetic benchmark, for attribute errors; None for photos.
        clip: scores edits by their texts; None leaves that out.
        reference_resize: whether reference images are brought to that size, too.
        infinity: whether FID is extrapolated to infinitely many images, too.
        lpips: a learned distance to the source; None leaves it out.
        kid_subset: images of a subset, for KID as the mean over 100 seeded subsets, too; None leaves that out.
        sets: metrics of sets, keys of `sets.SETS`.
        set_features: by network, what those need besides `features`.
        pie: PIE-Bench's rules and their networks; None for other edits.
        emu_edit: features of DINO for Emu Edit's metrics, which then are all; None for others.
        own: by key, metrics from outside of this project.
        shape: how images that keep their shape were prepared, for protocol strings: "native-size", "pad512/bilinear";
            "" for squares, and where it is not known. With it, `size` is None.
    """

    name: str
    size: int | None
    resize: str
    features: Extractor | None
    reference: str
    judge: Path | None = None
    clip: ClipScorer | None = None
    reference_resize: bool = False
    infinity: bool = False
    lpips: Lpips | None = None
    kid_subset: int | None = None
    sets: Sequence[str] = ("fid", "kid")
    set_features: Mapping[str, Extractor] = field(default_factory=dict)
    pie: PieBench | None = None
    emu_edit: Extractor | None = None
    own: Mapping[str, OwnMetric] = field(default_factory=dict)
    shape: str = ""

    @property
    def extractors(self) -> dict[str, Extractor]:
        """The networks of set metrics by name."""
        return ({} if self.features is None else {"features": self.features}) | dict(self.set_features)


@dataclass(frozen=True)
class Recipe:
    """A protocol whose networks are not loaded yet.

    Args:
        name: of the protocol, with its version.
        size: as in `Protocol`.
        resize: as in `Protocol`.
        reference_resize: as in `Protocol`.
        features: (path, device) → extractor.
        weights: the features' file, by its published name or in the project.
        judge: as in `Protocol`.
        clip: where open_clip finds the network, and its name there; None for a folder, which says it itself.
        infinity: as in `Protocol`.
        lpips: file of LPIPS' network.
        rules: of PIE-Bench.
        dino: file of DINO's network, of PIE-Bench's structure distance or of Emu Edit's metrics.
    """

    name: str
    size: int | None
    resize: str
    reference_resize: bool = True
    features: Callable[..., Extractor] | None = None
    weights: str | Path = ""
    judge: Path | None = None
    clip: tuple[str, str | None] | None = None
    infinity: bool = False
    lpips: str | None = None
    rules: tuple[str, ...] = ()
    dino: str | None = None


VIT_L14 = ("openai", "ViT-L-14-quickgelu")
RECIPES = {
    "cyclediffusion": Recipe("cyclediffusion/1", 256, "bilinear", True, clean_fid, CLEAN_FID, infinity=True),
    "egsde": Recipe("egsde/1", 256, "bicubic", False, pytorch_fid, PYTORCH_FID, infinity=True),
    "pets": Recipe("pets/2", 64, "bilinear", True, pets_judge, JUDGE, JUDGE),
    "pets_edit": Recipe("pets_edit/2", 64, "bilinear", judge=JUDGE, clip=(str(PETS / "clip"), None)),
    "zero_shot": Recipe("zero_shot/2", None, "bilinear", clip=("openai", "ViT-B-32-quickgelu")),
    "pie_bench": Recipe(
        CLEAN, None, "bilinear", clip=VIT_L14, lpips=SQUEEZENET, rules=(CLEAN, OFFICIAL), dino=DINO_B8
    ),
    "pie_bench_official": Recipe(
        OFFICIAL, None, "bilinear", clip=VIT_L14, lpips=SQUEEZENET, rules=(OFFICIAL,), dino=DINO_B8
    ),
    "emu_edit": Recipe("emu_edit/1", None, "bilinear", clip=("openai", "ViT-B-32-quickgelu"), dino=DINO_S16),
}  # fmt: skip


def load_protocol(
    name: str,
    reference: str | None,
    checkpoints: Path,
    device: str = "cpu",
    weights: Path | None = None,
    clip: str | None = None,
    clip_model: str | None = None,
    sets: Sequence[str] | None = None,
    cmmd_clip: str = "openai",
) -> Protocol:
    """A named protocol with its networks.

    Args:
        name: one of `RECIPES`.
        reference: what the reference images are, for protocol strings; None for no FID and KID.
        checkpoints: folder of files under their published names.
        device: where networks run.
        weights: the features' file, if not there.
        clip: file, folder or hub id of CLIP, if not the recipe's.
        clip_model: open_clip's name of the architecture of a file of CLIP. OpenAI's own files have the recipe's.
        sets: metrics of sets; None for FID and KID.
        cmmd_clip: file, folder or hub id of CMMD's CLIP ViT-L/14@336.

    Raises:
        ValueError: if there is no such protocol, a file is missing or wrong, or it is not known which network it is.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no protocol {name}; choose one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if sets is not None and (reference is None or recipe.features is None):
        raise ValueError(
            f"sets are compared with a reference, and protocol {recipe.name} has none here; leave out sets"
        )
    sets = ("fid", "kid") if sets is None else sets
    wanted, features, others = networks_of(sets), None, {}
    if recipe.features is not None and reference is not None:
        if "features" in wanted:
            features = recipe.features(str(weights or checkpoints / recipe.weights), device=device)
        if "dinov2" in wanted:
            others["dinov2"] = cls_features(str(checkpoints / DINOV2), DINOV2_MODEL, device=device)
        if "cmmd" in wanted:
            others["cmmd"] = cmmd_features(cmmd_clip, None if is_described(cmmd_clip) else CMMD_MODEL, device)
    found = Protocol(
        recipe.name, recipe.size, recipe.resize, features, reference or "", recipe.judge,
        _clip(recipe, clip, clip_model, device),
        recipe.reference_resize, recipe.infinity, _lpips(recipe, checkpoints, device), sets=sets, set_features=others,
    )  # fmt: skip
    if recipe.rules:
        official = _lpips(recipe, checkpoints, device, "torchmetrics") if OFFICIAL in recipe.rules else None
        return replace(found, pie=PieBench(recipe.rules, _structure(checkpoints, device), found.lpips, official))
    if recipe.dino:
        file = str(checkpoints / recipe.dino)
        return replace(found, emu_edit=cls_features(file, "vit_small_patch16_224.dino", 224, 256, device))
    return found


def _structure(checkpoints: Path, device: str) -> Structure | None:
    """The network of structure distances where its file is there; it is an extra, as LPIPS is."""
    file = checkpoints / DINO_B8
    return structure_network(str(file), device=device) if file.is_file() else None


def _clip(recipe: Recipe, path: str | None, model: str | None, device: str) -> ClipScorer | None:
    """The network that scores texts, where the protocol has it."""
    if recipe.clip is None:
        if path or model:
            raise ValueError(f"protocol {recipe.name} scores no texts; leave out --clip and --clip-model")
        return None
    path = path or recipe.clip[0]
    if model and is_described(path):
        raise ValueError(f"{path} has a configuration that says which network it is; leave out --clip-model {model}")
    return open_clip_scorer(path, model or (recipe.clip[1] if is_openai(path) else None), device)


def _lpips(recipe: Recipe, checkpoints: Path, device: str, rule: Rule = "lpips") -> Lpips | None:
    """LPIPS where the protocol has it and its file is there; it is an extra."""
    file = checkpoints / (recipe.lpips or "")
    return lpips_network(str(file), "squeeze", device, rule) if recipe.lpips and file.is_file() else None
