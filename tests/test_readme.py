"""The README is true: its examples run as they stand, its files and options exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from calling import Called, Caller
from sppnet.config import option_files

ROOT = option_files.root()
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.S | re.M)
TINY = ("backbone.width=4", "pyramid.bins=[2,1]", "compute.num_threads=1", "data.batch_size=8")
HIDDEN = ("head.hidden=[8]",)
LIMITS = tuple(f"trainer.limit_{part}_batches=2" for part in ("train", "val", "test"))
STEPS = (*LIMITS, "trainer.max_epochs=2", "progress=none")


def test_the_example_of_every_slot_runs_as_it_stands(sppnet: Caller, tmp_path: Path) -> None:
    """Each is a class of less than 15 lines, a file that names it, and a command."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "docs/slots.md").read_text(), re.S | re.M)
    for kind, text in blocks:
        if named := re.match(r"# (\S+\.(?:py|yaml))\n", text):
            path = tmp_path / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            assert kind != "python" or len([line for line in text.splitlines()[1:] if line]) < 15, named[1]
    commands = [text.split()[4:] for _, text in blocks if text.startswith("uv run sppnet train ")]
    assert len(commands) == 9
    for words in commands:
        done = sppnet("train", *words, *TINY, *([] if "head=cosine" in words else HIDDEN), *STEPS)
        assert done.code == 0, done.err
        assert ("test/confidence" in done.out) == any("metrics" in word for word in words)
        assert ("p [3." in done.out) == any("callbacks" in word for word in words)
        admit = [word for word in words if word.startswith("allow=")]
        scored = sppnet("test", *admit, f"checkpoint={done.run}")  # the run stores its configuration
        assert (scored.code, scored.err) == (0, "")
        assert scored.figure("test/loss") == done.figure("test/loss")


def test_the_layer_alone_runs_as_it_stands() -> None:
    [text] = [text for kind, text in BLOCKS if kind == "python" and "SpatialPyramidPool2d" in text]
    exec(compile(text, "README.md", "exec"), {})


def test_a_network_is_loaded_in_three_lines(
    trained: Called, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [text] = [text for kind, text in BLOCKS if kind == "python" and "from_pretrained" in text]
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.jpg")
    exec(compile(text.replace("RUN", str(trained.run)), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in {str(digit) for digit in range(10)}


def test_every_option_that_the_readme_lists_exists_and_every_group_is_listed() -> None:
    table = README.split("| group | options |")[1].split("\n\n")[0]
    rows = {row.split("|")[1].strip(" `"): row.split("|")[2] for row in table.splitlines() if row.startswith("| `")}
    assert set(rows) == set(option_files.group_names()) - {"experiments"}
    for group, text in rows.items():
        options = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} - {"none", "default"}
        if group != "pyramid":  # named by a pattern
            missing = {name for name in options if f"`{name}`" not in text}
            assert not missing, (group, missing)


# What a row of the README's table says -> what the bench's row is called; a row is found by all that it says.
SAYS = {
    r"the layer, forward \+ backward": "layer, forward + backward",
    r"`AdaptiveMaxPool2d` per level": "AdaptiveMaxPool2d per level",
    r"its slowest case": "layer, its slowest case",
    r"forward pass alone.*`amax`": "layer, forward, channels-last (time of ours over theirs) | one amax",
    r"photographs of ([^ :]+)": r"photographs of \1 at",
    r"decoding and cropping": "the same crops, decoding,",
    r"`data.decode=scaled`": "the same crops, decoding at a fraction of the size,",
    r" at (\d+) and (\d+) pixels": r" at \1 and \2,",
    r"cached": "cached, from the second epoch",
    r"per core": "one core",
    r"two workers": "2 workers",
    r"a test in (\d+) views": r"a test in \1 views",
    r"`roi_pool`": "roi_pool",
    r"2,000 windows": "2000 windows",
    r"windows of a photograph through ZF-5": "on zf5, with pooling and fully connected layers",
    r"share of what multiply-adds allow": "(share of what multiply-adds allow)",
    r"a training step under the Trainer, relative to a bare loop": "(time of ours over theirs) | the bare loop",
    r"ZF-5 at 224": "a training step, zf5 at 224",
    r"the default run": "a training step, tiny, the default run",
    r"graphs compiled for six sizes": "for 6 sizes",
    r"trunk, pyramid and head": "graphs of the ",
    r"time to the first step.*bare Lightning fit": "the first training step of the default run",
    r"a sweep of eight runs, compared with one run after another": "a sweep of 8 runs",
}


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def test_each_row_of_the_table_of_speeds_is_what_the_bench_wrote_under_its_name() -> None:
    kept = json.loads((ROOT / "experiments/results/bench_cpu.json").read_text())
    assert not kept["dirty"]
    table = README.split("| | measured | target | |")[1].split("\n\n")[0]
    missed = {f"{row['what']} | {row['against']}" for row in kept["rows"] if not row["reached"]}
    shown: set[str] = set()
    for line in table.splitlines()[2:]:
        name, measured, aim, how = (cell.strip() for cell in line.split("|")[1:5])
        words = [match.expand(text) for pattern, text in SAYS.items() if (match := re.search(pattern, name))]
        wrote = {f"{row['what']} | {row['against']}": row for row in kept["rows"]}
        wrote = {key: row for key, row in wrote.items() if words and all(word in key for word in words)}
        assert len(wrote) == (3 if "trunk, pyramid and head" in name else 1), (name, words, list(wrote))
        assert not shown & wrote.keys(), name
        shown |= wrote.keys()
        for row in wrote.values():
            assert re.fullmatch(rf"at {'most' if row['most'] else 'least'} {row['target']:g}x?", aim), name
            assert how == ("reached" if row["reached"] else "**falls short**"), name
            values = [float(f"{each['value']:.3g}") for each in wrote.values()]
            speedup = row["detail"].get("speedup")
            assert numbers(measured) == values + ([float(f"{speedup:.2g}")] if "as fast" in measured else []), name
    assert missed <= shown  # nothing is hidden


def test_published_results_name_no_folder_of_the_machine_that_made_them() -> None:
    for path in (ROOT / "experiments/results").iterdir():
        if path.suffix in (".json", ".md", ".csv"):
            assert not re.search(r"(?<![\w.:/])/(tmp|home|root|work|mnt|var|Users)/", path.read_text()), path.name


def test_every_link_into_the_repository_leads_somewhere() -> None:
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "experiments/README.md",
    ):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), (path.name, target)
