"""Weights and data of the real experiments: what is here, getting it, checking it.

    python scripts/assets.py status [cat2dog]         what is here, where the rest comes from; no network
    python scripts/assets.py fetch cat2dog            download what has a direct address; continues where it stopped
    python scripts/assets.py verify                   sha256 of what is here, against conf/assets.yaml, and what it is
    python scripts/assets.py unpack afhq.zip afhq     extract a data set's archive into data/afhq

Names are experiments or files. --checkpoints and --data say where files lie.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cyclediff.cli.errors import fail
from cyclediff.data import download
from cyclediff.data.assets import Asset, catalogue, file_sha256
from cyclediff.errors import UserError

ROOT = Path(__file__).parents[1]


def place(asset: Asset, arguments: argparse.Namespace) -> Path:
    """Where an asset belongs."""
    return (arguments.checkpoints if asset.kind == "checkpoints" else arguments.data) / asset.name


def status(assets: list[Asset], arguments: argparse.Namespace) -> None:
    """Print what is here, with addresses that can be copied."""
    console = Console(highlight=False, soft_wrap=True)
    for asset in assets:
        mark = "[green]here   [/]" if place(asset, arguments).exists() else "[red]missing[/]"
        console.print(f"{mark}  [bold]{asset.name}[/]  {asset.what}; for {', '.join(asset.used_by)}")
        if asset.kind == "checkpoints":
            console.print(f"         sha256 {asset.sha256 or 'not pinned yet'}; licence: {asset.licence}")
        if asset.note:
            console.print(f"         {asset.note}")
        for entry in asset.urls:
            console.print(f"         {entry['url']}  [dim]{entry.get('known', entry['from'])}[/]")


def fetch(assets: list[Asset], arguments: argparse.Namespace) -> None:
    """Download what is missing and has a direct address."""
    failures = []
    for asset in assets:
        path = place(asset, arguments)
        if path.exists():
            print(f"{asset.name} is here")
        elif not asset.direct_urls():
            ways = ", ".join([*asset.by_hand(), *([asset.note] if asset.note else [])]) or "no address known"
            failures.append(f"{asset.name} must be got by hand and put at {path}: {ways}")
        else:
            try:
                digest = fetch_one(asset, path)
            except UserError as error:
                failures.append(str(error))
            else:
                print(f"{asset.name}: sha256 {digest}" + ("" if asset.sha256 else ", pin it in conf/assets.yaml"))
    if failures:
        fail("\n       ".join(failures))


def fetch_one(asset: Asset, path: Path) -> str:
    """Download one file with a progress bar; returns its sha256."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task(asset.name, total=asset.size)
        return download.fetch(
            asset.direct_urls(),
            path,
            asset.sha256,
            lambda part: check_weights(part, path.suffix),
            lambda done, total: progress.update(bar, completed=done, total=total),
        )


def check_weights(part: Path, suffix: str) -> str:
    """Require that a file holds weights; returns what they seem to be."""
    from cyclediff.models.checkpoint import is_torchscript, read_checkpoint
    from cyclediff.models.weights import recognise
    from eval.random_mark import is_random

    if is_torchscript(part):
        return "a TorchScript network"
    state = read_checkpoint(part, suffix=suffix)
    random = "RANDOM WEIGHTS, " if is_random(state.values()) else ""
    return random + (recognise(state) or "weights of an unknown network")


def verify(assets: list[Asset], arguments: argparse.Namespace) -> None:
    """Check the files that are here."""
    wrong = []
    for asset in assets:
        path = place(asset, arguments)
        if asset.kind != "checkpoints" or not path.exists():
            continue
        digest = file_sha256(path)
        verdict = "not pinned" if not asset.sha256 else "as pinned" if digest == asset.sha256 else "NOT AS PINNED"
        try:
            what = check_weights(path, path.suffix)
        except UserError as error:
            what = f"unusable: {error}"
        print(f"{asset.name}\n  sha256 {digest} ({verdict})\n  {what}")
        if verdict == "NOT AS PINNED" or what.startswith("unusable"):
            wrong.append(asset.name)
    if wrong:
        fail(f"{', '.join(wrong)}: not usable; delete and get again")


def chosen(names: list[str]) -> list[Asset]:
    """Assets by their own names or by experiment."""
    assets = catalogue(ROOT / "conf")
    experiments = sorted({experiment for asset in assets.values() for experiment in asset.used_by})
    for name in names:
        if name not in assets and name not in experiments:
            raise UserError(f"there is no asset or experiment {name}; choose from {', '.join([*experiments, *assets])}")
    return [a for n, a in assets.items() if not names or n in names or set(a.used_by) & set(names)]


def main() -> None:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["status", "fetch", "verify", "unpack"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    try:
        if arguments.command == "unpack":
            if len(arguments.names) != 2 or not Path(arguments.names[0]).is_file():
                raise UserError("unpack needs an archive that exists and a data set's name: unpack afhq.zip afhq")
            (asset,) = chosen(arguments.names[1:])
            count = download.unpack(Path(arguments.names[0]), place(asset, arguments))
            print(f"{count} files in {place(asset, arguments)}")
        elif arguments.command == "fetch" and not arguments.names:
            raise UserError("say what to fetch: an experiment such as cat2dog, or file names")
        else:
            {"status": status, "fetch": fetch, "verify": verify}[arguments.command](chosen(arguments.names), arguments)
    except UserError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or 'writing'}: {error.strerror}; make room or make it writable")
    except KeyboardInterrupt:
        fail("stopped; what has arrived is kept, and the same command continues", code=130)


if __name__ == "__main__":
    main()
