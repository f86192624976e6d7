"""Rules for single values of a configuration: what a key accepts, and the words for it in error messages.

`sppnet.config.schema` composes the table of all keys from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Condition = Mapping[str, tuple[str, ...]]  # for each key, the values it may have


@dataclass(frozen=True)
class Rule:
    """The values of one key.

    Attributes:
        accepts: whether a value is allowed.
        expected: the allowed values, as in "must be ...".
        plural: the same for the items of a list.
        required: whether the key must always be present; if not, it must be present only where `only` holds.
        only: the condition under which the key has an effect; empty if it always has.
        text: whether the value is a string or a list of strings; `2024` typed for it is the string "2024".
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
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # no nan, no inf


def whole(low: int, high: int = 2**31 - 1) -> Rule:
    bounds = f"from {low} to {high}" if high < 2**31 - 1 else f"of at least {low}"
    return Rule(lambda v: _is_int(v) and low <= v <= high, f"an integer {bounds}", f"integers {bounds}")


def real(test: Callable[[float], bool], expected: str) -> Rule:
    return Rule(lambda v: _is_real(v) and test(v), expected)


def choice(*names: str) -> Rule:
    listed = ", ".join(names)
    return Rule(lambda v: v in names, f"one of {listed}", f"values out of {listed}")


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
    expected = f"two numbers above 0 and at most {high}, in ascending order"
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
    "a name of at most 100 letters, digits and . _ + = -, as it names a directory",
    "names of at most 100 letters, digits and . _ + = -",
    text=True,
)
POSITIVE = real(lambda v: v > 0, "a number above 0")
NOT_NEGATIVE = real(lambda v: v >= 0, "a number of at least 0")
SHARE = real(lambda v: 0 <= v < 1, "a number of at least 0 and below 1")
INSIDE = real(lambda v: 0 < v < 1, "a number above 0 and below 1")
RATIO = real(lambda v: 0 < v <= 1, "a number above 0 and at most 1")
# A string that YAML would read as something else without its quotes.
LITERAL = re.compile(r"\s*([-+]?[\d._]+(e[-+]?\d+)?|true|false|null|\[.*\])\s*", re.I | re.S)


def refusal(key: str, value: object, rule: Rule) -> str:
    """Why `rule` refuses `value`; names the type where that is the problem, since `"0.1"` and `0.1` look alike."""
    if rule.text and isinstance(value, int | float):
        kind = "boolean" if isinstance(value, bool) else "number"
        return f"{key}={format_value(value)} is a {kind} to YAML: must be {rule.expected}; quote it in the file"
    items = value if isinstance(value, list) else [value]
    strings = [] if rule.text else [item for item in items if isinstance(item, str)]
    if any(re.fullmatch(r"[-+]?0[\d_]+", string) for string in strings):  # Hydra reads 007 as a string
        return f"{key}={format_value(value)} is not allowed: must be {rule.expected}, without leading zeros"
    if isinstance(value, str) and not rule.text and LITERAL.fullmatch(value):
        return f"{key}='{value}' is a quoted string: must be {rule.expected}, without quotes"
    return f"{key}={format_value(value)} is not allowed: must be {rule.expected}"


def format_value(value: object) -> str:
    """`value` as YAML spells it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value}"
