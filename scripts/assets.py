"""Weights and data of the real experiments: what is here, getting it, checking it.

    python scripts/assets.py status [cat2dog]         what is here, where the rest comes from; no network
    python scripts/assets.py fetch cat2dog            get all that a program can get, and say what needs your hands
    python scripts/assets.py verify                   checksums, sizes and counts of what is here, and what it is
    python scripts/assets.py unpack afhq.zip afhq     extract a data set's archive into data/afhq, and count it

Names are experiments, files or repositories of the Hugging Face hub. --checkpoints and --data say where files lie. The
same command continues a download that was stopped.
"""

import argparse
import shutil
import tarfile
import textwrap
import zipfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cyclediff.cli.errors import fail
from cyclediff.data import archives, download, hub
from cyclediff.data.assets import Asset, Pin, catalogue, file_sha256
from cyclediff.errors import UserError
from eval import terminal

ROOT = Path(__file__).parents[1]
INDENT = " " * 9
GUESS = "the size fits; that is a guess and no check, nobody has published a sha256"


def place(asset: Asset, arguments: argparse.Namespace) -> Path:
    """Where an asset belongs; a repository of the hub has its place in the hub's cache."""
    return (arguments.data if asset.kind == "datasets" else arguments.checkpoints) / asset.name


def is_here(asset: Asset, arguments: argparse.Namespace) -> bool:
    """Whether an asset is where it belongs."""
    if asset.kind == "hub":
        return hub.cached_folder(asset.name, asset.files) is not None
    return place(asset, arguments).exists()


def needs_hands(asset: Asset) -> bool:
    """Whether only a person can get an asset."""
    return asset.kind != "hub" and not asset.direct_urls()


def say(text: str, indent: str = INDENT, hanging: str = "") -> None:
    """Print a paragraph within the terminal's width; what cannot be broken, such as an address, stays whole."""
    width = min(shutil.get_terminal_size().columns, 120)
    print(textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent + hanging,
                        break_long_words=False, break_on_hyphens=False))  # fmt: skip


def status(assets: list[Asset], arguments: argparse.Namespace) -> None:
    """Print what is here, with addresses that can be copied."""
    console = Console(highlight=False, soft_wrap=True)
    for asset in assets:
        mark = "[green]here   [/]" if is_here(asset, arguments) else "[red]missing[/]"
        console.print(f"\n{mark}  [bold]{escape(asset.name)}[/]")
        say(f"{asset.what}; for {', '.join(asset.used_by)}")
        if asset.kind == "datasets" and is_here(asset, arguments):
            for wrong in archives.miscounts(place(asset, arguments), asset.holds):
                say(f"incomplete or another version: {wrong}")
        if asset.note:
            say(f"note: {asset.note}")
        say(f"licence: {asset.licence}")
        pins = [f"{name}: {pin.label()}" for name, pin in asset.pins.items()]
        if asset.kind != "hub" and not pins:
            pins = [asset.pin.label() if asset.pin else "sha256 not pinned yet"]
            pins = [f"{asset.archive}: {pin}" if asset.archive else pin for pin in pins]
        for pin in pins or ["sha256 not pinned yet"]:
            say(pin, hanging="  ")
        if asset.kind == "hub":
            print(f"{INDENT}https://huggingface.co/{asset.name}")
        for entry in asset.urls:
            print(f"{INDENT}{entry['url']}")
            about = "for a browser; " if needs_hands(asset) or entry["url"] in asset.by_hand() else ""
            say(f"{about}from {entry['from']}" + (f"; {entry['known']}" if "known" in entry else ""), INDENT + "    ")
    missing = [asset for asset in assets if not is_here(asset, arguments)]
    by_hand = sum(needs_hands(asset) for asset in missing)
    print()
    say(f"{len(assets) - len(missing)} of {len(assets)} are here; `fetch` gets {len(missing) - by_hand}, and {by_hand} "
        "must be got by hand", "")  # fmt: skip


