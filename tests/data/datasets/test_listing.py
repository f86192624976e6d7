import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sppnet.config.schema import Data
from sppnet.data import Splits, build_images, fingerprint, load_splits
from sppnet.data.datasets.unlabelled import find_images
from sppnet.errors import UserError

Load = Callable[..., Data]
Make = Callable[..., Path]
Paint = Callable[..., None]
JUNK = (
    "@eaDir",
    ".thumbnails",
    "__MACOSX",
    ".ipynb_checkpoints",
    "$RECYCLE.BIN",
    "$Recycle.Bin",
    "lost+found",
    "#recycle",
)


def add(root: Path, *names: str) -> None:
    """Two files with an image suffix in each folder; a listing does not open them."""
    for name in names:
        for i in range(2):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / f"{i}.png").write_bytes(b"x")


@pytest.fixture
def root(tmp_path: Path, make_tree: Make) -> Path:
    return make_tree(tmp_path / "photos", {"cat": 20, "dog": 10, "emu": 40})


def test_a_folder_is_split_by_class_seeded_and_without_overlap(root: Path, config: Load) -> None:
    sets = load_splits(config("folder", root=str(root)))
    parts = [set(sets.train.tolist()), set(sets.val.tolist()), set(sets.test.tolist())]
    assert set.union(*parts) == set(range(70))
    assert sum(map(len, parts)) == 70
    for part, expected in zip(parts, ([14, 6, 28], [3, 2, 6], [3, 2, 6]), strict=True):
        assert [sum(sets.images.label(i) == c for i in part) for c in range(3)] == expected
    again = load_splits(config("folder", root=str(root)))
    assert again.test.tolist() == sets.test.tolist()
    reseeded = load_splits(config("folder", root=str(root), split={"seed": 1}))
    assert reseeded.test.tolist() != sets.test.tolist()


def test_folds_test_every_image_once(root: Path, config: Load) -> None:
    def parts(fold: int) -> Splits:
        return load_splits(config("folder", root=str(root), split={"test": 0.3, "fold": fold}))

    folds = [parts(fold) for fold in range(3)]
    assert sorted(i for sets in folds for i in sets.test.tolist()) == list(range(70))
    for sets in folds:
        assert sorted([*sets.train.tolist(), *sets.val.tolist(), *sets.test.tolist()]) == list(range(70))
        for label, images in enumerate((20, 10, 40)):
            assert abs(sum(sets.images.label(i) == label for i in sets.test.tolist()) - images / 3) < 1
    with pytest.raises(UserError, match=r"data\.split\.fold=3 .* folds 0 to 2"):
        parts(3)


def test_a_data_set_with_official_parts_has_no_folds(tmp_path: Path, config: Load, make_tree: Make) -> None:
    for part in ("train", "test"):
        make_tree(tmp_path / part, {"a": 5, "b": 5})
    with pytest.raises(UserError, match=r"data\.split\.fold=0 is not allowed: .* its own test part"):
        load_splits(config("folder", root=str(tmp_path), split={"fold": 0}))


def test_a_new_class_does_not_change_the_split_of_the_others(root: Path, config: Load, make_tree: Make) -> None:
    def tested() -> set[str]:
        sets = load_splits(config("folder", root=str(root)))
        return {sets.images.name(i) for i in sets.test.tolist()}

    before = tested()
    make_tree(root, {"ant": 7})
    assert {name for name in tested() if not name.startswith("ant")} == before


def test_official_parts_are_used_and_validation_comes_from_training(
    root: Path, config: Load, tmp_path: Path, make_tree: Make
) -> None:
    base = tmp_path / "parted"
    shutil.copytree(root, base / "train")
    make_tree(base / "test", {"cat": 2, "dog": 2, "emu": 2})
    sets = load_splits(config("folder", root=str(base)))
    assert sorted({sets.images.name(i).split("/")[0] for i in sets.test.tolist()}) == ["test"]
    assert (len(sets.train), len(sets.val), len(sets.test)) == (59, 11, 6)
    assert {sets.images.name(i).split("/")[0] for i in [*sets.train, *sets.val]} == {"train"}
    make_tree(base / "val", {"cat": 3, "dog": 1})
    sets = load_splits(config("folder", root=str(base)))
    assert (len(sets.train), len(sets.val), len(sets.test)) == (70, 4, 6)


