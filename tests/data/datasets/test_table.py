"""Labels from a table: `data=table data.file=labels.csv`."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calling import SMALL, Caller, limits, same_weights
from sppnet.config.schema import Data
from sppnet.data import Folder, ImageSet, Table, build_images, load_splits
from sppnet.data.build import split_notices
from sppnet.data.datasets.base import groups_of
from sppnet.data.datasets.digits import Digits
from sppnet.data.splits import all_labels, stratified_split
from sppnet.errors import UserError
from sppnet.runs.test_record import read_confusion
from sppnet.transfer.splits import draw_splits
from tiers import some_quick

Load = Callable[..., Data]
Make = Callable[..., Path]
QUICK = (*SMALL, "trainer.max_epochs=1", *limits(3), "data.num_workers=0", "data.batch_size=8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty files called a.jpg to t.jpg, whose content is no image; a listing does not open them."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for letter in "abcdefghijklmnopqrst":
        (folder / f"{letter}.jpg").write_bytes(letter.encode())
    return folder


def write(path: Path, rows: Sequence[Sequence[object]], delimiter: str = ",") -> str:
    path.write_text("".join(f"{delimiter.join(map(str, row))}\n" for row in rows))
    return str(path)


def table(photos: Path, text: str | bytes, **keys: Any) -> Table:
    file = photos.parent / "labels.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return Table(**{"root": str(photos), "file": str(file)} | keys)


def as_table(root: Path, file: Path, seed: int = 0) -> str:
    """Write the images of class folders, with or without parts, into a table in a random order."""
    rows = [path.relative_to(root).parts for path in root.rglob("*.png")]
    random.Random(seed).shuffle(rows)
    has_parts = len(rows[0]) == 3
    header = ("note", "label", "path", *(("split",) if has_parts else ()))
    return write(file, [header, *(("x", row[-2], "/".join(row), *row[:-2]) for row in rows)])


# Groups


def random_table(root: Path, number: int) -> tuple[Table, list[str]]:
    """A table of random groups, each with images of one class or of several, and the group of each image."""
    draw = random.Random(number)
    classes = "xyz"[: draw.choice([2, 3])]
    rows: list[list[str]] = []
    for group in range(draw.randint(16, 40)):
        mixed = draw.random() < 0.3
        for _ in range(draw.randint(1, 6)):
            label = draw.choice(classes) if mixed else classes[group % len(classes)]
            label = label if number % 2 else "|".join({label, draw.choice(classes)})
            rows.append([f"{len(rows)}.jpg", label, "" if draw.random() < 0.1 else f"group {group}"])
    if number % 3 == 0:
        part = {row[2]: draw.choice(["train", "train", "train", "test"]) for row in rows}
        rows = [[*row, part[row[2]] if row[2] else "train"] for row in rows]
    for row in rows:
        (root / row[0]).touch()
    draw.shuffle(rows)
    file = write(root / "labels.csv", [["path", "label", "group", "split"][: len(rows[0])], *rows])
    images = Table(None, file, separator=None if number % 2 else "|")
    group_by_name = {row[0]: row[2] or row[0] for row in rows}
    return images, [group_by_name[images.name(i)] for i in range(len(images))]


@pytest.mark.parametrize("number", range(50))
def test_a_group_is_never_divided(tmp_path: Path, config: Load, number: int) -> None:
    images, groups = random_table(tmp_path, number)
    largest, everything = max(Counter(groups).values()), set(range(len(images)))
    splits: list[dict[str, list[int]]] = []
    for fold in (None, *range(0 if images.split() else 5)):
        cfg = config("table", split={"seed": number, "test": 0.2, "fold": fold})
        sets = load_splits(cfg, images)
        splits.append({part: indices.tolist() for part, indices in sets.parts().items()})
        assert sorted(i for indices in splits[-1].values() for i in indices) == sorted(everything)
        trained = {label for i in splits[-1]["train"] for label in all_labels(images.label(i))}
        assert len(trained) == len(images.classes)
        drawn = everything if images.split() is None else everything.difference(splits[-1]["test"])
        assert abs(len(sets.val) - 0.15 * len(drawn)) <= largest
        if images.split() is None:
            assert abs(len(sets.test) - 0.2 * len(drawn)) <= largest
    if images.split() is None:
        assert sorted(i for split in splits[1:] for i in split["test"]) == sorted(everything)
    if not images.multilabel:
        numbers, labels = groups_of(images), [int(all_labels(images.label(i))[0]) for i in range(len(images))]
        least = min(Counter(labels).values()) // 3
        asked = {"count": 3, "train": least, "test": 5, "seed": number}
        for drawn_split in draw_splits(labels, sorted(everything), images.classes, asked, numbers):
            splits.append({"train": drawn_split.train.tolist(), "test": drawn_split.test.tolist()})
            assert {*Counter(labels[i] for i in splits[-1]["train"]).values()} == {least}
            assert {labels[i] for i in splits[-1]["test"]} == set(labels)
    for split in splits:
        members = [{groups[i] for i in indices} for indices in split.values()]
        assert sum(map(len, members)) == len(set.union(*members))


@pytest.mark.parametrize("classes", [3, 12])
def test_the_shares_of_parts_and_classes_are_kept_as_far_as_groups_allow(
    tmp_path: Path, config: Load, classes: int
) -> None:
    for number in range(5):
        draw = random.Random(number)
        sizes = [draw.randint(2, 8) for _ in range(120)]
        rows = [[f"{g}-{i}.jpg", f"c{g % classes}", g] for g, size in enumerate(sizes) for i in range(size)]
        for name, *_ in rows:
            (tmp_path / str(name)).touch()
        images = Table(None, write(tmp_path / "labels.csv", [["path", "label", "group"], *rows]))
        sets = load_splits(config("table"), images)
        totals = Counter(images.label(i) for i in range(len(images)))
        for members in (sets.val, sets.test):
            assert abs(len(members) - 0.15 * len(images)) <= 2.5, "half a group"
            counts = Counter(images.label(i) for i in members.tolist())
            assert all(abs(counts[label] - 0.15 * total) <= 5 for label, total in totals.items()), "a group"


def test_a_split_by_groups_depends_on_the_seed_and_not_on_the_rows(tmp_path: Path, config: Load) -> None:
    rows = [[f"{i}.jpg", "xy"[i // 4 % 2], f"p{i // 4}"] for i in range(160)]
    for name, *_ in rows:
        (tmp_path / name).touch()

    def tested(seed: int = 0, rename: str = "", order: int = 0) -> list[str]:
        shuffled = random.Random(order).sample(rows, len(rows))
        shuffled = [[name, label, rename + group[::-1]] for name, label, group in shuffled]
        images = Table(None, write(tmp_path / "labels.csv", [["path", "label", "group"], *shuffled]))
        return [images.name(i) for i in load_splits(config("table", split={"seed": seed}), images).test.tolist()]

    assert tested() == tested(order=1) == tested(rename="x")
    assert len({tuple(tested(seed)) for seed in range(5)}) == 5


def test_groups_of_one_image_split_as_without_groups(root: Path, config: Load) -> None:
    rows = [f"{letter}.jpg,{'xy'[i % 2]}" for i, letter in enumerate("abcdefghijklmnopqrst")]
    plain = table(root, "\n".join(["path,label", *rows]))
    alone = table(root, "\n".join(["path,label,group", *(f"{row},{i % 19 or ''}" for i, row in enumerate(rows))]))
    assert alone.groups() is None
    assert alone.fingerprint() == plain.fingerprint()
    assert load_splits(config("table"), alone).test.tolist() == load_splits(config("table"), plain).test.tolist()


TOO_FEW = {
    "pqq": (None, "2 group(s) of images are too few for test, val, train, because a group is not divided"),
    "ppppqqqqrrrr": (2, "data.split: 7 folds need at least 7 groups of images, but there are 3; with a higher"),
    "ppppqqqqrrrrs": (None, ""),
}


@pytest.mark.parametrize("groups", TOO_FEW)
def test_too_few_groups_are_refused(root: Path, config: Load, groups: str) -> None:
    fold, text = TOO_FEW[groups]
    rows = [f"{chr(ord('a') + i)}.jpg,{'xy'[i % 2]},{group}" for i, group in enumerate(groups)]
    images = table(root, "\n".join(["path,label,group", *rows]))
    if text:
        with pytest.raises(UserError, match=text.replace("(", r"\(").replace(")", r"\)")):
            load_splits(config("table", split={"fold": fold}), images)
    else:
        assert {images.label(i) for i in load_splits(config("table"), images).train.tolist()} == {0, 1}


def test_a_class_in_one_group_is_trained_on_or_the_fold_is_refused(root: Path, config: Load) -> None:
    rows = [
        f"{letter}.jpg,{'rare' if i < 3 else 'xy'[i % 2]},{i // 3}" for i, letter in enumerate("abcdefghijklmnopqr")
    ]
    images = table(root, "\n".join(["path,label,group", *rows]))
    label = images.classes.index("rare")
    outcomes: list[int | str] = []
    for fold in (None, 0, 1, 2):
        try:
            sets = load_splits(config("table", split={"fold": fold, "test": 0.3}), images)
            outcomes.append(sum(images.label(i) == label for i in sets.train.tolist()))
        except UserError as error:
            outcomes.append(str(error))
    assert outcomes[0] == 3
    [refused] = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert "class rare has images in 1 group(s), and none of them is left for training" in refused


Parts = dict[str, list[int]]


def split_groups(
    sizes: Sequence[Sequence[int]], seed: int, fold: int | None = None, val: float = 0.15, test: float = 0.15
) -> Parts:
    """Split groups of these sizes, for each class, and return how many images of each class are in each part."""
    groups = [(label, size) for label, of_class in enumerate(sizes) for size in of_class]
    labels = [label for label, size in groups for _ in range(size)]
    numbers = [number for number, (_, size) in enumerate(groups) for _ in range(size)]
    shares = {"test": test if fold is None else 0.2, "val": val}
    fold_of = None if fold is None else (fold, 5)
    parts = stratified_split(labels, range(len(labels)), shares, list("abc")[: len(sizes)], seed, fold_of, numbers)
    return {
        part: np.bincount([labels[i] for i in members], minlength=len(sizes)).tolist()
        for part, members in parts.items()
    }


def test_large_groups_do_not_fill_the_smaller_parts() -> None:
    for seed in range(5):
        for part in ("test", "val"):
            for (cats, dogs), share in (
                (split_groups([[80, 60] + [4] * 15, [4] * 20], seed)[part], 0.15 * 280),
                (split_groups([[60, 40, 35] + [5] * 60, [5] * 60], seed, val=0.05, test=0.05)[part], 0.05 * 735),
            ):
                assert min(cats, dogs) >= 10
                assert abs(cats + dogs - share) <= 5
        for sizes, test, val, expected in (
            ([300] + [100] * 7, 0.2, 0.04, (200, 100, 700)),
            ([300] + [100] * 5, 0.05, 0.05, (100, 100, 600)),
            ([600] + [100] * 9, 0.1, 0.02, (100, 100, 1300)),
        ):
            drawn = split_groups([sizes], seed, val=val, test=test)
            assert (*drawn["test"], *drawn["val"], *drawn["train"]) == expected
        for fold in range(5):
            assert min(split_groups([[60] * 3 + [5] * 20, [5] * 20], seed, fold)["val"]) > 0
            assert sum(split_groups([[2] * 50, [1] * 50], seed, fold)["val"]) in (22, 23)  # 15 % of all images


def test_few_groups_are_refused_only_if_no_division_trains_every_class() -> None:
    draw, refused = random.Random(0), 0
    for seed in range(300):
        of_groups = [draw.randrange(3) for _ in range(draw.randint(3, 7))]
        classes = sorted(set(of_groups))
        sizes = [[draw.choice([1, 1, 2, 3, 5, 9]) for each in of_groups if each == label] for label in classes]
        try:
            parts = split_groups(sizes, seed)
        except UserError:
            refused += 1
            # one group of each class is for training, so two more groups are needed
            assert len(of_groups) < len(classes) + 2, sizes
        else:
            assert min(parts["train"]) > 0
            assert all(sum(counts) for counts in parts.values())
    assert 50 < refused < 250


class Grouped(Digits):
    def __init__(self, groups: Sequence[int] | None, parts: dict[str, list[int]] | None = None) -> None:
        super().__init__()
        self._groups, self._parts = groups, parts

    def groups(self) -> Sequence[int] | None:
        return self._groups

    def split(self) -> dict[str, list[int]] | None:
        return self._parts

    def fingerprint(self) -> str:
        return ImageSet.fingerprint(self)


def test_groups_of_a_data_set_of_ones_own_count(config: Load) -> None:
    cfg, count = config("digits"), len(Digits())
    groups = [7 * (i // 10) for i in range(count)]
    sets = load_splits(cfg, Grouped(groups))
    members = [{groups[i] for i in indices.tolist()} for indices in sets.parts().values()]
    assert sum(map(len, members)) == len(set(groups)) == len(set.union(*members))
    same = Grouped(np.asarray(groups) + 1)  # type: ignore[arg-type]
    assert load_splits(cfg, same).test.tolist() == sets.test.tolist()
    for refused, text in (
        (Grouped([0] * 5), rf"Grouped\.groups\(\) must be .* for each image; it has 5 item\(s\) for {count} images"),
        (Grouped(["p"] * count), r"Grouped\.groups\(\) must be None or a list of one integer .*; one of them is 'p'"),  # type: ignore[list-item]
        (Grouped(3), r"a list of one integer for each image, not int"),  # type: ignore[arg-type]
        (
            Grouped(groups, {"train": [0, 1], "test": [2, 20]}),
            r"'train' and 'test' must not share a group, but 1 group",
        ),
    ):
        with pytest.raises(UserError, match=text):
            load_splits(cfg, refused)
    load_splits(cfg, Grouped(groups, {"train": [*range(500)], "val": [*range(500, 600)], "test": [*range(500, 600)]}))


def test_a_fingerprint_by_pixels_covers_groups() -> None:
    first, same, other, none = (Grouped(g) for g in ([0, 0, 1], [5, 5, 2], [0, 1, 1], None))
    for images in (first, same, other, none):
        images.__class__ = type("Few", (Grouped,), {"__len__": lambda self: 3})
    assert first.fingerprint() == same.fingerprint()
    assert len({images.fingerprint() for images in (first, other, none)}) == 3


# The same images as in class folders


@pytest.mark.parametrize("parts", [(), ("train", "val"), ("train", "val", "test"), ("train", "test")])
def test_a_table_lists_what_class_folders_hold(
    tmp_path: Path, make_tree: Make, config: Load, parts: tuple[str, ...]
) -> None:
    for part in parts or ("",):
        make_tree(tmp_path / "photos" / part, {"b/b": 3, "B": 4, "B-2": 2, "caf\u00e9": 5})
    file = tmp_path / "labels.csv"
    rows = [(path.relative_to(tmp_path / "photos"), path) for path in (tmp_path / "photos").rglob("*.png")]
    cells = [(name.as_posix(), name.parts[bool(parts)], name.parts[0].upper()) for name, _ in rows]
    write(file, [("path", "label", "split")[: 2 + bool(parts)], *(row[: 2 + bool(parts)] for row in cells)])
    listed, folder = Table(str(tmp_path / "photos"), str(file)), Folder(str(tmp_path / "photos"))
    assert [listed.name(i) for i in range(len(listed))] == [folder.name(i) for i in range(len(folder))]
    assert (listed.classes, listed.split(), listed.listing.labels) == (
        folder.classes,
        folder.split(),
        folder.listing.labels,
    )
    assert listed.fingerprint() == folder.fingerprint()
    assert len(listed.notices()) == len(folder.notices()) == (parts == ("train", "val"))


@pytest.mark.parametrize("parts", [(), ("train", "val")])
def test_a_table_and_class_folders_give_the_same_run(
    sppnet: Caller, tmp_path: Path, make_tree: Make, parts: tuple[str, ...]
) -> None:
    for part in parts or ("",):
        make_tree(tmp_path / "photos" / part, {"cat": 12, "dog": 9, "emu": 10})
    as_table(tmp_path / "photos", tmp_path / "labels.csv")
    folder = sppnet("train", *QUICK, "data=folder", "data.root=photos")
    listed = sppnet("train", *QUICK, "data=table", "data.file=labels.csv", "data.root=photos")
    assert (folder.code, listed.code) == (0, 0), listed.err
    for name in ("last", "best"):
        assert same_weights(*(called.run / f"checkpoints/{name}.ckpt" for called in (folder, listed)))
    first, second = (json.loads((called.run / "summary.json").read_text()) for called in (folder, listed))
    assert {k: v for k, v in first.items() if "test/" in k} == {k: v for k, v in second.items() if "test/" in k}
    tested = sppnet("test", f"checkpoint={folder.run}", "data=table", "data.file=labels.csv", "data.root=photos")
    assert tested.code == 0, tested.err
    assert "not the data set" not in tested.err
    assert tested.figure("test/top1") == folder.figure("test/top1")
    assert tested.figure("images") == folder.figure("images")


# What the fingerprint covers

ROWS = [
    ["a.jpg", "x", "train", "p"],
    ["b.jpg", "y", "train", "q"],
    ["c.jpg", "x", "test", "r"],
    ["d.jpg", "y", "test", "r"],
]
HEADER = ["path", "label", "split", "group"]


def lines(rows: Sequence[Sequence[str]] = ROWS, header: Sequence[str] = HEADER, delimiter: str = ",") -> str:
    return "".join(f"{delimiter.join(row)}\n" for row in (header, *rows))


def test_the_form_of_the_table_does_not_count(root: Path) -> None:
    expected = table(root, lines()).fingerprint()
    forms: list[str | bytes] = [
        lines(ROWS[::-1]),
        b"\xef\xbb\xbf" + lines().encode(),
        lines().encode("utf-16"),
        lines().replace("\n", "\r\n"),
        lines().replace("\n", "\r"),
        lines(delimiter="\t"),
        lines(delimiter=";"),
        lines() + "\n,,,\n",
        lines().rstrip(),
        lines([[f'"./{path}"', f" {label} ", part.upper(), group] for path, label, part, group in ROWS]),
        lines([[*row, "7"] for row in ROWS], [*HEADER, "age"]),
        lines([row[::-1] for row in ROWS], HEADER[::-1]),
        lines([[str(root / row[0]), *row[1:]] for row in ROWS]),
        lines([[*row[:2], {"train": "Training", "test": "TESTING"}[row[2]], row[3] * 2] for row in ROWS]),
    ]
    for form in forms:
        assert table(root, form).fingerprint() == expected, form
    renamed = {"path": "file", "label": "the class", "split": "fold", "group": "owner"}
    assert table(root, lines(header=[*renamed.values()]), columns=renamed).fingerprint() == expected
    (root.parent / "more").mkdir()
    moved = root.rename(root.parent / "more" / "photos")
    (moved / "labels.tsv").write_text(lines(delimiter="\t"))
    assert Table(None, str(moved / "labels.tsv")).fingerprint() == expected


def test_what_the_table_says_counts(root: Path) -> None:
    def changed(row: int, column: int, text: str) -> list[list[str]]:
        return [[text if (i, j) == (row, column) else cell for j, cell in enumerate(r)] for i, r in enumerate(ROWS)]

    tables = [
        table(root, lines(rows)).fingerprint()
        for rows in (ROWS, changed(0, 0, "e.jpg"), changed(0, 1, "y"), changed(1, 3, "p"), ROWS[:3], changed(2, 1, "y"))
    ]
    tables.append(table(root, lines(), columns={"split": None}).fingerprint())
    tables.append(table(root, lines(), columns={"group": None}).fingerprint())
    tables.append(table(root, lines(), separator=";").fingerprint())
    (root / "a.jpg").write_bytes(b"other")
    tables.append(table(root, lines()).fingerprint())
    assert len({*tables}) == len(tables)


def test_a_column_that_is_not_used_may_hold_anything(root: Path) -> None:
    assert len(table(root, 'path,label,note\na.jpg,x, "blurred"\nb.jpg,y,"a, b"\n')) == 2


def test_parts_have_the_names_of_folders(root: Path, config: Load) -> None:
    rows = [
        [f"{letter}.jpg", "xy"[i % 2], ["Training", "VALID"][i > 11]] for i, letter in enumerate("abcdefghijklmnop")
    ]
    images = table(root, lines(rows, HEADER[:3]))
    sets = load_splits(config("table"), images)
    assert (len(sets.train), len(sets.val), len(sets.test)) == (10, 2, 4)
    [notice] = images.notices()
    assert notice.endswith(
        "has no test images: the 4 images in val are its test part; a share (data.split.val) of train is used for"
        " validation"
    )
    assert split_notices(["data.split.test=0.3", "data.split.val=0.1"], images) == [
        "data.split.test has no effect: the data set has its own part 'test'"
    ]
    for part in ("test", "train"):
        images = table(root, lines([[*row[:2], part] for row in rows], HEADER[:3]))
        assert f"images are in {part}" in images.untrainable() or "no images are in train" in images.untrainable()
    empty = table(root, lines([[*row[:2], ""] for row in rows], HEADER[:3]))
    assert empty.split() is None


# Mistakes

H = "path,label\n"
S = "path,label,split,group\n"
BAD: dict[str | bytes, str] = {
    "": "is empty; its first row must have the names of the columns",
    H: "has no rows below its header",
    "path,klass\na.jpg,x\n": "has no column called 'label'; row 1 names the columns 'path', 'klass' (data.",
    "path,label,Group\na.jpg,x,y\n": "has no column called 'group', but one called 'Group'; data.columns.group=Group",
    "path,label,splits\na.jpg,x,y\n": "has no column called 'split', but one called 'splits'; data.columns.split=",
    f'{H}a.jpg,x\nb.jpg, "y"\n': "row 3: remove the blank before \"y\"",
    'path,label, "split"\na.jpg,x,test\n': "row 1: remove the blank before \"split\"",
    "path,label,label\na.jpg,x,y\n": "has 2 columns called 'label'",
    f"{H}a.jpg,x\nzz.jpg,y\nyy.jpg,y\n": "row 3: 'zz.jpg': No such file or directory (paths are relative to data.root,",
    f"{H}a.jpg,x\n\n\nzz.jpg,y\nyy.jpg,y\nxx.jpg,y\n": "row 5: 'zz.jpg': No such file",
    f"{H}zz.jpg,y\nyy.jpg,y\na.jpg,y\n": "; 1 more of the 3 images cannot be found",
    f"{H}a,x\n": "there is 'a.jpg': paths need the suffix of the file",
    f"{H}sub\\a.jpg,x\n": "paths need / instead of \\",
    f"{H}a.jpg,x\nb.jpg,x\n./a.jpg,y\n": "row 4: './a.jpg' is listed in row 2, too; an image may be listed once",
    f"{H}a.jpg,x\nlink.jpg,y\n": "row 3: 'link.jpg' leads to the same file as row 2, through a link; the image would",
    f"{H}linked/1.jpg,x\nsub/1.jpg,y\n": "row 3: 'sub/1.jpg' leads to the same file as row 2, through a link",
    f"{H}../photos/a.jpg,x\n": "row 2: '../photos/a.jpg' leaves data.root; paths must not have .. in them",
    f"{H}/etc/passwd,x\n": "row 2: '/etc/passwd' is not inside data.root=",
    f"{H}sub,x\n": "row 2: 'sub' is a folder; a path must be that of an image file",
    f"{H},x\n": "row 2: the path is empty (column 'path')",
    f"{H}a.jpg, \n": "row 2: the label is empty (column 'label')",
    f"{H}a.jpg\n": "row 2: 1 cell(s), but row 1 names 2 columns",
    f"{H}a.jpg,x,y\n": "row 2: 3 cell(s), but row 1 names 2 columns; a cell that holds the delimiter needs",
    f'{H}a.jpg,x\n"b.jpg,y\n': "row 3: cannot be read as a row of cells (unexpected end of data); is a double quote",
    f"{H}a.jpg,x\nb\0.jpg,y\n": "row 3: not valid text in UTF-8 (or UTF-16 with a byte-order mark)",
    f"{H}a.jpg,{'x' * 200_000}\n": "row 2: cannot be read as a row of cells (field larger than field limit",
    f"{H}{'a' * 5000}.jpg,x\n": "File name too long",
    f"{H}a.jpg,x\nb.jpg,caf\u00e9\n".encode("latin1"): "row 3: not valid text in UTF-8",
    f"{H}a.jpg,x\n".encode("utf-16-le"): "row 1: not valid text in UTF-8 (or UTF-16 with a byte-order mark)",
    f"{H}a.jpg,x\n".encode("utf-16")[:-1]: "is cut off: it ends in the middle of a character",
    b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(256)): "row 1: not valid text in UTF-8",
    b"PK\x03\x04\x14\0": "is an archive or a workbook (such as .xlsx), not a table; save it as CSV",
    f"{S}a.jpg,x,train,\nb.jpg,y,dev,\n": "row 3: 'dev' is not a part (column 'split'); it must be train (or training)",
    f"{S}a.jpg,x,train,\nb.jpg,y,,\n": "row 3: the part is empty (column 'split')",
    f"{S}a.jpg,x,train,p\nb.jpg,y,train,\nc.jpg,x,test,p\n": "row 4: group 'p' is in test, but in row 2, it is in",
}  # fmt: skip


@pytest.mark.parametrize("content", BAD, ids=lambda content: repr(content)[:40])
def test_a_mistake_in_a_table_is_one_line_with_the_row(root: Path, content: str | bytes) -> None:
    (root / "link.jpg").symlink_to("a.jpg")
    (root / "linked").symlink_to("sub")
    (root / "sub" / "1.jpg").touch()
    with pytest.raises(UserError) as caught:
        table(root, content)
    assert str(caught.value).startswith(f"data.file={root.parent}/labels.csv")
    assert BAD[content] in str(caught.value)


WRONG_KEYS: list[tuple[dict[str, Any], str]] = [
    ({"file": None}, "data.file is not set; give the table with the labels as data.file=labels.csv"),
    ({"file": 3}, "data.file=3 is not allowed: must be the path of a table"),
    ({"file": "/no/such.csv"}, "data.file=/no/such.csv does not exist"),
    (
        {"file": "/"},
        "data.file=/ is a folder; it must be a CSV or TSV file; for images in class folders, use data=folder",
    ),
    ({"file": "/dev/null"}, "data.file=/dev/null is no regular file"),
    ({"root": "/no/such"}, "data.root=/no/such does not exist"),
    ({"separator": ""}, "data.separator= is not allowed: must be null or a text, such as ';'"),
    ({"columns": {"id": "a"}}, "data.columns.id is not allowed: the columns are path, label, split, group"),
    ({"columns": {"label": None}}, "data.columns.label=null is not allowed: a table needs the columns path and label"),
    ({"columns": {"label": 3}}, "data.columns.label=3 is not allowed: must be the name of a column, as text"),
    (
        {"columns": {"group": "p"}},
        "has no column called 'p'; row 1 names the columns 'path', 'label' (data.columns.group=",
    ),
    ({"columns": "label"}, "data.columns=label is not allowed: must be a mapping, such as {label: diagnosis}"),
]


@pytest.mark.parametrize(("keys", "text"), WRONG_KEYS, ids=lambda value: repr(value)[:40])
def test_a_wrong_key_of_a_table_is_refused(root: Path, keys: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as caught:
        table(root, f"{H}a.jpg,x\nb.jpg,y\n", **keys)
    assert text in str(caught.value)


UNTRAINABLE = {
    f"{H}a.jpg,x\nb.jpg,x\n": "the training images have only one class (x); at least two are needed",
    f"{S}a.jpg,x,train,\nb.jpg,y,train,\n": "all images are in train, and none are in test or val; data.col",
    f"{S}a.jpg,x,train,\nb.jpg,y,train,\nc.jpg,z,val,\n": "row 4: no training image has the class 'z' of this image",
    f"{S}a.jpg,x,test,\nb.jpg,y,test,\n": "no images are in train",
}


@pytest.mark.parametrize("content", UNTRAINABLE)
def test_a_table_that_can_only_be_tested_says_why(root: Path, config: Load, content: str) -> None:
    with pytest.raises(UserError) as caught:
        load_splits(config("table"), table(root, content))
    assert UNTRAINABLE[content] in str(caught.value)


# Several labels per image


def test_several_labels_are_separated_stripped_and_counted_once(root: Path) -> None:
    text = 'path,label\na.jpg,x\nb.jpg,\nc.jpg, y ;; "x" ;y\nd.jpg,caf\u00e9\ne.jpg,cafe\u0301\n'.replace('"x"', "x")
    images = table(root, text, separator=";")
    assert images.multilabel
    assert images.classes == ["caf\u00e9", "x", "y"]
    assert [images.label(i) for i in range(5)] == [(1,), (), (1, 2), (0,), (0,)]
    assert not table(root, f"{H}a.jpg,x;y\n").multilabel
    with pytest.raises(UserError, match="every cell of the column 'label' is empty"):
        table(root, f"{H}a.jpg,\nb.jpg,;\n", separator=";")


ODD = ["$x_1^2$", "=1+1", 'a "b", c', "line\nbreak", "\u732b \U0001f431", "x/y\\z"]


def test_several_labels_train_a_run_that_is_found_again(sppnet: Caller, tmp_path: Path, make_tree: Make) -> None:
    make_tree(tmp_path / "photos", {"in": 48})
    rows = [["image", "tags", "patient"]]
    for i in range(48):
        tags = [name for k, name in enumerate(ODD[:3]) if i // (k + 1) % 2]
        quoted = "|".join(tags).replace('"', '""')
        rows.append([f"in/{i:03d}.png", f'"{quoted}"', f"p{i // 4}"])
    file = write(tmp_path / "labels.csv", rows)
    words = [*QUICK, "data=table", f"data.file={file}", "data.root=photos", "data.separator=|"]
    words.append("data.columns={path: image, label: tags, group: patient}")
    first = sppnet("train", *words)
    assert first.code == 0, first.err
    assert 0 < first.figure("test/map") <= 1
    config = (first.run / "config.yaml").read_text()
    assert "bce" not in config
    (tmp_path / "labels.csv").rename(tmp_path / "moved.csv")
    moved = [word.replace("labels.csv", "moved.csv") for word in words]
    again = sppnet("train", *moved)
    assert again.run == first.run
    assert "is done" in again.out
    tested = sppnet("test", f"checkpoint={first.run}", f"data.file={tmp_path}/moved.csv", "sizes.test=[20]")
    assert tested.code == 0, tested.err
    refused = sppnet("train", *moved, "data.sampling=balanced")
    assert (refused.code, "its images have several labels" in refused.err) == (2, True)


# The command line


def test_odd_labels_and_groups_pass_through_the_command_line(
    sppnet: Caller, spawn: Caller, tmp_path: Path, make_tree: Make
) -> None:
    make_tree(tmp_path / "photos", {"in": 48})
    labels = [label.replace('"', '""') for label in ODD]
    rows = [[f"in/{i:03d}.png", f'"{labels[i % 6]}"', f"{i % 6}-{i // 12}"] for i in range(48)]
    write(tmp_path / "photos" / "my labels (1).csv", [["path", "label", "group"], *rows])
    words = ("data=table", "data.file=photos/my labels (1).csv")
    done = sppnet("train", *QUICK, *words, *limits(None))
    assert done.code == 0, done.err
    [file] = (tmp_path / done.run / "confusion").glob("*.csv")
    assert read_confusion(file)[0] == sorted(ODD)
    tested = sppnet("test", f"checkpoint={done.run}")
    assert tested.code == 0, tested.err
    assert file.with_suffix(".svg").exists()
    before = sorted(tmp_path.rglob("*"))
    refused = spawn("train", *QUICK, "data=table", "data.file=photos/in/000.png")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "row 1: not valid text in UTF-8" in refused.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words", some_quick(["data.fit=full", "data.cache=true data.short_side=24", "data.bad_files=skip"])
)
def test_keys_of_data_hold_for_a_table(sppnet: Caller, tmp_path: Path, make_tree: Make, words: str) -> None:
    make_tree(tmp_path / "photos", {"cat": 12, "dog": 12})
    if "data.bad_files=skip" in words:
        (tmp_path / "photos" / "dog" / "003.png").write_bytes(b"no image")
    as_table(tmp_path / "photos", tmp_path / "photos" / "labels.csv")
    done = sppnet("train", *QUICK, "data=table", "data.file=photos/labels.csv", *words.split())
    assert done.code == 0, done.err


def test_transfer_does_not_divide_groups(sppnet: Caller, tmp_path: Path, make_tree: Make) -> None:
    make_tree(tmp_path / "photos", {"cat": 12, "dog": 12})
    rows = [[f"{name}/{i:03d}.png", name, f"{i // 3}"] for name in ("cat", "dog") for i in range(12)]
    write(tmp_path / "photos" / "labels.csv", [["path", "label", "group"], *rows])
    words = ("data=table", "data.file=photos/labels.csv", "data.num_workers=0", "sizes.test=[24]", "splits=2")
    done = sppnet("transfer", *words, "per_class.train=6", "backbone.width=4", "progress=none")
    assert done.code == 0, done.err
    assert "2 random splits of all images, without dividing groups: 6 of each class to train on" in done.out
    refused = sppnet("transfer", *words, "per_class.train=11", "backbone.width=4", "progress=none")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "per_class.train=11 leaves no group of images for testing for these classes: cat, dog" in refused.err


@pytest.mark.slow
def test_100_000_rows_are_listed_and_split_in_seconds(tmp_path: Path, config: Load) -> None:
    rows = [[f"{i % 100}/{i}.jpg", f"class {i % 100}", f"p{i // 300}"] for i in range(100_000)]
    for i in range(100):
        (tmp_path / str(i)).mkdir()
    for name, *_ in rows:
        (tmp_path / str(name)).touch()
    write(tmp_path / "labels.csv", [["path", "label", "group"], *rows])
    start = time.monotonic()
    images = build_images(config("table", file=str(tmp_path / "labels.csv")))
    listed = time.monotonic()
    load_splits(config("table"), images)
    assert len(images) == 100_000
    assert listed - start < 15, "1.5 seconds on an idle machine"
    assert time.monotonic() - listed < 15
