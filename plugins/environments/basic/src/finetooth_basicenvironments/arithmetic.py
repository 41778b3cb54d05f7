"""Arithmetic in text, calculated exactly and within bounds: what a model writes is never executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction

LONGEST = 200
"""Characters of an expression."""
LARGEST = 10**18
"""No numerator and no denominator on the way is larger."""
HIGHEST_POWER = 60

_TWO: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
}


class NotArithmetic(Exception):
    """Why an expression has no value, in words for who wrote it."""


def calculate(expression: str) -> str:
    """The value of an expression of numbers, `+ - * / // % **` and brackets, as text: whole, or as a decimal number.

    Raises:
        NotArithmetic: it is none, too long, or has no value within the bounds.
    """
    if len(expression) > LONGEST:
        raise NotArithmetic(f"longer than {LONGEST} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        value = _value(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotArithmetic("not an arithmetic expression") from error
    except ZeroDivisionError as error:
        raise NotArithmetic("division by zero") from error
    return str(value.numerator) if value.denominator == 1 else format(float(value), ".12g")


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(Fraction(str(node.value)))  # as it is written: 0.1 is a tenth
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _TWO:
            return _bounded(_TWO[type(node.op)](left, right))
    raise NotArithmetic("only numbers, + - * / // % ** and brackets are understood")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > HIGHEST_POWER:
        raise NotArithmetic(f"powers are whole numbers up to {HIGHEST_POWER}")
    return _bounded(base**exponent.numerator)


def _bounded(value: Fraction) -> Fraction:
    if abs(value.numerator) > LARGEST or value.denominator > LARGEST:
        raise NotArithmetic("the numbers become too large")
    return value