@pytest.mark.parametrize(
    "folders",
    [("train", "", "val"), ("Training", "valid", "TEST"), ("TRAIN", "Validation", "testing"), ("train", "", "Valid")],
)
def test_parts_have_their_usual_names_in_any_case(tmp_path: Path, config: Load, folders: tuple[str, str, str]) -> None:
    train, val, test = folders
    for folder in filter(None, folders):
        for _ in range(2):
            add(tmp_path / folder, "cat", "dog")
    for name in ("README", "LICENSE", "labels.csv", "sample.jpg", "annotations/cat.xml", "all.zip", "Test.tar.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sets = load_splits(config("folder", root=str(tmp_path)))
    for part, folder in {"train": train, "val": val or train, "test": test}.items():
        members = [sets.images.name(i) for i in getattr(sets, part).tolist()]
        assert {name.split("/")[0] for name in members} == {folder}
        assert {name.split("/")[1] for name in members} == {"cat", "dog"}
    share = f"a share (data.split.val) of {train}/ is used for validation"
    expected = [f"data.root={tmp_path} has no test/: the 4 images of {test}/ are its test part; {share}"]
    notices = sets.images.notices()
    assert notices[:1] == ([] if val else expected)
    assert [tmp_path.name + "/Test.tar.gz" in line for line in notices[1:]] == ([] if val else [True])  # a packed part


def test_accents_may_be_spelled_in_two_ways(tmp_path: Path, config: Load) -> None:
    add(tmp_path / "train", "caf\u00e9", "dog/dog", "emu/emu")
    add(tmp_path / "test", "cafe\u0301", "dog")
    images = load_splits(config("folder", root=str(tmp_path))).images
    assert images.classes == ["caf\u00e9", "dog", "emu"]
    assert [images.label(i) for i in range(len(images))] == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1]


def test_validation_share_zero_validates_on_the_test_part(root: Path, config: Load) -> None:
    sets = load_splits(config("folder", root=str(root), split={"val": 0, "test": 0.2}))
    assert sets.val.tolist() == sets.test.tolist()
    assert len(sets.train) == 56


def test_hidden_and_junk_files_are_ignored_and_nested_images_listed(root: Path, config: Load, paint: Paint) -> None:
    before = fingerprint(config("folder", root=str(root)))
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "cat" / "._000.png").write_bytes(b"x")
    (root / "cat" / "notes.txt").write_text("x")
    (root / ".cache").mkdir()
    for junk in JUNK:
        add(root, junk, f"cat/{junk}", f"dog/more/{junk}")
        (root / "emu" / junk).mkdir()
        (root / "emu" / junk / "thumb").write_bytes(b"\xff\xd8\xff\xe0")
    for name in ("Thumbs.db", "desktop.ini"):
        (root / "cat" / name).touch()
    assert fingerprint(config("folder", root=str(root))) == before
    assert len(find_images(str(root)).names) == 70
    paint(root / "cat" / "more" / "deep.JPG", 8, 8)
    images = load_splits(config("folder", root=str(root))).images
    assert "cat/more/deep.JPG" in {images.name(i) for i in range(len(images))}


def test_an_image_without_suffix_is_read_and_skipped_files_are_counted(root: Path, config: Load) -> None:
    data = config("folder", root=str(root))
    assert build_images(data).notices() == []
    for format, name in [("JPEG", "a"), ("PNG", "b."), ("WEBP", "c. 5"), ("TIFF", "d"), ("BMP", "e")]:
        Image.new("RGB", (9, 8)).save(root / "dog" / name, format)
    skipped = {
        "LICENSE": b"BM and the like",
        "x.JPEG~": b"\xff\xd8\xff",
        "y.heic": b"x",
        "z.HEIC": b"x",
        "a.zip": b"PK",
        "f.mov": b"x",
    }
    for name, content in skipped.items():
        (root / "emu" / name).write_bytes(content)
    os.mkfifo(root / "emu" / "pipe")  # opening it would block
    (root / "loose.jpg").touch()
    images = build_images(data)
    shapes = {images.name(i): images.shape(i) for i in range(len(images)) if images.name(i)[4] in "abcde"}
    assert shapes == dict.fromkeys(("dog/a", "dog/b.", "dog/c. 5", "dog/d", "dog/e"), (8, 9))
    assert len(images) == 75
    [counted, loose] = images.notices()
    assert "7 file(s) are not read" in counted
    assert all(kind in counted for kind in ("2 .heic", "1 .jpeg~", "1 .zip", "2 without a suffix"))
    assert "convert .heic files to JPEG or PNG" in counted
    assert "unpack .zip files" in counted
    assert "rename .jpeg~ files to have" in counted  # not the video
    assert "1 image(s) beside the class folders" in loose
    files = find_images(str(root))  # without classes, it also finds the loose image
    assert len(files.names) == 76
    assert files.not_read.replace("input=", "data.root=") == counted
    (root / "yak.tar.gz").touch()  # perhaps a packed class
    [counted, _] = build_images(data).notices()
    assert "8 file(s) are not read" in counted
    assert "1 .gz" in counted
    (root / "README.txt").touch()
    (root / ".hidden").symlink_to(".hidden")
    (root / "labels.csv").symlink_to(root / "nowhere")  # a file by its name, not a class
    assert counted in build_images(data).notices()


