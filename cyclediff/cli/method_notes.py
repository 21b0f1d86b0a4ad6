"""What is known of a method without importing it: from its file in conf/method, its class's source, docs/parity.md.

The head of conf/method/NAME.yaml says, one line each: title and paper, then `# KEY: text` for

    equation    what it computes
    code        the official code it is compared with, owner/repository@commit, with commas between; or ours
    cost        evaluations of the diffusion network for an image, an expression of `evaluations`
    also        what else it costs
    symbols     setting = its symbol in the paper, with commas between; where it is not the setting's name
    units       settings = their unit, with commas between
    classes     setting = the class that explains the settings below it, where the file names none

A comment behind a setting, or above it, is the source of its value. A method that is another one with changes
(`defaults`) has what the other says, too.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cyclediff.cli.expressions import value_of
from cyclediff.data.assets import ROOT

KEYS = ("equation", "code", "cost", "also", "symbols", "units", "classes")
DECLARED = ("_target_", "name", "needs", "conditions", "given", "defaults")  # what is no setting
NOISY_ENDS = ("latent", "leading")  # spacings whose last level has noise; all others end at the clean image
TASK_MAY_CHANGE = re.compile(r"\$\{oc\.select:[\w.]+,(.*)\}", re.DOTALL)
HEAD = re.compile(rf"# ({'|'.join(KEYS)}): (.*)")
LINE = re.compile(r"""( *)([\w]+):(?: +((?:[^"'#]|"[^"]*"|'[^']*'|(?<! )\#)*?))? *(?:\# ?(.*))?""")
RANGE = re.compile(
    r"([\w.]+(?:(?:, | and )[\w.]+)*) must be (.+?)(?:, (?:a part|\w+ and \w+ in)[^;]*)?(?: \([^)]*\))?; got", re.DOTALL
)
POSITIVE = re.compile(r"\w+ needs (\w+) > 0\b")  # the sentence of CycleDiffusion


@dataclass(frozen=True)
class Setting:
    """One setting of a method.

    Args:
        key: with dots where it is below another one.
        meaning: what its class says of it.
        symbol: in the paper; "" where it is the setting's name.
        unit: "" where it has none.
        range: which values are allowed.
        default: as the file has it, where no task says otherwise.
        source: of the default, or a remark on it.
        task_may_change: whether a task's settings may have another value.
    """

    key: str
    meaning: str
    symbol: str
    unit: str
    range: str
    default: Any
    source: str
    task_may_change: bool


@dataclass(frozen=True)
class MethodNotes:
    """What is known of a method.

    Args:
        name: the stem of its file.
        title: with the paper's arXiv id.
        head: texts by the keys that this module's docstring lists.
        needs: networks that it evaluates.
        conditions: of the model, under which it works.
        defaults: of its settings, nested as in its file.
        settings: all that its file has.
    """

    name: str
    title: str
    head: Mapping[str, str]
    needs: tuple[str, ...]
    conditions: tuple[str, ...]
    defaults: Mapping[str, Any]
    settings: tuple[Setting, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        """Official codes, owner/repository@commit."""
        return tuple(code for code in self.head["code"].split(", ") if code != "ours")


def read_notes(path: Path) -> MethodNotes:
    """What is known of the method of a file in conf/method."""
    content, head, title = _merged(path)
    comments = _comments(path)
    symbols, units = _pairs(head.get("symbols", "")), _pairs(head.get("units", ""))
    classes = _pairs(head.get("classes", "")) | {"": content["_target_"]}
    classes |= {key: node["_target_"] for key, node in content.items() if isinstance(node, dict) and "_target_" in node}
    found = []
    for key, value in _leaves({key: value for key, value in content.items() if key not in DECLARED}):
        group, _, name = key.rpartition(".")
        owner = group if group in classes else ""
        of_class = _class(classes[owner])
        argument = name if owner == group else group  # of a mapping, such as weights.clip
        setting = Setting(
            key, of_class.arguments.get(argument, ""), symbols.get(key) or symbols.get(argument, ""),
            units.get(key, ""), of_class.ranges.get(argument, ""), as_written(_default(value)), comments.get(key, ""),
            _default(value) is not value,
        )  # fmt: skip
        found.append(setting)
    needs, conditions = tuple(content["needs"]), tuple(content["conditions"])
    return MethodNotes(path.stem, title, head, needs, conditions, _nested(content), tuple(found))


def title_of(path: Path) -> str:
    """The first line of a file of conf, without its mark."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def evaluations(cost: str, settings: Mapping[str, Any], source: int = 1, target: int = 1) -> int:
    """Evaluations of the diffusion network for an image.

    Args:
        cost: an expression of the settings' names and of `source` and `target`; of `clean`, which is 1 where the
            sampler ends at the clean image (pixels, flows) and 0 where its last level has noise (latent diffusion);
            and of max, min, ceil and sqrt.
        settings: of the method, nested as in its file.
        source: evaluations that a prediction of the source takes: 2 under guidance at a scale other than 0 and 1.
        target: the same of the target.
    """
    names = dict(settings)
    if isinstance(names.get("timesteps"), str):
        names["timesteps"] = sum(int(part) for part in names["timesteps"].removeprefix("ddim").split(","))
    names |= {"source": source, "target": target, "clean": int(settings.get("spacing") not in NOISY_ENDS)}
    return value_of(cost, names)


def parity_of(code: str, page: Path = ROOT / "docs" / "parity.md") -> dict[str, int]:
    """Sections of docs/parity.md that compare with an official code, with their number of comparisons."""
    found: dict[str, int] = {}
    for section in page.read_text(encoding="utf-8").split("\n## ")[1:] if page.exists() else ():
        heading, _, table = section.partition("\n")
        if code in heading:
            rows = re.findall(r"^\|.*\| (\d+) \|", table, re.MULTILINE)
            found[heading.partition(":")[0]] = sum(map(int, rows))
    return found


def _merged(path: Path) -> tuple[dict[str, Any], dict[str, str], str]:
    """Content, head and title of a file, with what the file that it changes has."""
    own: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    text = path.read_text(encoding="utf-8")
    head = {found[1]: found[2] for line in text.splitlines() if (found := HEAD.fullmatch(line))}
    content: dict[str, Any] = {}
    for name in own.get("defaults", ()):
        if name != "_self_":
            content, inherited, _ = _merged(path.with_stem(name))
            head = inherited | head
    for key, value in own.items():
        both = isinstance(content.get(key), dict) and isinstance(value, dict)
        content[key] = content[key] | value if both else value
    return content, head, title_of(path)


def _comments(path: Path) -> dict[str, str]:
    """Comments by the setting that they are behind of or above, with those of the file that this one changes."""
    own: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    found: dict[str, str] = {}
    for name in own.get("defaults", ()):
        found |= {} if name == "_self_" else _comments(path.with_stem(name))
    parents: list[tuple[int, str]] = []
    above: list[str] = []
    body = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("# ") and body:
            above.append(line.lstrip()[2:])
        elif setting := LINE.fullmatch(line):
            body, depth = True, len(setting[1])
            parents = [parent for parent in parents if parent[0] < depth]
            key = ".".join([name for _, name in parents] + [setting[2]])
            found[key] = "; ".join(filter(None, [*above, setting[4] or ""]))
            parents.append((depth, setting[2]))
            above = []
    return found


def _pairs(text: str) -> dict[str, str]:
    """The pairs of a line: "a = x, b, c = y" gives {a: x, b: y, c: y}."""
    found, keys = {}, []
    for part in filter(None, text.split(", ")):
        key, equals, value = part.partition(" = ")
        keys.append(key)
        if equals:
            found |= dict.fromkeys(keys, value)
            keys = []
    return found


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}", value


def _default(value: Any) -> Any:
    """What a setting is where no task says otherwise."""
    changed = TASK_MAY_CHANGE.fullmatch(value) if isinstance(value, str) else None
    return OmegaConf.to_container(OmegaConf.create(f"value: {changed[1]}"))["value"] if changed else value  # type: ignore[index, call-overload]


def _nested(node: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of settings, nested as in their file."""
    return {key: _nested(value) if isinstance(value, dict) else _default(value) for key, value in node.items()}


def as_written(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class _Class:
    """What the source of a class says of its arguments: the texts of its docstring, and allowed values."""

    arguments: Mapping[str, str]
    ranges: Mapping[str, str]


@cache
def _class(target: str) -> _Class:
    module, _, name = target.rpartition(".")
    tree = _module(module)
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    ranges = {}
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            ranges[line.target.id] = _of_type(line.annotation, module)
        elif isinstance(line, ast.FunctionDef) and line.name == "__post_init__":
            checked = dict(_checked(line, _constants(tree.body)))
            ranges |= {key: text for key, text in checked.items() if not ranges.get(key, "").startswith("one of")}
    return _Class(_arguments(ast.get_docstring(node) or ""), ranges)


@cache
def _module(name: str) -> ast.Module:
    return ast.parse((ROOT / Path(*name.split("."))).with_suffix(".py").read_text(encoding="utf-8"))


def _arguments(docstring: str) -> dict[str, str]:
    """Names and texts of a docstring's Args."""
    section = re.search(r"^Args:\n((?: .*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): ((?:.*\n?)(?: {5,}.*\n?)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _of_type(node: ast.expr, module: str) -> str:
    """The values that an annotation allows, in words."""
    if isinstance(node, ast.BinOp):
        sides = [_of_type(side, module) for side in (node.left, node.right)]
        return " or ".join(sides) if all(sides) else ""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        values = ast.literal_eval(node.slice)
        return f"one of {', '.join(values)}" if isinstance(values, tuple) else values
    name = ast.unparse(node)
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "None": "null"}
    return words.get(name, "") or _of_alias(name, module)


def _of_alias(name: str, module: str) -> str:
    """The values of a type that has a name: in a module, or where the module has it from."""
    for line in _module(module).body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == name:
            return _of_type(line.value, module)
        if isinstance(line, ast.ImportFrom) and line.module and name in [alias.name for alias in line.names]:
            return _of_alias(name, line.module) if line.module.startswith("cyclediff") else ""
    return ""


def _constants(body: list[ast.stmt]) -> dict[str, Any]:
    """Names that a body gives to literal values."""
    found = {}
    for line in body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            try:
                found[line.targets[0].id] = ast.literal_eval(line.value)
            except ValueError:
                continue
    return found


def _checked(method: ast.FunctionDef, constants: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings and what they must be, from the sentences of a class's own checks."""
    own = _constants(method.body)
    names = {**constants, **own}
    unknown = {ast.unparse(line.targets[0]) for line in method.body if isinstance(line, ast.Assign)} - own.keys()
    for line in method.body:
        rounds: list[Any] = [()]
        if isinstance(line, ast.For):
            try:
                rounds = _rounds(line.iter, names)
            except (KeyError, ValueError):  # over values that only a method with settings has
                continue
        for values in rounds:
            loop = {}
            if isinstance(line, ast.For):
                targets = [ast.unparse(node) for node in getattr(line.target, "elts", [line.target])]
                loop = dict(zip(targets, values if len(targets) > 1 else [values], strict=True))
            for node in ast.walk(line):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    sentence = _sentence(node.exc.args[0], loop)
                    if positive := POSITIVE.match(sentence):
                        yield positive[1], "above 0"
                    found = RANGE.match(sentence)
                    if found and not unknown & set(re.findall(r"\w+", found[2])):
                        allowed = re.sub(r"\b(\w+(?: - 1)?) = \1", r"\1", found[2])
                        yield from ((key.rpartition(".")[2], allowed) for key in re.split(", | and ", found[1]))


def _rounds(node: ast.expr, names: Mapping[str, Any]) -> list[Any]:
    """What a loop over a literal, a constant, or the items of one goes through."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "items":
        base = node.func.value
        keywords = base.keywords if isinstance(base, ast.Call) else []
        if keywords:  # dict(a=1)
            return [(each.arg, ast.literal_eval(each.value)) for each in keywords]
        return list((names[base.id] if isinstance(base, ast.Name) else ast.literal_eval(base)).items())
    return list(names[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node))


def _sentence(node: ast.expr, loop: Mapping[str, Any]) -> str:
    """The text of an f-string: loop variables have their values, and settings their names."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    parts = node.values if isinstance(node, ast.JoinedStr) else []
    shown = [ast.unparse(part.value).replace("self.", "") if isinstance(part, ast.FormattedValue) else
             str(getattr(part, "value", "")) for part in parts]  # fmt: skip
    return "".join(str(loop.get(text, text)) for text in shown)
