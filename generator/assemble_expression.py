"""Integer expressions over symbols, as they stand in operands and data directives; C's operators and precedence."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

TOKEN = re.compile(
    r"\s*(?:(?P<number>0[xX][0-9a-fA-F_]+|0[bB][01_]+|[0-9][0-9_]*(?![0-9a-zA-Z]))"
    r"|(?P<char>'(?:\\.|[^\\'])')|(?P<name>[A-Za-z_.$][\w.$@]*)|(?P<op><<|>>|[-+*/%&|^~()]))"
)
NAME = re.compile(r"(?<![\w.$@'\\])[A-Za-z_.$][\w.$@]*")  # neither part of 0x1f nor the letter of a character
ESCAPES = {"n": 10, "r": 13, "t": 9, "0": 0, "\\": 92, "'": 39, '"': 34, "b": 8, "f": 12}

_BINARY: tuple[dict[str, Callable[[int, int], int]], ...] = (
    {"|": lambda a, b: a | b},
    {"^": lambda a, b: a ^ b},
    {"&": lambda a, b: a & b},
    {"<<": lambda a, b: a << b, ">>": lambda a, b: a >> b},
    {"+": lambda a, b: a + b, "-": lambda a, b: a - b},
    {"*": lambda a, b: a * b, "/": lambda a, b: a // b, "%": lambda a, b: a % b},
)


class ExpressionError(ValueError):
    """Not an expression, or a name without a value (then in ``.name``)."""

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


def tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text) pairs, kind one of number, char, name, op."""
    found = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise ExpressionError(f"cannot read {text.strip()!r} as an expression")
        found.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return found


def evaluate(text: str, symbols: Mapping[str, int]) -> int:
    """The value of ``text``; names come from ``symbols`` ("." is the current address if it is there)."""
    parser = _Parser(tokens(text), symbols, text)
    value = parser.binary(0)
    if parser.position != len(parser.tokens):
        raise ExpressionError(f"cannot read {text.strip()!r} as an expression")
    return value


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]], symbols: Mapping[str, int], text: str) -> None:
        self.tokens, self.symbols, self.text, self.position = tokens, symbols, text, 0

    def peek(self) -> str:
        return self.tokens[self.position][1] if self.position < len(self.tokens) else ""

    def binary(self, level: int) -> int:
        if level == len(_BINARY):
            return self.unary()
        value = self.binary(level + 1)
        while (operator := _BINARY[level].get(self.peek())) is not None:
            self.position += 1
            right = self.binary(level + 1)
            try:
                value = operator(value, right)
            except (ZeroDivisionError, ValueError) as error:
                raise ExpressionError(f"{self.text.strip()!r}: {error}") from None
        return value

    def unary(self) -> int:
        if self.position >= len(self.tokens):
            raise ExpressionError(f"cannot read {self.text.strip()!r} as an expression")
        kind, text = self.tokens[self.position]
        self.position += 1
        if kind == "number":
            return int(text.replace("_", ""), 0 if text[:2].lower() in ("0x", "0b") else 10)
        if kind == "char":
            return ESCAPES[text[2]] if text[1] == "\\" and text[2] in ESCAPES else ord(text[-2])
        if kind == "name":
            if text not in self.symbols:
                raise ExpressionError(f"nothing defines {text!r}", text)
            return self.symbols[text]
        if text == "-":
            return -self.unary()
        if text == "+":
            return self.unary()
        if text == "~":
            return ~self.unary()
        if text == "(":
            value = self.binary(0)
            if self.peek() == ")":
                self.position += 1
                return value
        raise ExpressionError(f"cannot read {self.text.strip()!r} as an expression")
