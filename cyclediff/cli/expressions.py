"""Arithmetic on a method's settings, as `# cost:` in conf/method writes it. Nothing else is executed."""

import ast
import operator
from collections.abc import Mapping
from math import ceil, sqrt
from typing import Any

BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip
FUNCTIONS = {"max": max, "min": min, "ceil": ceil, "sqrt": sqrt}


def value_of(expression: str, names: Mapping[str, Any]) -> Any:
    """The value of an expression of numbers, names, `a.b`, + - * / //, ==, and, or, `x if y else z` and FUNCTIONS.

    Args:
        expression: the text.
        names: values of the names; that of a name with attributes is a mapping.

    Raises:
        ValueError: if something else is in it, or a name is unknown.
    """
    return _value(ast.parse(expression, mode="eval").body, names)


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.Attribute(value=inner, attr=key):
            return _value(inner, names)[key]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            return BINARY[type(op)](_value(left, names), _value(right, names))
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
            return _value(left, names) == _value(right, names)
        case ast.BoolOp(op=op, values=values):
            found = [_value(each, names) for each in values]
            return any(found) if isinstance(op, ast.Or) else all(found)
        case ast.IfExp(test=test, body=body, orelse=other):
            return _value(body if _value(test, names) else other, names)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_value(each, names) for each in args))
    raise ValueError(f"{ast.unparse(node)} cannot be computed here; write numbers, settings and + - * / only")