def fetch(assets: list[Asset], arguments: argparse.Namespace) -> None:
    """Download what is missing, after saying what a person must get."""
    missing = [asset for asset in assets if not is_here(asset, arguments)]
    by_hand = [asset for asset in missing if needs_hands(asset)]
    wanted = [asset for asset in missing if not needs_hands(asset)]
    sizes = [asset.pin.size if asset.pin else None for asset in wanted]
    known = f"{sum(size or 0 for size in sizes) / 1e9:.1f} GB" if any(sizes) else "size not known"
    more = " and more" if any(sizes) and None in sizes else ""
    amount = f"{len(wanted)} ({known}{more})" if wanted else "0"
    say(f"{len(assets) - len(missing)} of {len(assets)} are here. To download: {amount}. By hand: {len(by_hand)}.", "")
    for asset in by_hand:
        print(f"\nby hand  {asset.name}")
        say(f"{asset.what}; {asset.note}" if asset.note else asset.what)
        for address in asset.by_hand():
            print(f"{INDENT}open    {address}")
        print(f"{INDENT}put it  {place(asset, arguments).absolute()}")
    failures = []
    for asset in wanted:
        print(f"\n{asset.name}", flush=True)
        try:
            fetch_asset(asset, arguments)
        except UserError as error:
            say(f"failed: {error}", hanging="  ")
            failures.append(asset.name)
    rest = [f"failed: {', '.join(failures)}"] if failures else []
    rest += [f"must be got by hand: {', '.join(asset.name for asset in by_hand)}"] if by_hand else []
    print()
    if rest:
        fail(f"{len(failures) + len(by_hand)} of {len(assets)} are not here; {'; '.join(rest)} (see above)")
    print("all are here")


def fetch_asset(asset: Asset, arguments: argparse.Namespace) -> None:
    """Get a file, a data set or a repository, and say what is known of it.

    Raises:
        UserError: if it cannot be had, or is not what it should be.
    """
    path = place(asset, arguments)
    if asset.kind == "hub":
        folder = hub.fetch_repository(asset.name, asset.files)
        say(f"in {folder}")
        if report_pins(asset, folder):
            raise UserError(f"a file of {asset.name} is not as pinned; delete {folder.parents[1]} and get it again")
    elif asset.archive:
        archive = arguments.data / asset.archive
        digest = file_sha256(archive) if archive.exists() else download_file(asset, archive, require_archive)
        count = unpack(archive, digest, asset, path)
        say(f"{count} files in {path}; {archive} can be deleted")
    else:
        digest = download_file(asset, path, lambda part: check_weights(part, path.suffix))
        say(verdict(asset.pin, path, digest, asset.direct_urls())[1], hanging="  ")


def download_file(asset: Asset, path: Path, check: download.Check) -> str:
    """Download one file with a progress bar; returns its sha256."""
    columns = TextColumn("{task.description}"), BarColumn(20), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task(INDENT, total=asset.pin.size if asset.pin else None)
        return download.fetch(
            asset.direct_urls(),
            path,
            asset.pin,
            check,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )


def verdict(pin: Pin | None, path: Path, sha256: str, urls: Sequence[str] = ()) -> tuple[bool, str]:
    """Whether a file must not be used, and what its bytes say."""
    fault = pin.fault(path.stat().st_size, sha256) if pin else None
    if pin and fault:
        doubt = "" if pin.strict else "WARNING, not refused because that pin may be wrong itself: "
        return pin.strict, f"{doubt}{fault}" if doubt else f"NOT AS PINNED: {fault}"
    if pin and pin.sha256:
        return False, f"sha256 as pinned (by {pin.source})"
    known = f"; {GUESS}" if pin else ", not pinned"
    plain = "; it came over plain http: compare it with a copy that you trust"
    return False, f"sha256 {sha256}{known}{plain if any(url.startswith('http:') for url in urls) else ''}"