def test_the_fingerprint_does_not_depend_on_the_path(root: Path, config: Load, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "elsewhere")
    first = fingerprint(config("folder", root=str(root)))
    assert first == fingerprint(config("folder", root=str(tmp_path / "elsewhere"), batch_size=3))
    assert len(first) == 64


@pytest.mark.parametrize("change", ["rename", "grow", "remove", "other class", "paint over", "change places"])
def test_the_fingerprint_changes_with_the_data(root: Path, config: Load, change: str) -> None:
    before = fingerprint(config("folder", root=str(root)))
    file = root / "cat" / "003.png"
    if change == "rename":
        file.rename(root / "cat" / "x.png")
    elif change == "grow":
        file.write_bytes(file.read_bytes() + b"\0")
    elif change == "paint over":  # same length and times
        times = file.stat()
        file.write_bytes(file.read_bytes()[:-20] + bytes(20))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "change places":
        second = file.with_name("004.png")
        contents = (file.read_bytes().ljust(9000, b"\0"), second.read_bytes().ljust(9000, b"\0"))
        for turn in (1, -1):
            for path, content in zip((file, second)[::turn], contents, strict=True):
                path.write_bytes(content)
                os.utime(path, ns=(1, 1))
            before, after = fingerprint(config("folder", root=str(root))), before
        assert before != after
        return
    elif change == "remove":
        file.unlink()
    else:
        (root / "cat").rename(root / "lynx")
    assert fingerprint(config("folder", root=str(root))) != before


def test_splits_of_a_listed_data_set_do_not_list_it_again(root: Path, config: Load) -> None:
    cfg = config("folder", root=str(root))
    images = build_images(cfg)
    before, expected = images.fingerprint(), load_splits(cfg)
    (root / "cat" / "000.png").unlink()
    sets = load_splits(cfg, images)
    assert sets.images is images
    assert sets.test.tolist() == expected.test.tolist()
    assert images.fingerprint() == before != fingerprint(cfg)


