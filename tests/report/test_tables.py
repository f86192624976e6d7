"""What a report shows of a study: names of rows, figures, and what is compared with what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sppnet import statistics
from sppnet.commands import report
from sppnet.config import option_files
from sppnet.report import figures, row_names
from sppnet.report.summary import Summary
from sppnet.report.table import Column, Result, Row, Table


def test_names_are_short_and_no_two_are_alike() -> None:
    views = {"test.views.name": "ten", "test.views.ratio": 0.9, "test.views.mirror": False}
    base = {"head.bins": [6, 3, 2, 1], "test.sizes": [48], "test.views.name": "center", "test.views.ratio": 0.8}
    rows = [base, base | views, base | {"test.sizes": [48, 64]}, base | {"head.bins": [4]}]
    assert row_names.by_difference(rows, ["a-1", "a-2", "a-3", "a-4"], list("wxyz")) == [
        "bins=6, 3, 2, 1 views=center sizes=48",
        "bins=6, 3, 2, 1 views=ten sizes=48",
        "sizes=48, 64",  # the whole is longer than 40 characters: what is unlike most rows
        "bins=4 views=center sizes=48",
    ]
    many = [{f"optim.key_{i}": n + 0.5 for i in range(9)} for n in range(3)]
    runs = ["net-01", "net-02", "net-02"]  # two tests of one run
    assert row_names.by_difference(many, runs, list("xyz")) == ["net-01", "net-02 [y]", "net-02 [z]"]
    versions = [base | {"format": 1}, base | {"format": 2, "layout": 1}]
    assert row_names.by_difference(versions, runs[:2], list("xy")) == ["format=1", "format=2"]
    assert row_names.by_difference([base, base], ["net-01", "net-01"], list("xy")) == ["net-01 [x]", "net-01 [y]"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["optim.lr", "head.name", "head.bins", "data.crop.ratio", "test.sizes", "test.views.name"]),
            st.one_of(st.none(), st.integers(0, 2), st.lists(st.integers(1, 30), max_size=30), st.text(max_size=50)),
        ),
        min_size=2,
        max_size=8,
    )
)
def test_whatever_differs_names_are_different(rows: list[dict[str, Any]]) -> None:
    runs = [f"run-{n // 2}" for n in range(len(rows))]
    found = row_names.by_difference(rows, runs, [f"hash{n}" for n in range(len(rows))])
    assert len(set(found)) == len(rows)
    assert all(0 < len(name) <= 40 or name.startswith("run-") for name in found)


def rows_of(*values: Sequence[float], name: str = "x" * 60, **of: Any) -> Table:
    """A table of rows with a figure each per seed."""
    made = {"bins": 5, "data": "d", "format": 2} | of
    rows = [
        Row(f"{name} {n}", {seed: Result("r", {"test/top1": v}, made) for seed, v in enumerate(row)}, {}, {})
        for n, row in enumerate(values)
    ]
    report = {"metrics": None, "figure": "rows", "compare": None}
    return Table("t", "seed", {}, [Column("test/top1", "top1")], rows, report, 0)


@pytest.mark.parametrize("kind", ["rows", "bins", "sizes"])
def test_a_figure_cuts_no_label_and_two_seeds_do_not_stretch_its_axis(kind: str) -> None:
    table = rows_of([0.90, 0.94], [0.91, 0.92, 0.93])
    drawn = figures.svg(replace(table, report={**table.report, "figure": kind}))
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    width, height = (float(root.attrib[side].removesuffix("pt")) for side in ("width", "height"))
    assert width > 60 * 5  # a label of 60 characters has room
    placed = re.findall(r"<!-- (x+ \d) -->\s*<g[^>]*translate\(([-\d.]+) ([-\d.]+)\)", drawn)
    assert len(placed) >= 2
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for _, x, y in placed)
    ticks = [float(number) for number in re.findall(r"<!-- ([\d.]+) -->", drawn)]
    assert kind == "sizes" or (min(tick for tick in ticks if tick > 6) > 85 and max(ticks) < 99)  # not 66 to 118


@pytest.mark.parametrize(("of", "why"), [({"data": "other"}, "different data"), ({"format": 1}, "format 1 and 2")])
def test_rows_that_differ_in_more_than_their_words_are_not_compared(of: dict[str, Any], why: str) -> None:
    near, far = rows_of([0.1, 0.2, 0.15], name="a"), rows_of([0.9, 0.91, 0.92], name="b", **of)
    both = Summary(replace(near, rows=[*near.rows, *far.rows]))
    assert not both.marked(2, 2)
    assert not both.apart()
    assert why in both.legend()
    assert Summary(replace(near, rows=[*near.rows, *rows_of([0.9, 0.93, 0.92], name="b").rows])).marked(2, 2)


def test_a_name_is_printed_as_it_is_and_another_format_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    report._show(Summary(rows_of([0.5], name="gap [eb2d09e622]", format=1)))  # no markup of rich
    printed = capsys.readouterr()
    assert "gap [eb2d09e622] 0" in printed.out
    assert "t: its rows are of format 1" in printed.err


def test_documents_agree_on_how_many_seeds_a_mark_needs() -> None:
    words = {3: "three"}[statistics.FEWEST]
    for file in ("experiments/README.md", "docs/decisions/0016-a-study-is-planned-and-read-from-directories.md"):
        text = " ".join((option_files.root() / file).read_text().split())
        assert f"below {words} seeds nothing is" in text, file
    assert f"below {statistics.FEWEST} seeds nothing is marked" in Summary(rows_of([0.5, 0.6])).legend()
