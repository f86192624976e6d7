"""Images with labels from a table: a CSV or TSV file with a row for each image. Does not import torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from sppnet.data.datasets.base import number_groups
from sppnet.data.datasets.file_names import PARTS
from sppnet.data.datasets.image_files import Files
from sppnet.data.datasets.listing import Listing, check_root
from sppnet.data.datasets.table_files import stat_files
from sppnet.data.datasets.table_rows import Row, TableFile, show
from sppnet.errors import UserError

ORDER = ("", "train", "test", "val")  # of the parts, as in a data set of class folders; "" without parts


class Table(Files):
    """The images that a CSV or TSV file lists, with a label each or, with a `separator`, any number of labels.

    The column `path` has paths relative to `root`, and `label` has the labels. The optional column `split` has the
    part of each image, by the names that `Folder` accepts for folders. Images with the same text in the optional
    column `group`, such as those of one patient, are never divided between parts or folds. An image with an empty group
    is a group of its own. Spaces around labels, parts and groups do not count, and other columns are ignored.

    The classes are the sorted labels. The order of the rows does not count, so images have the same order as in class
    folders. The fingerprint covers labels, parts, groups, paths and the contents of the images, but neither the place
    of the table nor its other columns.

    Args:
        root: the folder that paths are relative to; None for the folder of the table.
        file: the table, in UTF-8 or, with a byte-order mark, in UTF-16. Tabs, commas or semicolons separate its cells.
        separator: the text between two labels of an image; None if every image has exactly one label. In a multi-label
            table, an empty cell means that the image has none of the classes, and a repeated label counts once.
        columns: the names of the columns that are not called path, label, split and group; None as the name of split or
            group means that the table's column is not used.

    Raises:
        UserError: the table or a file that it lists has a problem; the message names the row.
    """

    def __init__(
        self,
        root: str | None = None,
        file: str | None = None,
        separator: str | None = None,
        columns: Mapping[str, str | None] | None = None,
    ) -> None:
        if separator is not None and not (isinstance(separator, str) and separator):
            raise UserError(f"data.separator={separator} is not allowed: must be null or a text, such as ';'")
        table = TableFile(file, columns)
        self.multilabel = separator is not None
        super().__init__(_list_images(table, check_root(root or table.path.parent), separator))


def _list_images(table: TableFile, root: Path, separator: str | None) -> Listing:
    rows = list(table.rows())
    if not rows:
        raise UserError(f"{table.name} has no rows below its header")
    labels = [_read_labels(table, row, separator) for row in rows]
    parts = _read_parts(table, rows)
    groups = [unicodedata.normalize("NFC", row.group or "") for row in rows]
    if any(parts):
        _check_groups(table, rows, parts, groups)
    files = stat_files(table, rows, root)
    listing = Listing(root, sorted({name for names in labels for name in names}))
    if not listing.classes:
        raise UserError(f"{table.name}: every cell of the column {show(str(table.columns['label']))} is empty")
    listing.untrainable = _find_untrainable(table, rows, labels, parts, separator)
    if "val" in parts and "test" not in parts:
        listing.notices.append(_describe_val(table, parts))
        parts = ["test" if part == "val" else part for part in parts]
    number_of = {name: number for number, name in enumerate(listing.classes)}
    keys = [(ORDER.index(parts[i]), () if separator else labels[i], files[i].name) for i in range(len(rows))]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    for i in order:
        numbers = tuple(sorted(number_of[name] for name in labels[i]))
        listing.add(files[i], numbers if separator else numbers[0], parts[i] or None)
    listing.groups = number_groups(groups[i] or i for i in order)
    return listing


def _read_labels(table: TableFile, row: Row, separator: str | None) -> tuple[str, ...]:
    """The distinct labels of an image. Texts that look alike in two Unicode spellings are one label."""
    text = unicodedata.normalize("NFC", row.label)
    if separator is not None:
        return tuple({label.strip(): None for label in text.split(separator) if label.strip()})
    if not text:
        table.refuse(row.number, f"the label is empty (column {show(str(table.columns['label']))})")
    return (text,)


def _read_parts(table: TableFile, rows: Sequence[Row]) -> list[str]:
    """The part of each image: train, val or test, or "" if the table has no parts."""
    if not any(row.split for row in rows):
        return [""] * len(rows)
    column, parts = show(str(table.columns["split"])), []
    for row in rows:
        part = PARTS.get(str(row.split).lower())
        if part is None:
            problem = f"{show(str(row.split))} is not a part" if row.split else "the part is empty"
            table.refuse(
                row.number,
                f"{problem} (column {column}); it must be train (or training), val (or valid, validation) or test (or"
                " testing); data.columns.split=null ignores the column",
            )
        parts.append(part)
    return parts


def _check_groups(table: TableFile, rows: Sequence[Row], parts: Sequence[str], groups: Sequence[str]) -> None:
    """Refuse a group with images in two parts."""
    first_of: dict[str, int] = {}
    for i, group in enumerate(groups):
        first = first_of.setdefault(group, i) if group else i
        if parts[first] != parts[i]:
            table.refuse(
                rows[i].number,
                f"group {show(group)} is in {parts[i]}, but in row {rows[first].number}, it is in {parts[first]}; a"
                " group must be in one part",
            )


def _find_untrainable(
    table: TableFile, rows: Sequence[Row], labels: Sequence[Sequence[str]], parts: Sequence[str], separator: str | None
) -> str:
    """The reason why the images can be used only for testing; empty if there is none."""
    present, ignore = set(parts), "; data.columns.split=null ignores the column and splits all images at random"
    if present == {"train"}:
        return f"{table.name}: all images are in train, and none are in test or val{ignore}"
    if present != {""} and "train" not in present:
        return f"{table.name}: no images are in train{ignore}"
    trained = {name for names, part in zip(labels, parts, strict=True) if part in ("", "train") for name in names}
    if len(trained) < 2 and separator is None:
        return f"{table.name}: the training images have only one class ({min(trained)}); at least two are needed"
    for row, names, part in zip(rows, labels, parts, strict=True):
        if unknown := set(names) - trained:
            problem = f"no training image has the class {show(min(unknown))} of this image in {part}"
            return f"{table.name}: row {row.number}: {problem}"
    return ""


def _describe_val(table: TableFile, parts: Sequence[str]) -> str:
    notice = f"{table.name} has no test images: the {parts.count('val')} images in val are its test part"
    return f"{notice}; a share (data.split.val) of train is used for validation" if "train" in parts else notice
