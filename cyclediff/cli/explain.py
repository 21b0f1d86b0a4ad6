"""`python run.py explain METHOD`: its equation, settings, cost and official code. Nothing heavy is imported."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cyclediff.cli.errors import listed
from cyclediff.cli.method_notes import MethodNotes, Setting, evaluations, parity_of, read_notes
from cyclediff.errors import UserError
from eval import terminal

WIDEST = 100  # columns
RUNS = {"none": "without a text", "text": "under texts", "image": "under an image"}
ROWS = "source, target: 1, and 2 under guidance at a scale other than 0 and 1"
CLEAN = "clean: 1 where the sampler ends at the clean image (pixels, flows), 0 on latent spacing"


def main(config_dir: str, arguments: Sequence[str]) -> None:
    """Print what is known of a method.

    Args:
        config_dir: the folder of the configuration.
        arguments: the method's name.

    Raises:
        UserError: if there is no such method; the sentence lists those that there are.
    """
    names = {path.stem: path for path in sorted(Path(config_dir, "method").glob("*.yaml"))}
    if len(arguments) != 1:
        raise UserError(f"explain takes one method, for example: python run.py explain {next(iter(names))}")
    if arguments[0] not in names:
        raise UserError(f"there is no method named {arguments[0]}; choose {listed(arguments[0], names)}")
    console = terminal.console()
    console.width = min(console.width, WIDEST)
    notes = read_notes(names[arguments[0]])
    console.print(Group(_about(notes), Text(), _settings(notes.settings)))


def _about(notes: MethodNotes) -> Table:
    """All but the settings."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(notes.name, "bold"), _text(notes.title))
    grid.add_row("equation", _text(notes.head["equation"]))
    grid.add_row("networks", _text(", ".join(notes.needs)))
    grid.add_row("models", _text(" and ".join(RUNS[name] for name in notes.conditions) or "it samples, from noise"))
    grid.add_row("cost", Group(*cost_lines(notes)))
    grid.add_row("code", _text(notes.head["code"]))
    grid.add_row("parity", Group(*parity_lines(notes)))
    return grid


def cost_lines(notes: MethodNotes) -> list[Text]:
    """What an image costs, by a formula and with the defaults."""
    cost, also = notes.head["cost"], notes.head.get("also")
    lines = []
    if cost != "0":
        count = evaluations(cost, notes.defaults)
        lines.append(f"{cost.replace('*', ' × ')} evaluations of the network for an image")
        lines.append(f"= {count} with the defaults" + (", without guidance" if "source" in cost else ""))
        lines += [ROWS] if "text" in notes.conditions and ("source" in cost or "target" in cost) else []
        lines += [CLEAN] if "clean" in cost else []
    return [_text(line) for line in [*lines, *([also] if also else [])]]


def parity_lines(notes: MethodNotes) -> list[Text]:
    """Where docs/parity.md compares with the official codes."""
    lines = []
    for code in notes.codes:
        found = parity_of(code)
        sections = ", ".join(f"{name} ({count})" for name, count in found.items())
        lines.append(f"{code}: comparisons in docs/parity.md: {sections}" if found else f"{code}: not compared")
    return [_text(line) for line in lines or ["there is no official code"]]


def _settings(settings: Sequence[Setting]) -> RenderableType:
    """A few lines for each setting."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text("setting", "bold"), Text("default, unit, symbol where it is another, range", "bold"))
    for setting in settings:
        grid.add_row(setting.key, Group(*map(_text, setting_lines(setting))))
    return grid


def setting_lines(setting: Setting) -> list[str]:
    """What is known of a setting: its value, what it means, where the value is from."""
    value = f"{setting.default} {setting.unit}".rstrip()
    facts = [value, f"symbol {setting.symbol}" if setting.symbol else "", setting.range]
    source = [setting.source or "none is stated", "a task may change it" if setting.task_may_change else ""]
    found = ["; ".join(filter(None, facts)), setting.meaning, f"source: {'; '.join(filter(None, source))}"]
    return [line for line in found if line]


def _text(text: str) -> Text:
    return Text(terminal.fitted(text))
