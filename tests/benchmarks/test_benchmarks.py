"""`sppnet bench`: every group runs, and the table and the files report what was measured."""

from __future__ import annotations

import json
import math
import os
from importlib import util
from pathlib import Path

import pytest
import torch

from calling import Caller
from sppnet.benchmarks.loading import write_sample_photographs
from sppnet.benchmarks.measurement import Row, compare, geometric_mean
from sppnet.benchmarks.pooling_layer import pool_adaptive, pool_strided
from sppnet.benchmarks.windows import random_windows
from sppnet.commands.bench import GROUPS
from sppnet.pyramid import spatial_pyramid_pool2d


@pytest.mark.slow
def test_every_group_is_measured_and_written_with_machine_versions_and_commit(spawn: Caller, tmp_path: Path) -> None:
    done = spawn("bench", "quick=true", "output=results")
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "results/bench_cpu.json").read_text())
    assert written["machine"]["cores"]
    assert written["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert written["date"]
    assert "commit" in written
    rows = written["rows"]
    assert list(dict.fromkeys(row["group"] for row in rows)) == list(GROUPS)
    for row in rows:
        beyond = row["value"] - row["target"]
        assert row["reached"] is (beyond <= 0 if row["most"] else beyond >= 0), row
        if row["theirs"] and row["unit"] == "s" and "(" not in row["what"] and "mean" not in row["what"]:
            assert row["value"] == pytest.approx(row["theirs"] / row["ours"], rel=0.5), row  # they took turns
    table = (tmp_path / "results/bench_cpu.md").read_text().splitlines()
    for row in rows:
        line = next(line for line in table if line.startswith(f"| {row['what']} | {row['against']} |"))
        assert ("reached" in line) is row["reached"]
        assert ("falls short" in line) is not row["reached"]
    assert done.err.count("sppnet bench: ") == len(rows) + ("SPPNET_DATA" not in os.environ)


def test_mistakes_are_one_line(sppnet: Caller, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for overrides, message in (
        (["output=file", "only=[compile]"], "file cannot be written to; choose another folder with output=FOLDER"),
        (["only=[speed]"], "only=[speed] is not allowed"),
        (["num_threads=0"], "num_threads=0"),
        (["photographs=nowhere"], "photographs=nowhere must be a folder"),
        (["accelerator=gpu"], "torch sees no GPU here"),
        (["+more=1"], "unknown key more"),
    ):
        if "gpu" in overrides[0] and torch.cuda.is_available():
            continue
        done = sppnet("bench", *overrides)
        assert done.code == 2
        assert message in done.err
        assert len(done.err.strip().splitlines()) == 1


def test_exported_networks_are_skipped_in_one_line_without_the_extra(
    sppnet: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *more: None if name == "onnx" else find_spec(name, *more))
    done = sppnet("bench", "only=[export]", "quick=true")
    assert done.code == 0, done.err
    [line] = [line for line in done.err.splitlines() if "photographs" not in line]
    assert line == "sppnet: bench: the group export needs onnx (uv sync --extra export) and is skipped"


@pytest.mark.slow
def test_exported_networks_are_timed_on_the_cpu_in_turns_with_both_alternatives(spawn: Caller, tmp_path: Path) -> None:
    done = spawn("bench", "only=[export]", "quick=true", "num_threads=1", "output=results")
    assert done.code == 0, done.err
    [path] = (tmp_path / "results").glob("bench_*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [row["against"] for row in rows] == ["eager PyTorch", "compiled PyTorch"]
    for row in rows:
        assert row["value"] == pytest.approx(math.prod(row["detail"].values()) ** (1 / 3), rel=0.01)
        assert len(row["detail"]) == 3


def test_every_group_names_an_existing_function() -> None:
    from importlib import import_module

    for module, function, _ in GROUPS.values():
        assert callable(getattr(import_module(f"sppnet.benchmarks.{module}"), function))


def test_the_alternatives_to_the_layer_pool_the_same() -> None:
    x = torch.rand(2, 5, 12, 12)
    ours = spatial_pyramid_pool2d(x, (6, 3, 2, 1))
    assert torch.equal(pool_adaptive(x, (6, 3, 2, 1)), ours)
    assert torch.equal(pool_strided(x, (6, 3, 2, 1)), ours)  # all levels divide 12


def test_a_target_is_a_lower_or_an_upper_bound() -> None:
    for value, target, most, reached in [(2.0, 2.0, False, True), (1.9, 2.0, False, False), (1.2, 1.0, True, False)]:
        assert Row("layer", "", "", 1.0, 1.0, value, target, most).reached is reached


def test_two_things_take_turns_and_their_ratio_is_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    takes = iter((9.0, 9.0, *(1.0, 3.0), *(20.0, 60.0), *(2.0, 8.0), *(7.0, 7.0)))  # the first call of each counts not
    clock = [0.0]

    def call(name: str) -> None:
        order.append(name)
        clock[0] += next(takes)

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    timed = compare(lambda: call("ours"), lambda: call("theirs"), 0.0, 4)
    assert order == ["ours", "theirs"] * 5
    assert (timed.ours, timed.theirs, timed.ratio) == (4.5, 7.5, 3.0)
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_random_windows_lie_in_the_photograph_and_are_always_the_same() -> None:
    windows = random_windows(688, 917)
    assert windows == random_windows(688, 917)
    assert len(windows) == 2000
    assert all(0 <= w.left < w.right <= 917 and 0 <= w.top < w.bottom <= 688 for w in windows)
    sides = [math.sqrt((w.right - w.left) * (w.bottom - w.top)) for w in windows]
    assert min(sides) < 80
    assert max(sides) > 500


def test_sample_photographs_can_be_written_on_every_machine(tmp_path: Path) -> None:
    folder = write_sample_photographs(tmp_path)
    assert len(list(folder.glob("*/*.jpg"))) == 256
