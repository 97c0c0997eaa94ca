"""Exact arithmetic: a tool and a route. Nothing of an expression is run as Python; its tree is walked."""

import ast
import json
import math
import operator
from fractions import Fraction
from urllib.parse import parse_qs

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import http_handler
from wit_world.imports import types

CHARS_MAX = 500
# Bits of a whole number; larger ones only take time.
BITS_MAX = 4096

BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class Wrong(Exception):
    """The expression cannot be calculated, for this reason."""


def rounded(number, digits=Fraction(0)):
    if digits.denominator != 1 or abs(digits) > 1000:
        raise Wrong("rounds to a number of digits that is no whole number up to 1000.")
    return Fraction(round(number, int(digits)))


FUNCTIONS = {
    "abs": abs,
    "max": max,
    "min": min,
    "round": rounded,
    "sqrt": lambda number: Fraction(math.sqrt(number)),
    "sum": lambda *numbers: sum(numbers),
}


def power(base, exponent):
    if exponent.denominator != 1:
        return Fraction(float(base) ** float(exponent))
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent) > BITS_MAX:
        raise Wrong("has a power that is too large.")
    return Fraction(base) ** int(exponent)


def value(node):
    match node:
        case ast.Constant(value=bool()):
            raise Wrong("has a truth value; only numbers are calculated.")
        case ast.Constant(value=int() | float() as number):
            # Through its text: 0.1 is one tenth, not the nearest binary fraction.
            result = Fraction(str(number))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            result = power(value(left), value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            result = Fraction(BINARY[type(op)](value(left), value(right)))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in UNARY:
            result = UNARY[type(op)](value(operand))
        case ast.Call(func=ast.Name(id=name), args=[*args], keywords=[]) if name in FUNCTIONS and args:
            result = Fraction(FUNCTIONS[name](*map(value, args)))
        case ast.Call(func=ast.Name(id=name)):
            raise Wrong(f"has {name}(…), which is no function here: {', '.join(FUNCTIONS)}.")
        case _:
            raise Wrong("holds something other than numbers, + - * / // % **, brackets and functions.")
    if max(result.numerator.bit_length(), result.denominator.bit_length()) > BITS_MAX:
        raise Wrong("has a result that is too large.")
    return result


def calculate(expression):
    """The answer as JSON: exact as a fraction, and as a decimal number."""
    if len(expression) > CHARS_MAX:
        raise Wrong(f"has more than {CHARS_MAX} characters.")
    try:
        result = value(ast.parse(expression.strip(), mode="eval").body)
    except Wrong:
        raise
    except ZeroDivisionError:
        raise Wrong("divides by zero.") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise Wrong("cannot be read; write it as in (12.5 * 3 + 1) / 7.") from None
    except (ValueError, OverflowError, TypeError) as error:
        raise Wrong(f"cannot be calculated: {error}.") from None
    whole = result.denominator == 1
    try:
        number = int(result) if whole else float(result)
    except OverflowError:
        number = None
    return {"expression": expression, "result": number, "exact": str(result)}


def answer(expression):
    try:
        return json.dumps(calculate(expression))
    except Wrong as error:
        raise Err(types.Error_Invalid(types.InvalidField("expression", str(error)))) from None


class Tools(exports.Tools):
    def call(self, name, input, caller):
        if name != "calculate":
            raise Err(types.Error_NotFound(name))
        return answer(str(json.loads(input).get("expression", "")))


class HttpHandler(exports.HttpHandler):
    def handle(self, request):
        fields = parse_qs(request.query or "", max_num_fields=10)
        if "expression" not in fields:
            reason = "is missing: /calculate?expression=1%2B1"
            raise Err(types.Error_Invalid(types.InvalidField("expression", reason)))
        body = answer(fields["expression"][0]).encode()
        headers = [("content-type", "application/json")]
        return http_handler.Response(200, headers, http_handler.Body_Bytes(body), [])


class BodyStream(http_handler.BodyStream):
    """For streamed responses; this plugin has none."""

    def next(self):
        return None
