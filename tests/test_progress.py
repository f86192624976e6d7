"""Progress on standard error: lines without a terminal, a bar with one."""

from __future__ import annotations

import pytest

from sppnet import progress


def test_lines_show_the_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINES_EVERY", 0.0)
    with progress.meter("transfer", "auto", 5) as tick:  # standard error is not a terminal here
        tick(2)
        tick(3)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.partition(",")[0] for line in shown.err.splitlines()] == [
        "sppnet transfer: 2 of 5 images",
        "sppnet transfer: 5 of 5 images",
    ]


def test_a_bar_leaves_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.meter("predict", "bar", 3) as tick:
        for _ in range(3):
            tick(1)
            print("a result")
    assert capsys.readouterr().out == "a result\n" * 3


@pytest.mark.parametrize(("kind", "total"), [("none", 5), ("lines", 1), ("bar", 1)])
def test_nothing_is_shown_with_none_or_for_one_image(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, total: int
) -> None:
    monkeypatch.setattr(progress, "LINES_EVERY", 0.0)
    with progress.meter("predict", kind, total) as tick:
        tick(1)
    assert capsys.readouterr() == ("", "")
