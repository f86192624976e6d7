"""What the schema says about the keys of a configuration: types, marks and descriptions."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union

import annotated_types as limits
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sppnet.config.marks import Affects, Changes, Expected, Only, PathText, affects
from sppnet.config.schema import DISTINCT, Section
from sppnet.errors import format_value

Mark = TypeVar("Mark")


@dataclass(frozen=True)
class Key:
    """A key of a schema.

    Attributes:
        name: the dotted name, such as `data.batch_size`.
        field: pydantic's description of its type.
        marks: its own marks and those that it takes over from the sections it is in, the outermost first.
        variant: the key and the value with which this key exists, if its section is one of several alternatives.
    """

    name: str
    field: FieldInfo
    marks: tuple[Any, ...]
    variant: tuple[str, str] | None = None

    def mark(self, kind: type[Mark]) -> Mark | None:
        """The innermost mark of a kind."""
        return next((mark for mark in reversed(self.marks) if isinstance(mark, kind)), None)

    @property
    def affects(self) -> Affects:
        return self.mark(Affects) or affects.weights

    def may_change(self, command: str) -> bool:
        """Whether `command` may change the key of the run whose checkpoint it loads."""
        changes = self.mark(Changes)
        return changes is not None and command in changes.commands

    @property
    def alternatives(self) -> list[type[Section]]:
        """The sections that the value may be; none for a plain value, several for a group of alternatives."""
        return sections(self.field.annotation)

    @property
    def is_text(self) -> bool:
        """Whether the value is a string or a list of strings, so that a typed `2024` means the string "2024"."""
        return takes_text(self.field.annotation)

    @property
    def takes_flag(self) -> bool:
        """Whether the value may be true or false."""
        return any(kind is bool for kind, _ in _leaves(self.field.annotation))

    @property
    def is_path(self) -> bool:
        inner = (mark for _, marks in _leaves(self.field.annotation) for mark in marks)
        return any(isinstance(mark, PathText) for mark in (*self.field.metadata, *inner))


@functools.cache
def keys(schema: type[Section]) -> tuple[Key, ...]:
    """All sections and keys of `schema`, in its order; a key that several alternatives have is listed for each."""
    return tuple(_keys(schema, "", (), None))


def _keys(
    schema: type[BaseModel], prefix: str, inherited: tuple[Any, ...], variant: tuple[str, str] | None
) -> Iterator[Key]:
    for name, field in schema.model_fields.items():
        marks = (*inherited, *field.metadata)
        key = Key(f"{prefix}{field.alias or name}", field, marks, variant)
        yield key
        alternatives = sections(field.annotation)
        for section in alternatives:
            inner = variant
            if len(alternatives) > 1:
                tag = str(field.discriminator)
                inner = (f"{key.name}.{tag}", str(typing.get_args(section.model_fields[tag].annotation)[0]))
            yield from _keys(section, f"{key.name}.", marks, inner)


def sections(annotation: Any) -> list[type[Section]]:
    """The sections that a value of this type may be: none for a plain value, several for a group of alternatives."""
    return [kind for kind, _ in _leaves(annotation) if isinstance(kind, type) and issubclass(kind, Section)]


def key_named(schema: type[Section], name: str, data: object = None) -> Key | None:
    """The key or section called `name`; None if the schema does not list it.

    If several alternatives of a section have the key, it is that of the alternative in `data`.
    """
    named = [key for key in keys(schema) if key.name == name]
    present = [key for key in named if key.variant is None or value_of(data, key.variant[0]) == key.variant[1]]
    return next(iter([*present, *named]), None)


def nearest(schema: type[Section], name: str, data: object = None) -> Key | None:
    """The key called `name`, or the innermost section that it lies in."""
    while name:
        if key := key_named(schema, name, data):
            return key
        name = name.rpartition(".")[0]
    return None


def select(cfg: Section, keep: Callable[[Key], bool]) -> dict[str, Any]:
    """Return the keys of `cfg` for which `keep` returns true, as plain data.

    Arguments of a user's class and of the Trainer have no line in the schema; `keep` is asked about their section.
    """

    def part(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        selected: dict[str, Any] = {}
        for name, value in node.items():
            key = nearest(type(cfg), f"{prefix}{name}", plain)
            assert key is not None
            if isinstance(value, dict) and key.name == f"{prefix}{name}" and key.alternatives:
                if inner := part(value, f"{key.name}."):
                    selected[name] = inner
            elif keep(key):
                selected[name] = value
        return selected

    plain = cfg.plain()
    return part(plain, "")


def without_effect(cfg: Section) -> dict[str, str]:
    """Map each key of `cfg` that has no effect to the setting that disables it (such as `data.fit=full`)."""
    ineffective = {}
    for key in keys(type(cfg)):
        only = key.mark(Only)
        if only is not None and (value := value_of(cfg, only.key)) not in only.values:
            ineffective[key.name] = f"{only.key}={format_value(value)}"
    bins = value_of(cfg, "pooling.bins")
    if bins is not None and bins != value_of(cfg, "pyramid.bins"):  # typed or set in a file instead
        ineffective["pyramid"] = f"pooling.bins={bins}"
    return ineffective


def value_of(cfg: object, name: str) -> Any:
    """The value of a key of a configuration or of plain data; None if it is absent."""
    for part in name.split("."):
        if isinstance(cfg, Mapping):
            cfg = cfg.get(part)
        elif part == "_target_":
            cfg = getattr(cfg, "target", None)
        else:
            cfg = getattr(cfg, part, None)
    return cfg


# Descriptions of types


def describe(annotation: Any, metadata: Sequence[Any] = (), plural: bool = False) -> str:
    """Describe the values of a type in words that complete "must be ..."."""
    marks = [*_own_marks(annotation), *metadata]
    inner = _without_marks(annotation)
    if expected := next((mark for mark in reversed(marks) if isinstance(mark, Expected)), None):
        return expected.plural if plural and expected.plural else expected.text
    if typing.get_origin(inner) is Literal:
        listed = ", ".join(map(format_value, typing.get_args(inner)))
        return f"values from {listed}" if plural else f"one of {listed}"
    if arms := _arms(inner):
        if all(sections(arm) for arm in arms):
            return "a mapping"
        given = [arm for arm in arms if arm is not types.NoneType]
        text = ", or ".join(describe(arm, metadata) for arm in given)
        return f"null or {text}" if types.NoneType in arms else text
    if inner is bool:
        return "true or false"
    if inner is int or inner is float:
        return _describe_number(inner is int, marks, plural)
    if inner is str:
        return "strings" if plural else "a string"
    if typing.get_origin(inner) is list:
        least = any(isinstance(mark, limits.MinLen) and mark.min_length > 0 for mark in marks)
        items = describe(typing.get_args(inner)[0], plural=True)
        return f"a {'non-empty ' if least else ''}list of {'different ' if DISTINCT in marks else ''}{items}"
    return "a mapping"


def _describe_number(whole: bool, marks: Sequence[Any], plural: bool) -> str:
    bound = {type(m).__name__: getattr(m, type(m).__name__.lower()) for m in marks if isinstance(m, LIMITS)}
    noun = ("integers" if plural else "an integer") if whole else ("numbers" if plural else "a number")
    low, high = bound.get("Ge"), bound.get("Le")
    if whole and low is not None and high is not None and high < 2**31 - 1:
        return f"{noun} from {low} to {high}"
    parts = [f"of at least {low:g}"] if low is not None else []
    if "Gt" in bound:
        parts.append(f"greater than {bound['Gt']:g}")
    if "Lt" in bound and bound["Lt"] < 1e300:
        parts.append(f"less than {bound['Lt']:g}")
    if high is not None and not whole:
        parts.append(f"at most {high:g}")
    return f"{noun} {' and '.join(parts)}".rstrip()


LIMITS = (limits.Ge, limits.Gt, limits.Le, limits.Lt)


def takes_text(annotation: Any) -> bool:
    """Whether a value of this type is a string or a list of strings."""
    return any(kind is str for kind, _ in _leaves(annotation))


def _leaves(annotation: Any, marks: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield each plain type that a value, or an item of a list, may have, with the marks on the way to it."""
    marks = (*marks, *_own_marks(annotation))
    inner = _without_marks(annotation)
    parts = typing.get_args(inner) if typing.get_origin(inner) is list else _arms(inner)
    if not parts:
        yield inner, marks
    for part in parts:
        yield from _leaves(part, marks)


def _arms(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else ()


def _without_marks(annotation: Any) -> Any:
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _own_marks(annotation: Any) -> list[Any]:
    """The marks of an annotated type, with pydantic's `Field(ge=1)` as the single limits that it stands for."""
    if typing.get_origin(annotation) is not Annotated:
        return []
    inner, *marks = typing.get_args(annotation)
    single = [part for mark in marks for part in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
    return [*_own_marks(inner), *single]
