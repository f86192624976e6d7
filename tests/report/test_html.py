"""The page of all studies in a real browser: it fits the window and renders in light and dark."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calling import SMALL, Caller, limits

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ONE_EPOCH = (*SMALL, "trainer.max_epochs=1", *limits(2))
MEASURE = """<!doctype html><iframe src="index.html" style="width:WIDTHpx;height:800px;border:0"></iframe><pre></pre>
<script>onload = () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const box = (one) => { const r = one.getBoundingClientRect(); return [r.width, r.height]; };
  const style = getComputedStyle(page.body);
  document.querySelector("pre").textContent = JSON.stringify({
    inside: root.clientWidth, needed: root.scrollWidth, figures: [...page.querySelectorAll("figure svg")].map(box),
    tables: [...page.querySelectorAll("table")].map(box), rows: page.querySelectorAll("tbody tr").length,
    links: [...page.querySelectorAll("details a")].map((a) => a.href),
    anchors: [...page.querySelectorAll("a[href^='#']")].every((a) => page.getElementById(a.hash.slice(1))),
  });
};</script>"""


@pytest.fixture
def page(sppnet: Caller, tmp_path: Path) -> Path:
    """The page of two studies, one of them incomplete."""
    for study, key, values in (("heads", "pooling", ("spp", "gap")), ("rates", "optim.lr", ("0.01", "0.02"))):
        for value in values:
            for seed in range(3):
                assert sppnet("train", *ONE_EPOCH, f"study={study}", f"{key}={value}", f"seed={seed}").code == 0
        swept = sppnet("train", "-m", *ONE_EPOCH, f"study={study}", f"{key}={','.join(values)}", "seed=0,1,2")
        assert swept.out.count("(already done)") == 6
    shutil.rmtree(next(Path("runs/heads").glob("*-gap-*")))
    done = sppnet("report", "html=true")
    assert done.code == 0, done.err
    return tmp_path / "runs/report/index.html"


def browse(folder: Path, *options: str) -> str:
    """Run Chromium; returns its output."""
    assert BROWSER
    base = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files")
    done = subprocess.run(
        [BROWSER, *base, f"--user-data-dir={folder / 'profile'}", *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def measure(page: Path, width: int) -> dict[str, Any]:
    """Measure the page in a window of `width` pixels."""
    frame = page.with_name("measure.html")
    frame.write_text(MEASURE.replace("WIDTH", str(width)))
    shown = browse(page.parent, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    [content] = re.findall(r"<pre>(.*)</pre>", shown)
    measured: dict[str, Any] = json.loads(content)
    return measured


def screenshot(page: Path, name: str, *options: str) -> np.ndarray[Any, Any]:
    """A screenshot as grey values; copied to SPPNET_SCREENSHOTS if that is set."""
    file = page.with_name(name)
    browse(page.parent, "--window-size=1200,2000", *options, f"--screenshot={file}", page.as_uri())
    if folder := os.environ.get("SPPNET_SCREENSHOTS"):
        shutil.copy(file, folder)
    return np.asarray(Image.open(file).convert("L"))


@pytest.mark.skipif(BROWSER is None, reason="NO BROWSER TEST: chromium is not installed (Debian: chromium)")
def test_the_page_in_a_browser(page: Path) -> None:
    for width in (1200, 400):
        layout = measure(page, width)
        assert layout["needed"] <= layout["inside"], f"the page is wider than a window of {width} pixels"
        assert len(layout["figures"]) == 2
        assert all(100 < drawn_width <= width and drawn_height > 50 for drawn_width, drawn_height in layout["figures"])
        assert len(layout["tables"]) >= 4
        assert all(drawn_height > 20 for _, drawn_height in layout["tables"])
        assert layout["rows"] >= 8
        assert layout["anchors"]
        assert len(layout["links"]) == 11
        assert all(Path(link.removeprefix("file://"), "summary.json").is_file() for link in layout["links"])
    light = screenshot(page, "light.png")
    dark = screenshot(page, "dark.png", "--blink-settings=preferredColorScheme=0")
    for pixels, background in ((light, 255), (dark, 30)):
        assert abs(int(np.bincount(pixels[:, :10].ravel()).argmax()) - background) < 30  # the margin
        drawn = np.abs(pixels.astype(int) - int(pixels[0, 0])) > 60
        assert 0.005 < drawn.mean() < 0.6  # there is content, and it contrasts with the background
