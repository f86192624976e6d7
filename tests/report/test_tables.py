"""Tables of a report: row names, figures, and which rows are compared."""

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
from sppnet.config.schema import Report
from sppnet.report import figures, row_names
from sppnet.report.summary import Summary
from sppnet.report.table import Column, Result, Row, Table


def test_names_are_short_and_no_two_are_alike() -> None:
    views = {"test.views.name": "ten", "test.views.crop_pct": 0.9, "test.views.mirror": False}
    base = {
        "pooling.bins": [6, 3, 2, 1],
        "test.sizes.test": [48],
        "test.views.name": "center",
        "test.views.crop_pct": 0.8,
    }
    rows = [base, base | views, base | {"test.sizes.test": [48, 64]}, base | {"pooling.bins": [4]}]
    assert row_names.name_by_difference(rows, ["a-1", "a-2", "a-3", "a-4"], list("wxyz")) == [
        "bins=6, 3, 2, 1 views=center sizes=48",
        "bins=6, 3, 2, 1 views=ten sizes=48",
        "sizes=48, 64",  # the full name exceeds 40 characters; this is what differs from most rows
        "bins=4 views=center sizes=48",
    ]
    long = [{f"optim.key_{i}": n + 0.5 for i in range(9)} for n in range(3)]
    runs = ["net-01", "net-02", "net-02"]  # two tests of one run
    assert row_names.name_by_difference(long, runs, list("xyz")) == ["net-01", "net-02 [y]", "net-02 [z]"]
    versions = [base | {"format": 1}, base | {"format": 2, "layout": 1}]
    assert row_names.name_by_difference(versions, runs[:2], list("xy")) == ["format=1", "format=2"]
    assert row_names.name_by_difference([base, base], ["net-01", "net-01"], list("xy")) == ["net-01 [x]", "net-01 [y]"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # hypothesis fails on a busy machine otherwise
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(
                ["optim.lr", "pooling.name", "pooling.bins", "data.crop.scale", "test.sizes.test", "test.views.name"]
            ),
            st.one_of(st.none(), st.integers(0, 2), st.lists(st.integers(1, 30), max_size=30), st.text(max_size=50)),
        ),
        min_size=2,
        max_size=8,
    )
)
def test_whatever_differs_names_are_different(rows: list[dict[str, Any]]) -> None:
    runs = [f"run-{n // 2}" for n in range(len(rows))]
    names = row_names.name_by_difference(rows, runs, [f"hash{n}" for n in range(len(rows))])
    assert len(set(names)) == len(rows)
    assert all(0 < len(name) <= 40 or name.startswith("run-") for name in names)


def table_of(*values: Sequence[float], name: str = "x" * 60, **changes: Any) -> Table:
    """A table with a row per list of `values`, which holds one value per seed."""
    provenance = {"bins": 5, "data": "d", "format": 2} | changes
    rows = [
        Row(f"{name} {n}", {seed: Result("r", {"test/top1": v}, provenance) for seed, v in enumerate(row)}, {}, {})
        for n, row in enumerate(values)
    ]
    report = Report(metrics=None, figure="rows", compare=None)
    return Table("t", "seed", {}, [Column("test/top1", "top1")], rows, report, 0)


@pytest.mark.parametrize("kind", ["rows", "bins", "sizes"])
def test_a_figure_cuts_no_label_and_two_seeds_do_not_stretch_its_axis(kind: str) -> None:
    table = table_of([0.90, 0.94], [0.91, 0.92, 0.93])
    drawn = figures.draw_svg(replace(table, report=table.report.model_copy(update={"figure": kind})))
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    width, height = (float(root.attrib[side].removesuffix("pt")) for side in ("width", "height"))
    assert width > 60 * 5  # room for a label of 60 characters
    placed = re.findall(r"<!-- (x+ \d) -->\s*<g[^>]*translate\(([-\d.]+) ([-\d.]+)\)", drawn)
    assert len(placed) >= 2
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for _, x, y in placed)
    ticks = [float(number) for number in re.findall(r"<!-- ([\d.]+) -->", drawn)]
    assert kind == "sizes" or (min(tick for tick in ticks if tick > 6) > 85 and max(ticks) < 99)  # not 66 to 118


@pytest.mark.parametrize(
    ("changes", "reason"), [({"data": "other"}, "different data"), ({"format": 1}, "format 1 and 2")]
)
def test_rows_of_different_data_or_formats_are_not_compared(changes: dict[str, Any], reason: str) -> None:
    near, far = table_of([0.1, 0.2, 0.15], name="a"), table_of([0.9, 0.91, 0.92], name="b", **changes)
    both = Summary(replace(near, rows=[*near.rows, *far.rows]))
    assert not both.marked(2, 2)
    assert not both.difference_table()
    assert reason in both.legend()
    assert Summary(replace(near, rows=[*near.rows, *table_of([0.9, 0.93, 0.92], name="b").rows])).marked(2, 2)


def test_a_metric_that_rows_compute_in_different_ways_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = [0.1, 0.2, 0.15], [0.9, 0.93, 0.92]
    columns = [Column("test/top1", "top1"), Column("test/loss", "loss", "min", percent=False)]
    rows = []
    for name, values, loss in (("a", first, "cross_entropy"), ("b", second, "focal")):
        provenance = {"bins": 5, "data": "d", "format": 2, "measures": {"loss": loss}}
        results = {i: Result("r", {"test/top1": v, "test/loss": 1 - v}, provenance) for i, v in enumerate(values)}
        rows.append(Row(name, results, {}, {}))
    table = replace(table_of(first), columns=columns, rows=rows)
    report._show(Summary(table))
    assert "t: not all rows compute loss alike" in capsys.readouterr().err
    assert [Summary(table).marked(2, column) for column in (2, 3)] == [True, False]
    assert "loss: not computed alike in all rows" in Summary(table).legend()
    alike = [replace(row, results={i: replace(r, provenance=table_of(first).rows[0].results[0].provenance)
                                   for i, r in row.results.items()}) for row in rows]  # fmt: skip
    assert [Summary(replace(table, rows=alike)).marked(2, column) for column in (2, 3)] == [True, True]


def test_a_name_is_printed_verbatim_and_another_format_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    report._show(Summary(table_of([0.5], name="gap [eb2d09e622]", format=1)))  # rich must not read it as markup
    printed = capsys.readouterr()
    assert "gap [eb2d09e622] 0" in printed.out
    assert "t: all rows show results in format 1" in printed.err


def test_documents_agree_on_how_many_seeds_a_mark_needs() -> None:
    words = {3: "three"}[statistics.MIN_PAIRS]
    for file in ("experiments/README.md", "docs/decisions/0016-a-study-is-planned-and-read-from-directories.md"):
        text = " ".join((option_files.root() / file).read_text().split())
        assert f"below {words} seeds nothing is" in text, file
    assert f"fewer than {statistics.MIN_PAIRS} seeds, nothing is marked" in Summary(table_of([0.5, 0.6])).legend()
