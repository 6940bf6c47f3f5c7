"""The page in a browser, at phone and desktop widths, if a browser is installed."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from multitask.evaluation.compare import compare
from tests.unit.evaluation.hand_records import write_run, write_sweep

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)

# The page in a frame of the given width, since a browser window has a minimum width.
FRAME = """<!DOCTYPE html>
<iframe id="f" style="border:0" width="{width}" height="900" srcdoc="{page}"></iframe>
<script>
document.getElementById('f').onload = event => {{
  const page = event.target.contentDocument, root = page.documentElement;
  const bad = [...page.images].filter(image => !image.complete || !image.naturalWidth).length;
  const names = [...page.querySelectorAll('tbody th')].map(cell => cell.getBoundingClientRect());
  const sizes = {{beyond: root.scrollWidth - root.clientWidth, images: page.images.length, bad,
    tall: Math.max(...names.map(box => Math.round(box.height))),
    tables: page.querySelectorAll('table').length}};
  document.body.setAttribute('data-sizes', Object.entries(sizes).map(([k, v]) => k + '=' + v).join(' '));
}};
</script>"""

if BROWSER is not None:  # collected only with a browser

    @pytest.mark.slow
    @pytest.mark.parametrize("width", [390, 1280])
    def test_page_fits_the_window(width: int, tmp_path: Path) -> None:
        methods = {"weighted_sum": 0.02, "upgrad": 0.012, "mgda": 0.0125, "a_method_with_a_long_name": 0.03}
        sweep = write_sweep(tmp_path / "sweep", methods, seeds=range(3))
        write_run(sweep / "bad", "uw", 9, {}, status="failed", error="out of memory")
        compare(str(sweep), tmp_path / "out")
        page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        frame = tmp_path / "frame.html"
        frame.write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
        command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", frame.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        match = re.search(r'data-sizes="([^"]+)"', dom)
        assert match, "the page did not load"
        sizes = {key: int(value) for key, value in (pair.split("=") for pair in match[1].split())}
        assert sizes["beyond"] == 0, "the page scrolls sideways"
        assert sizes["images"] == 8
        assert sizes["bad"] == 0
        assert sizes["tall"] < 120, "a method's name is broken letter by letter"
        assert sizes["tables"] >= 5
