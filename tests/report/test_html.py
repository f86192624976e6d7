"""The page of all studies in a real browser: it fits, it is drawn, light and dark; its pictures can be looked at."""

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

from calling import SMALL, Caller

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ONE = (*SMALL, "trainer.max_epochs=1", "trainer.limit_batches=2")
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
    """The page of two studies, one of them unfinished."""
    for study, key, values in (("heads", "head", ("spp", "gap")), ("rates", "optim.lr", ("0.01", "0.02"))):
        for value in values:
            for seed in range(3):
                assert sppnet("train", *ONE, f"study={study}", f"{key}={value}", f"seed={seed}").code == 0
        swept = sppnet("train", "-m", *ONE, f"study={study}", f"{key}={','.join(values)}", "seed=0,1,2")
        assert swept.out.count("(was done)") == 6
    shutil.rmtree(next(Path("runs/heads").glob("*-gap-*")))
    done = sppnet("report", "html=true")
    assert done.code == 0, done.err
    return tmp_path / "runs/report/index.html"


def browse(folder: Path, *options: str) -> str:
    """What Chromium prints."""
    assert BROWSER
    base = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files")
    done = subprocess.run(
        [BROWSER, *base, f"--user-data-dir={folder / 'profile'}", *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def measure(page: Path, width: int) -> dict[str, Any]:
    """The page as it is laid out in a window of this width."""
    frame = page.with_name("measure.html")
    frame.write_text(MEASURE.replace("WIDTH", str(width)))
    shown = browse(page.parent, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    [found] = re.findall(r"<pre>(.*)</pre>", shown)
    measured: dict[str, Any] = json.loads(found)
    return measured


def picture(page: Path, name: str, *options: str) -> np.ndarray[Any, Any]:
    """A screenshot, kept where SPPNET_SCREENSHOTS says."""
    file = page.with_name(name)
    browse(page.parent, "--window-size=1200,2000", *options, f"--screenshot={file}", page.as_uri())
    if kept := os.environ.get("SPPNET_SCREENSHOTS"):
        shutil.copy(file, kept)
    return np.asarray(Image.open(file).convert("L"))


@pytest.mark.skipif(BROWSER is None, reason="NO BROWSER TEST: chromium is not installed (Debian: chromium)")
def test_the_page_in_a_browser(page: Path) -> None:
    for width in (1200, 400):
        found = measure(page, width)
        assert found["needed"] <= found["inside"], f"the page is wider than a window of {width} pixels"
        assert len(found["figures"]) == 2
        assert all(100 < drawn_width <= width and drawn_height > 50 for drawn_width, drawn_height in found["figures"])
        assert len(found["tables"]) >= 4
        assert all(drawn_height > 20 for _, drawn_height in found["tables"])
        assert found["rows"] >= 8
        assert found["anchors"]
        assert len(found["links"]) == 11
        assert all(Path(link.removeprefix("file://"), "summary.json").is_file() for link in found["links"])
    light = picture(page, "light.png")
    dark = picture(page, "dark.png", "--blink-settings=preferredColorScheme=0")
    for seen, back in ((light, 255), (dark, 30)):
        assert abs(int(np.bincount(seen[:, :10].ravel()).argmax()) - back) < 30  # the background of the margin
        drawn = np.abs(seen.astype(int) - int(seen[0, 0])) > 60
        assert 0.005 < drawn.mean() < 0.6  # something is written, and it can be told from its ground
