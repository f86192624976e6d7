"""A section that is one of several classes: a key such as `name` chooses one of ours, and `_target_` the user's own."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

OWN = "own class"  # has a space, so that no key of a section can have this name


@dataclass(frozen=True)
class ChosenBy:
    """Mark of a section that is one of several classes, whose values of the key `key` tell them apart.

    If one of the classes has a `_target_`, a section with a `_target_` is of that class, whatever its `key` is.
    """

    key: str

    def values(self, section: type[BaseModel]) -> tuple[str, ...]:
        """The values of `key` that choose `section`; none for the class of sections with a `_target_`."""
        if is_open(section):
            return ()
        values: tuple[str, ...] = typing.get_args(section.model_fields[self.key].annotation)
        return values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        sections = typing.get_args(source)
        has_open = any(map(is_open, sections))
        choices = {value: section for section in sections for value in self.values(section) or (OWN,)}

        def choose(data: Any) -> Any:
            if isinstance(data, BaseModel):  # when pydantic writes a section as plain data
                return OWN if is_open(type(data)) else getattr(data, self.key)
            if not isinstance(data, Mapping):
                return None
            return OWN if has_open and data.get("_target_") is not None else data.get(self.key)

        schemas = {value: handler.generate_schema(section) for value, section in choices.items()}
        return core_schema.tagged_union_schema(schemas, choose)


def is_open(section: type[BaseModel]) -> bool:
    """Whether a section names a class in `_target_`."""
    return any(field.alias == "_target_" for field in section.model_fields.values())