@pytest.mark.parametrize("name", [b"caf\xe9", b"cat/caf\xe9.png", b"cat/caf\xe9/x.png"])
def test_a_name_that_is_not_utf8_is_refused_when_files_are_listed(root: Path, config: Load, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
    try:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(root / "cat" / "000.png", path) if path.suffix else path.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(UserError, match=r"caf\\xe9.*' is not valid UTF-8; rename the file or folder$") as caught:
        load_splits(config("folder", root=str(root)))
    str(caught.value).encode()


def test_skipped_files_may_have_any_name(root: Path, config: Load) -> None:
    before = fingerprint(config("folder", root=str(root)))
    try:
        Path(os.fsdecode(os.fsencode(root) + b"/cat/caf\xe9.t\xe9t")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    [notice] = build_images(config("folder", root=str(root))).notices()
    assert "caf\ufffd.t\ufffdt" in notice
    notice.encode()  # run records are UTF-8
    assert fingerprint(config("folder", root=str(root))) == before


def test_links_and_hard_links_to_distinct_files_are_listed(root: Path, config: Load, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(root / name)
    (tmp_path / "linked" / "emu").mkdir()
    for file in (root / "emu").iterdir():
        (tmp_path / "linked" / "emu" / file.name).symlink_to(file)
    assert fingerprint(config("folder", root=str(tmp_path / "linked"))) == fingerprint(config("folder", root=str(root)))
    os.link(root / "cat" / "000.png", root / "dog" / "copy.png")
    assert len(build_images(config("folder", root=str(root)))) == 71


def test_a_link_into_a_dropped_class_is_no_duplicate(config: Load, tmp_path: Path) -> None:
    add(tmp_path, "BACKGROUND_Google", "ant", "bass")
    (tmp_path / "ant" / "l.png").symlink_to(tmp_path / "BACKGROUND_Google" / "0.png")
    assert len(build_images(config("caltech101", root=str(tmp_path), background=False))) == 5
    with pytest.raises(UserError, match=r"l\.png"):
        build_images(config("caltech101", root=str(tmp_path)))


def missing(root: Path) -> None:
    shutil.rmtree(root)


def a_file(root: Path) -> None:
    shutil.rmtree(root)
    root.write_text("x")


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def no_images(root: Path) -> None:
    empty(root)
    (root / "a").mkdir()


def empty_class(root: Path) -> None:
    (root / "gnu").mkdir()


def only_text(root: Path) -> None:
    empty_class(root)
    (root / "gnu" / "a.txt").touch()


def one_class(root: Path) -> None:
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "dog")


def only_train(root: Path) -> None:
    for name in ("cat", "dog", "emu"):
        shutil.move(root / name, root / "train" / name)


def unknown_class(root: Path) -> None:
    only_train(root)
    add(root / "test", "cat", "yak")


def misnamed_part(root: Path) -> None:
    only_train(root)
    add(root / "test", "cat")
    add(root / "dev", "cat")


def one_part_twice(root: Path) -> None:
    only_train(root)
    add(root / "val", "cat")
    add(root / "Validation", "cat")


def only_validation(root: Path) -> None:
    add(root.parent / "parted", "val/cat", "val/dog")
    shutil.rmtree(root)
    (root.parent / "parted").rename(root)


def parts_of_unknown_names(root: Path) -> None:
    for part in ("Trainset", "Testset"):
        add(root.parent / "parted" / part, "cat", "dog")
    shutil.rmtree(root)
    (root.parent / "parted").rename(root)


def classes_share_a_folder(root: Path) -> None:
    for name in ("cat", "emu"):
        add(root / name, "2019")


def parts_of_unknown_names_in_images(root: Path) -> None:
    for name in ("cat", "emu"):
        add(root / name, "images/red", "images/green")


def parts_unpacked_into_folders_of_their_names(root: Path) -> None:
    for name in ("seg_train", "seg_test"):
        add(root / name / name, "cat", "emu")


def class_spelled_in_two_ways(root: Path) -> None:
    add(root, "caf\u00e9", "cafe\u0301")


def parts_inside_a_class(root: Path) -> None:
    add(root / "dog", "far/Testing")


def parts_one_folder_down(root: Path) -> None:
    add(root.parent / "parted" / "set" / "1", "train/cat", "test/cat")
    shutil.rmtree(root)
    (root.parent / "parted").rename(root)


def classes_one_folder_down(root: Path) -> None:
    root.rename(root.parent / "moved")
    root.mkdir()
    (root.parent / "moved").rename(root / "set")


def test_without_classes(root: Path) -> None:
    only_train(root)
    add(root, "test")


def no_known_suffix(root: Path) -> None:
    shutil.rmtree(root)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        (root / name / "0.HEIC").touch()


def class_called_train(root: Path) -> None:
    add(root, "train")


def rare_class(root: Path) -> None:
    add(root, "rare")


def broken_link(root: Path) -> None:
    (root / "cat" / "l.png").symlink_to(root / "nowhere")


def class_on_an_unmounted_drive(root: Path) -> None:
    (root / "yak").symlink_to(root / "drive" / "yak")


def subfolder_on_an_unmounted_drive(root: Path) -> None:
    (root / "cat" / "more").symlink_to(root / "drive" / "more")


def part_on_an_unmounted_drive(root: Path) -> None:
    only_train(root)
    shutil.copytree(root / "train", root / "val")
    (root / "test").symlink_to(root / "drive")


def loop(root: Path) -> None:
    (root / "cat" / "loop").symlink_to(root)


def loop_to_its_class(root: Path) -> None:
    (root / "cat" / "more").mkdir()
    (root / "cat" / "more" / "loop").symlink_to("..")


def two_links_in_a_ring(root: Path) -> None:
    for name, target in (("a", "b"), ("b", "a")):
        add(root.parent, name)
        (root.parent / name / "ring").symlink_to(root.parent / target)
    (root / "cat" / "in").symlink_to(root.parent / "a")


def class_linked_twice(root: Path) -> None:
    (root / "lynx").symlink_to("cat")


def same_parts(root: Path) -> None:
    only_train(root)
    (root / "test").symlink_to("train")


def file_linked_to_another_class(root: Path) -> None:
    (root / "dog" / "l.png").symlink_to(root / "cat" / "000.png")


def file_linked_twice(root: Path) -> None:
    add(root.parent, "elsewhere")
    for name in ("cat", "dog"):
        (root / name / "l.png").symlink_to(root.parent / "elsewhere" / "0.png")


def file_linked_to_another_part(root: Path) -> None:
    only_train(root)
    add(root / "test", "cat")
    (root / "test" / "cat" / "l.png").symlink_to(root / "train" / "cat" / "000.png")


def link_to_itself(root: Path) -> None:
    (root / "cat" / "self.png").symlink_to("self.png")


BROKEN: dict[Callable[[Path], None], str] = {
    missing: "does not exist",
    a_file: "is not a folder",
    empty: "no images",
    no_images: "no images",
    empty_class: "class folder(s) without images: ",
    only_text: "class folder(s) without images: ",
    one_class: "only one class (emu)",
    only_train: "no folder test/ (found: train); to split the training folder into parts, give data=folder data.root=",
    only_validation: "no folder train/ (found: val)",
    unknown_class: "test/yak",
    rare_class: "class rare has 2 image(s)",
    broken_link: "l.png: No such file or directory (it is a link to ",
    class_on_an_unmounted_drive: "yak: No such file or directory (it is a link to ",
    subfolder_on_an_unmounted_drive: "cat/more: No such file or directory (it is a link to ",
    part_on_an_unmounted_drive: "test: No such file or directory (it is a link to ",
    misnamed_part: "holds train/, test/ beside dev/; it may hold",
    one_part_twice: "holds Validation/ and val/, two folders for one part",
    parts_of_unknown_names: "holds Testset/ and Trainset/, which both hold cat/",
    classes_share_a_folder: "holds cat/ and emu/, which both hold 2019/",
    parts_of_unknown_names_in_images: "holds cat/ and emu/, which both hold images/green/",
    parts_unpacked_into_folders_of_their_names: "holds seg_test/ and seg_train/, which both hold cat/",
    class_spelled_in_two_ways: "holds two folders called caf\u00e9/",
    parts_inside_a_class: "dog/far/Testing is named like a part, but is inside a class",
    parts_one_folder_down: "photos/set/1/test is named like a part, but is inside a class",
    classes_one_folder_down: "only one class (set); at least two are needed; if cat/ and dog/ are classes, give data",
    test_without_classes: "2 image(s) are not in a class folder",
    no_known_suffix: "2 .heic",
    class_called_train: "holds train/ beside cat/, dog/, emu/; it may hold",
    loop: "cat/loop",
    loop_to_its_class: "cat/more/loop",
    two_links_in_a_ring: "cat/in/ring/ring",
    class_linked_twice: "lynx",
    same_parts: "/test and",
    file_linked_to_another_class: "dog/l.png",
    file_linked_twice: "dog/l.png",
    file_linked_to_another_part: "test/cat/l.png",
    link_to_itself: "self.png",
}


@pytest.mark.parametrize("spoil", BROKEN)
def test_a_mistake_in_the_folders_gives_one_line(root: Path, config: Load, spoil: Callable[[Path], None]) -> None:
    spoil(root)
    with pytest.raises(UserError) as caught:
        load_splits(config("folder", root=str(root)))
    assert BROKEN[spoil] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["folder", "imagenet", "caltech101", "flowers102", "oxford_pets", "voc2007", "cifar10"]
)
def test_a_missing_root_names_the_key(config: Load, name: str) -> None:
    with pytest.raises(UserError, match=r"data\.root is not set"):
        load_splits(config(name))


def test_listing_and_fingerprint_import_no_torch(root: Path) -> None:
    code = f"""
import sys
from sppnet.config.compose import compose_config
from sppnet.data import build_sizes, fingerprint, load_splits
load_splits(compose_config(["data=folder", "data.root={root}"]).data)
cfg = compose_config(["data=digits"])
fingerprint(cfg.data)
build_sizes(cfg.sizes)
print([name for name in ("torch", "torchvision", "lightning", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
