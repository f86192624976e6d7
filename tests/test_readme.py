"""The README is true: its examples run as they stand, its files and options exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

from calling import Caller
from sppnet.config import option_files

ROOT = option_files.root()
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.S | re.M)
TINY = ("backbone.width=4", "head.hidden=[8]", "head.bins=[2,1]", "trainer.threads=1", "data.batch_size=8")
STEPS = ("trainer.limit_batches=2", "trainer.max_epochs=2", "trainer.progress=none")


def test_the_examples_of_plugging_in_run_as_they_stand(sppnet: Caller, tmp_path: Path) -> None:
    for _, text in BLOCKS:
        if named := re.match(r"# (\S+\.(?:py|yaml))\n", text):
            path = tmp_path / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    commands = [line.split()[4:] for _, text in BLOCKS for line in text.splitlines() if "--config-dir" in line]
    assert len(commands) == 3
    for words in commands:
        done = sppnet("train", *words, *TINY, *STEPS)
        assert done.code == 0, done.err
        admit = [word for word in words if word.startswith("allow=")]
        for more in (["--config-dir", "myconf"], []):  # the run stores its configuration, so it needs no folder
            scored = sppnet("test", *more, *admit, f"checkpoint={done.run}")
            assert (scored.code, scored.err) == (0, "")
            assert scored.figure("test/loss") == done.figure("test/loss")


def test_the_layer_alone_runs_as_it_stands() -> None:
    [text] = [text for kind, text in BLOCKS if kind == "python" and "SpatialPyramidPool2d" in text]
    exec(compile(text, "README.md", "exec"), {})


def test_every_option_that_the_readme_lists_exists_and_every_group_is_listed() -> None:
    table = README.split("| group | options |")[1].split("\n\n")[0]
    rows = {row.split("|")[1].strip(" `"): row.split("|")[2] for row in table.splitlines() if row.startswith("| `")}
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert set(rows) == groups
    for group, text in rows.items():
        options = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} - {"none", "default"}
        if group != "pyramid":  # named by a pattern
            missing = {name for name in options if f"`{name}`" not in text}
            assert not missing, (group, missing)


def test_the_figures_of_the_bench_are_those_that_it_wrote() -> None:
    record = json.loads((ROOT / "experiments/results/bench_cpu.json").read_text())
    assert not record["dirty"]
    measured = {(f"{row['value']:.3g}", f"{row['target']:g}", row["reached"]) for row in record["rows"]}
    table = README.split("| | measured | aim | |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[2:5]] for line in table.splitlines()[2:]]
    shown = [(re.findall(r"[\d.]+", value)[0], re.findall(r"[\d.]+", aim)[0], verdict) for value, aim, verdict in rows]
    assert {verdict for _, _, verdict in shown} <= {"reached", "**falls short**"}
    assert [row for *row, verdict in shown if (*row, verdict == "reached") not in measured] == []
    missed = sum(not row["reached"] for row in record["rows"])
    assert sum(verdict != "reached" for *_, verdict in shown) == missed  # no missed target is left out


def test_every_link_into_the_repository_leads_somewhere() -> None:
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "experiments/README.md",
    ):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), (path.name, target)
