"""Rules for the values of a configuration, to build the table in `sppnet.config.schema` from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Condition = Mapping[str, tuple[str, ...]]  # keys, and the values each of them must have one of


@dataclass(frozen=True)
class Rule:
    """What one key takes.

    Attributes:
        good: whether a value is allowed.
        words: what is, for messages.
        required: the key can nowhere be left out; an optional one with `only` can be where that does not hold.
        only: other keys and the values of theirs with which this key has an effect; empty if it always has.
        text: the value is a text, or a list of texts; `2024` typed for it is the text "2024".
    """

    good: Callable[[Any], bool]
    words: str
    required: bool = True
    only: Condition = field(default_factory=dict)
    text: bool = False


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # no nan, no inf


def whole(low: int, high: int = 2**31 - 1) -> Rule:
    """A whole number from `low` to `high`."""
    most = f" and at most {high}" if high < 2**31 - 1 else ""
    return Rule(lambda v: _is_int(v) and low <= v <= high, f"a whole number of at least {low}{most}")


def real(test: Callable[[float], bool], words: str) -> Rule:
    """A finite number that passes `test`."""
    return Rule(lambda v: _is_real(v) and test(v), words)


def choice(*names: str) -> Rule:
    """One of `names`."""
    return Rule(lambda v: v in names, "one of " + ", ".join(names))


def list_of(rule: Rule, least: int = 1, distinct: bool = False) -> Rule:
    """A list of `least` or more values that `rule` allows."""

    def good(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) >= least
            and all(map(rule.good, value))
            and (not distinct or len(set(value)) == len(value))
        )

    words = f"a list of {'distinct values, each ' if distinct else ''}{rule.words}, {least} or more of them"
    return Rule(good, words, text=rule.text)


def interval(high: float) -> Rule:
    """Two numbers above 0 and at most `high`, in order."""
    good = list_of(real(lambda v: 0 < v <= high, ""), least=2).good
    words = f"two numbers above 0, up to {high}, the lower one first"
    return Rule(lambda v: good(v) and len(v) == 2 and v[0] <= v[1], words)


def colour(low: float) -> Rule:
    """Three numbers from `low` to 1."""
    good = list_of(real(lambda v: low <= v <= 1, ""), least=3).good
    return Rule(lambda v: good(v) and len(v) == 3, f"three numbers from {low:g} to 1, for red, green and blue")


def or_null(rule: Rule) -> Rule:
    """Null, or what `rule` allows."""
    return replace(rule, good=lambda v: v is None or rule.good(v), words=f"null or {rule.words}")


def either(first: Rule, second: Rule) -> Rule:
    """What one of the two allows."""
    words = f"{first.words}, or {second.words}"
    return Rule(lambda v: first.good(v) or second.good(v), words, text=first.text or second.text)


def optional(rule: Rule) -> Rule:
    """The key may be left out."""
    return replace(rule, required=False)


def only(condition: Condition, rule: Rule) -> Rule:
    """The key has an effect only where `condition` holds."""
    return replace(rule, only=condition)


FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
TEXT = Rule(lambda v: isinstance(v, str) and bool(v.strip()), "a text", text=True)
LABEL = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9][\w.+=-]*", v) is not None and len(v.encode()) <= 100,
    "letters, digits and . _ + = -, 100 at most (it names a directory)",
    text=True,
)
POSITIVE = real(lambda v: v > 0, "a number above 0")
NOT_NEGATIVE = real(lambda v: v >= 0, "a number of at least 0")
SHARE = real(lambda v: 0 <= v < 1, "a number from 0 up to, not including, 1")
INSIDE = real(lambda v: 0 < v < 1, "a number between 0 and 1")
RATIO = real(lambda v: 0 < v <= 1, "a number above 0, at most 1")
# A text that would be something else without its quotes.
LITERAL = re.compile(r"\s*([-+]?[\d._]+(e[-+]?\d+)?|true|false|null|\[.*\])\s*", re.I | re.S)


def refusal(key: str, value: object, rule: Rule) -> str:
    """Why `rule` refuses `value`; the type is named where it is what is wrong, since `"0.1"` and `0.1` look alike."""
    if rule.text and isinstance(value, int | float):
        return (
            f"{key}={shown(value)} is a {'boolean' if isinstance(value, bool) else 'number'}, as YAML reads it; it"
            f" takes {rule.words}; in a file a name like this stands in quotes"
        )
    texts = [] if rule.text else [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]
    if any(re.fullmatch(r"[-+]?0[\d_]+", text) for text in texts):  # 007 is a text, to Hydra
        return f"{key}={shown(value)} is not allowed; it takes {rule.words}, without zeros before it"
    if isinstance(value, str) and not rule.text and LITERAL.fullmatch(value):
        return f"{key}='{value}' is a text in quotes; it takes {rule.words}, without quotes"
    return f"{key}={shown(value)} is not allowed; it takes {rule.words}"


def shown(value: object) -> str:
    """A value as YAML has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value}"
