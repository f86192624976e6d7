"""Reads the rows of a CSV or TSV file that lists images with their labels. Does not import torch."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn

from sppnet.data.datasets.listing import raise_user_error
from sppnet.errors import UserError
from sppnet.storage.paths import expand_path

ROLES = ("path", "label", "split", "group")
REQUIRED = ("path", "label")
DELIMITERS = (",", "\t", ";")
SHOWN = 80  # characters of a cell in an error message


class Row(NamedTuple):
    """The cells of a row that are used. A cell is None if the table has no such column.

    `number` is the row's number in a spreadsheet, where the header is row 1.
    """

    number: int
    path: str
    label: str
    split: str | None
    group: str | None


class TableFile:
    """A table on disk.

    Args:
        file: the value of `data.file`.
        columns: the value of `data.columns`.

    Attributes:
        path: the file.
        name: how messages name the table.
        columns: the name of the column of each role; None for a column that is not to be used.

    Raises:
        UserError: the file is not set or does not exist, or `columns` is not allowed.
    """

    def __init__(self, file: object, columns: object) -> None:
        if file is None or file == "":
            raise UserError("data.file is not set; give the table with the labels as data.file=labels.csv")
        if not isinstance(file, str):
            raise UserError(f"data.file={file} is not allowed: must be the path of a table")
        self.path, self.name = expand_path("data.file", file), f"data.file={file}"
        self.columns = _check_columns(columns)
        if not self.path.is_file():
            problem = (
                "is a folder"
                if self.path.is_dir()
                else "is no regular file"
                if self.path.exists()
                else "does not exist"
            )
            hint = "; for images in class folders, use data=folder" if self.path.is_dir() else ""
            raise UserError(f"{self.name} {problem}; it must be a CSV or TSV file{hint}")

    def refuse(self, row: int, problem: str) -> NoReturn:
        """Raise a UserError about the row with this number."""
        raise UserError(f"{self.name}: row {row}: {problem}")

    def rows(self) -> Iterator[Row]:
        """Yield all rows below the header, except those without any text.

        Raises:
            UserError: the file cannot be read, is not a table in UTF-8 or UTF-16, lacks a column, or has a row with
                another number of cells than the header.
        """
        text, valid = self._decode()
        if not text.strip():
            raise UserError(f"{self.name} is empty; its first row must have the names of the columns")
        records = self._records(text, self._delimiter(text, valid), valid)
        _, header = next(records)
        self._check_quotes(1, header)
        path, label, split, group = (self._position(role, header) for role in ROLES)
        assert path is not None
        assert label is not None
        for number, cells in records:
            if not any(map(str.strip, cells)):
                continue
            if len(cells) != len(header):
                hint = "; a cell that holds the delimiter needs double quotes, without a blank before them"
                hint = hint if len(cells) > len(header) else ""
                self.refuse(number, f"{len(cells)} cell(s), but row 1 names {len(header)} columns{hint}")
            self._check_quotes(number, [cells[i] for i in (path, label, split, group) if i is not None])
            yield Row(
                number,
                cells[path],
                cells[label].strip(),
                None if split is None else cells[split].strip(),
                None if group is None else cells[group].strip(),
            )
        if not valid:  # no row holds an invalid character, so it was cut off at the end
            raise UserError(f"{self.name} is cut off: it ends in the middle of a character")

    def _check_quotes(self, number: int, cells: Sequence[str]) -> None:
        for cell in cells:
            if re.match(r'\s+"', cell):
                self.refuse(number, f"remove the blank before {cell.strip()[:60]}: the quotes would belong to the text")

    def _decode(self) -> tuple[str, bool]:
        """The text of the file, and whether it is valid. If it is not, invalid bytes are surrogates in the text."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise_user_error(error)
        if content.startswith(b"PK\x03\x04"):
            raise UserError(f"{self.name} is an archive or a workbook (such as .xlsx), not a table; save it as CSV")
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "utf-16" if is_utf16 else "utf-8-sig"
        try:
            text = content.decode(encoding)
            return text, "\0" not in text
        except UnicodeDecodeError:
            if is_utf16:
                return content[: len(content) // 2 * 2].decode(encoding, "surrogatepass"), False
            return content.decode(encoding, "surrogateescape"), False

    def _records(self, text: str, delimiter: str, valid: bool = True) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the cells of each row, including the header."""
        reader, number = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 0
        while True:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                self.refuse(number, f"cannot be read as a row of cells ({error}); is a double quote missing?")
            if not valid and re.search("[\0\ud800-\udfff]", "".join(cells)):
                self.refuse(
                    number, "not valid text in UTF-8 (or UTF-16 with a byte-order mark); save the table as such"
                )
            yield number, cells

    def _delimiter(self, text: str, valid: bool) -> str:
        """The delimiter with which row 1 has the required columns; otherwise, the one with which it has most cells."""
        candidates = DELIMITERS[1:2] if self.path.suffix.lower() == ".tsv" else DELIMITERS
        headers: dict[str, list[str]] = {}
        problem: UserError | None = None
        for delimiter in candidates:
            try:
                headers[delimiter] = next(self._records(text, delimiter, valid))[1]
            except UserError as error:
                problem = problem or error
        if not headers:
            assert problem is not None
            raise problem
        required = {self.columns[role] for role in REQUIRED}
        return max(headers, key=lambda d: (required <= {*map(str.strip, headers[d])}, len(headers[d])))

    def _position(self, role: str, header: list[str]) -> int | None:
        """The position of a role's column in the header; None if the table does not have it or it is not to be used."""
        name, names = self.columns[role], [cell.strip() for cell in header]
        if name is None:
            return None
        if name not in names and role not in REQUIRED and name == role:
            alike = [
                each
                for each in names
                if each.casefold().removesuffix("s") == role and each not in self.columns.values()
            ]
            if not alike:
                return None
            raise UserError(
                f"{self.name} has no column called {role!r}, but one called {show(alike[0])};"
                f" data.columns.{role}={alike[0]} uses it, and data.columns.{role}=null ignores it"
            )
        if (count := names.count(name)) != 1:
            problem = f"has {count} columns called" if count else "has no column called"
            listed = ", ".join(map(show, names[:20])) + (", ..." if len(names) > 20 else "")
            raise UserError(
                f"{self.name} {problem} {show(name)}; row 1 names the columns {listed} (data.columns.{role}=NAME"
                " chooses one)"
            )
        return names.index(name)


def show(cell: str) -> str:
    """A cell for an error message: in quotes, with escapes for control characters, and of limited length."""
    return repr(cell if len(cell) <= SHOWN else f"{cell[:SHOWN]}...")


def _check_columns(columns: object) -> Mapping[str, str | None]:
    """The name of the column of each role, completed with the defaults, which are the roles' own names."""
    if not isinstance(columns, Mapping | None):
        raise UserError(f"data.columns={columns} is not allowed: must be a mapping, such as {{label: diagnosis}}")
    names = {role: role for role in ROLES} | dict(columns or {})
    for role, name in names.items():
        if role not in ROLES:
            raise UserError(f"data.columns.{role} is not allowed: the columns are {', '.join(ROLES)}")
        if name is None and role in REQUIRED:
            raise UserError(f"data.columns.{role}=null is not allowed: a table needs the columns path and label")
        if name is not None and not (isinstance(name, str) and name.strip()):
            raise UserError(f"data.columns.{role}={name} is not allowed: must be the name of a column, as text")
    return {role: None if name is None else name.strip() for role, name in names.items()}
