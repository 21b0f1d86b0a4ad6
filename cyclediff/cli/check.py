"""`python run.py check experiment=X`: does each method give an image back where the target is the source?

One image is encoded and decoded by each method that should reconstruct. Nothing is kept but the prepared image.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table

from cyclediff.cli import doctor
from cyclediff.cli.arguments import require_texts
from cyclediff.cli.errors import fail
from cyclediff.errors import UserError
from cyclediff.studies.context import Context, get_class
from cyclediff.studies.round_trip import RoundTrip
from eval import terminal

STUDIES = ("translate", "edit")  # whose methods can be asked for a source as target


def main(config_dir: str, overrides: Sequence[str]) -> None:
    """Print a line for each method; exit code 1 if one gives back less than it should.

    Args:
        config_dir: the folder of the configuration.
        overrides: settings, as for a run; several methods with commas between.

    Raises:
        UserError: if a run with these settings could not begin, or has nothing to check.
    """
    table = Table("method", "should reconstruct", "PSNR, dB", "at least", "", box=box.SIMPLE_HEAD)
    low = []
    for method, promised, found in round_trips(config_dir, overrides):
        if found is None:
            table.add_row(method, "no", "–", "–", "nothing to check")
            continue
        low += [method] if found.is_low else []
        codec = "" if found.codec_psnr is None else f" (the autoencoder itself: {found.codec_psnr:.1f} dB)"
        table.add_row(method, promised, f"{found.psnr:.1f}", f"{found.bound:g}", found.verdict + codec)
    terminal.console().print(table)
    if low:
        fail(f"{', '.join(low)}: less comes back than should; check weights, steps and dtype", code=1)


def round_trips(config_dir: str, overrides: Sequence[str]) -> Iterator[tuple[str, str, RoundTrip | None]]:
    """Each method's name, what it promises, and what came back of the first image."""
    settings = [setting for setting in overrides if not setting.startswith("method=")]
    methods = [name for setting in overrides if setting.startswith("method=") for name in setting[7:].split(",")]
    if not any(setting.startswith("data.limit=") for setting in settings):
        settings.append("data.limit=1")
    base = doctor.compose_config(config_dir, settings)
    for method in methods or str(base.hydra.sweeper.params.get("method", base.method.name)).split(","):
        yield method, *_round_trip(doctor.compose_config(config_dir, [*settings, f"method={method}"]), config_dir)


def _round_trip(cfg: Any, config_dir: str) -> tuple[str, RoundTrip | None]:
    from cyclediff.runtime.execution import noise_device, pick_device
    from cyclediff.runtime.study import Execution
    from cyclediff.studies.round_trip import promise

    if cfg.study.name not in STUDIES:
        raise UserError(f"check works on study=translate and study=edit; got study={cfg.study.name}")
    require_texts(cfg)
    study = get_class(cfg.study._target_)(Context(cfg, (config_dir,), config_dir))
    study.needs()
    study.items()
    device = pick_device(cfg.device)
    study.load(device)
    found = study.round_trip(Execution(cfg.seed, 1, device, noise_device(cfg, device)))
    return promise(study.method) or "no", found