def report_pins(asset: Asset, folder: Path) -> bool:
    """Print what is known of the files of a repository or folder; returns whether one must not be used."""
    bad = False
    for name, pin in asset.pins.items():
        if not (folder / name).exists():
            say(f"{name}: not here")
            continue
        refused, text = verdict(pin, folder / name, file_sha256(folder / name))
        say(f"{name}: {text}", hanging="  ")
        bad |= refused
    if not asset.pins:
        say("not pinned")
    return bad


def require_archive(part: Path) -> None:
    """Require that a file is an archive.

    Raises:
        UserError: if it is none.
    """
    if not zipfile.is_zipfile(part) and not tarfile.is_tarfile(part):
        raise UserError("it is no zip and no tar, perhaps a web page")


def check_weights(part: Path, suffix: str) -> str:
    """Require that a file holds weights; returns what they seem to be."""
    from cyclediff.models.checkpoint import is_torchscript, read_checkpoint
    from cyclediff.models.weights import recognise
    from eval.random_mark import is_random

    if is_torchscript(part):
        return "a TorchScript network"
    states = read_checkpoint(part, suffix=suffix).values()
    plain = [{key.removeprefix("module."): value for key, value in state.items()} for state in states]
    random = "RANDOM WEIGHTS, " if any(is_random(state.values()) for state in plain) else ""
    known = next((found for state in plain if (found := recognise(state))), None)
    return random + (known or "weights of an unknown network")


def verify(assets: list[Asset], arguments: argparse.Namespace) -> None:
    """Check what is here."""
    wrong = []
    for asset in assets:
        path = place(asset, arguments)
        folder = hub.cached_folder(asset.name, asset.files) if asset.kind == "hub" else None
        archive = arguments.data / asset.archive if asset.archive else None
        if not (folder or path.exists() or (archive and archive.exists())):
            continue
        print(asset.name)
        bad = False
        if folder or (asset.kind == "checkpoints" and path.is_dir()):
            bad = report_pins(asset, folder or path)
        elif asset.kind == "datasets":
            if archive and archive.exists():
                bad, text = verdict(asset.pin, archive, file_sha256(archive))
                say(f"{archive.name}: {text}", "  ", "  ")
            if path.exists():
                faults = archives.miscounts(path, asset.holds)
                say("; ".join(faults) or ("counts as published" if asset.holds else "not counted"), "  ", "  ")
                bad |= bool(faults)
        else:
            bad, text = verdict(asset.pin, path, file_sha256(path))
            say(text, "  ", "  ")
            try:
                say(check_weights(path, path.suffix), "  ", "  ")
            except UserError as error:
                say(f"unusable: {error}", "  ", "  ")
                bad = True
        wrong += [asset.name] if bad else []
    if wrong:
        fail(f"{', '.join(wrong)}: not what they should be; delete them and get them again")


def unpack(archive: Path, sha256: str, asset: Asset, path: Path) -> int:
    """Extract a data set's archive, after saying what its bytes say; returns the number of files.

    Raises:
        UserError: if it is not as pinned, or holds something else.
    """
    refused, text = verdict(asset.pin, archive, sha256, asset.direct_urls())
    if refused:
        raise UserError(f"{archive}: {text}; delete it and get it again")
    say(text, hanging="  ")
    return archives.unpack(archive, path, asset.holds)


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
    terminal.adapt_output()
    try:
        if arguments.command == "unpack":
            if len(arguments.names) != 2 or not Path(arguments.names[0]).is_file():
                raise UserError("unpack needs an archive that exists and a data set's name: unpack afhq.zip afhq")
            archive, name = Path(arguments.names[0]), arguments.names[1]
            asset = catalogue(ROOT / "conf").get(name)
            if asset is None or asset.kind != "datasets":
                known = [a.name for a in chosen([]) if a.kind == "datasets"]
                raise UserError(f"there is no data set {name}; choose one of {', '.join(known)}")
            path = place(asset, arguments)
            print(f"{unpack(archive, file_sha256(archive), asset, path)} files in {path}")
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
