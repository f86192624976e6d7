"""Rules for single configuration values: which values a key accepts, and how error messages describe them.

`sppnet.config.schema` builds the table of all keys from these rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Condition = Mapping[str, tuple[str, ...]]  # for each key, the values that satisfy the condition


@dataclass(frozen=True)
class Rule:
    """The rule for the value of one key.

    Attributes:
        accepts: a function that returns whether a value is allowed.
        expected: a description of the allowed values that completes "must be ...".
        plural: the same description in the plural, for the items of a list.
        required: whether the key is always required. If false, it is required only if `only` is non-empty and holds.
        only: the condition under which the key has an effect; empty if it always has an effect.
        text: whether the value is a string or a list of strings, so that a typed `2024` means the string "2024".
    """

    accepts: Callable[[Any], bool]
    expected: str
    plural: str = ""
    required: bool = True
    only: Condition = field(default_factory=dict)
    text: bool = False


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # no NaN, no infinity


def whole(low: int, high: int = 2**31 - 1) -> Rule:
    bounds = f"from {low} to {high}" if high < 2**31 - 1 else f"of at least {low}"
    return Rule(lambda v: _is_int(v) and low <= v <= high, f"an integer {bounds}", f"integers {bounds}")


def real(test: Callable[[float], bool], expected: str) -> Rule:
    return Rule(lambda v: _is_real(v) and test(v), expected)


def choice(*names: str) -> Rule:
    listed = ", ".join(names)
    return Rule(lambda v: v in names, f"one of {listed}", f"values from {listed}")


def list_of(rule: Rule, least: int = 1, distinct: bool = False) -> Rule:
    def accepts(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) >= least
            and all(map(rule.accepts, value))
            and (not distinct or len(set(value)) == len(value))
        )

    expected = f"a {'non-empty ' if least else ''}list of {'different ' if distinct else ''}{rule.plural}"
    return Rule(accepts, expected, text=rule.text)


def interval(high: float) -> Rule:
    accepts = list_of(real(lambda v: 0 < v <= high, "")).accepts
    expected = f"two numbers greater than 0 and at most {high}, in ascending order"
    return Rule(lambda v: accepts(v) and len(v) == 2 and v[0] <= v[1], expected)


def colour(low: float) -> Rule:
    accepts = list_of(real(lambda v: low <= v <= 1, "")).accepts
    return Rule(lambda v: accepts(v) and len(v) == 3, f"three numbers from {low:g} to 1, for red, green and blue")


def or_null(rule: Rule) -> Rule:
    return replace(rule, accepts=lambda v: v is None or rule.accepts(v), expected=f"null or {rule.expected}")


def either(first: Rule, second: Rule) -> Rule:
    expected = f"{first.expected}, or {second.expected}"
    return Rule(lambda v: first.accepts(v) or second.accepts(v), expected, text=first.text or second.text)


def optional(rule: Rule) -> Rule:
    return replace(rule, required=False)


def only(condition: Condition, rule: Rule) -> Rule:
    return replace(rule, only=condition)


FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
TEXT = Rule(lambda v: isinstance(v, str) and bool(v.strip()), "a non-empty string", "non-empty strings", text=True)
LABEL = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9][\w.+=-]*", v) is not None and len(v.encode()) <= 100,
    "a name of at most 100 letters, digits and . _ + = - that starts with a letter or digit (it names a directory)",
    "names of at most 100 letters, digits and . _ + = -",
    text=True,
)
POSITIVE = real(lambda v: v > 0, "a number greater than 0")
NOT_NEGATIVE = real(lambda v: v >= 0, "a number of at least 0")
SHARE = real(lambda v: 0 <= v < 1, "a number of at least 0 and less than 1")
INSIDE = real(lambda v: 0 < v < 1, "a number greater than 0 and less than 1")
RATIO = real(lambda v: 0 < v <= 1, "a number greater than 0 and at most 1")
# Matches a string that YAML would read as a number, boolean, null or list if it were not quoted.
LITERAL = re.compile(r"\s*([-+]?[\d._]+(e[-+]?\d+)?|true|false|null|\[.*\])\s*", re.I | re.S)


def refusal(key: str, value: object, rule: Rule) -> str:
    """Explain why `rule` refuses `value`. The message names a wrong type, because `"0.1"` and `0.1` look alike."""
    if rule.text and isinstance(value, int | float):
        kind = "boolean" if isinstance(value, bool) else "number"
        return f"{key}={format_value(value)} is a {kind} in YAML, but must be {rule.expected}; quote it in the file"
    items = value if isinstance(value, list) else [value]
    strings = [] if rule.text else [item for item in items if isinstance(item, str)]
    if any(re.fullmatch(r"[-+]?0[\d_]+", string) for string in strings):  # Hydra reads 007 as a string
        return f"{key}={format_value(value)} is not allowed: must be {rule.expected}, without leading zeros"
    if isinstance(value, str) and not rule.text and LITERAL.fullmatch(value):
        return f"{key}='{value}' is a quoted string: must be {rule.expected}, without quotes"
    return f"{key}={format_value(value)} is not allowed: must be {rule.expected}"


def format_value(value: object) -> str:
    """Format `value` as YAML writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value}"
