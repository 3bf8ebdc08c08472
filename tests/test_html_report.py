"""The web page of a report: complete, self-contained, and drawn by a real browser."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_llama

import stat_prune
from stat_prune import Parameters, PruningResult
from stat_prune.errors import SaveError
from stat_prune.reporting.html_report import DIMS_CAPTION

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Page(HTMLParser):
    """Text of the cells by table, addresses that the page refers to, and whether tags match."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def result(word_tokenizer) -> PruningResult:
    return stat_prune.prune(
        tiny_llama(),
        ["the cat sat on the mat and the dog ran", "a bird flew over the house"] * 20,
        tokenizer=word_tokenizer,
        target=Parameters(0.5),
        progress=False,
    )


@pytest.fixture(scope="module")
def narrowed(word_tokenizer) -> PruningResult:
    """With fewer dimensions in its heads."""
    return stat_prune.prune(
        tiny_llama(),
        ["the cat sat on the mat and the dog ran", "a bird flew over the house"] * 20,
        tokenizer=word_tokenizer,
        target=Parameters({"heads": 0.8, "query-key": 0.5, "value": 0.5}),
        progress=False,
    )


def test_the_page_holds_every_figure_of_the_report(result, tmp_path):
    result.save_report(tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not page.open
    for cells in result.report.cells():
        assert list(cells) in page.rows
    text = {tuple(row) for row in page.rows}
    assert ("all parameters", f"{result.report.before.parameters:,}") in {r[:2] for r in text}
    for name, value in result.report.settings_used().items():
        assert (name, str(value)) in text
    assert len(page.addresses) == 3


def test_the_page_tells_of_the_search_only_where_there_was_one(result, tmp_path):
    result.save_report(tmp_path / "searched.html")
    text = " ".join((tmp_path / "searched.html").read_text(encoding="utf-8").split())
    assert f'<p id="search">{result.report.search}.</p>' in text
    report = dataclasses.replace(result.report, search=None)
    dataclasses.replace(result, report=report).save_report(tmp_path / "other.html")
    page = Page(text := (tmp_path / "other.html").read_text(encoding="utf-8"))
    assert "Search for the budget" not in text
    assert len(page.addresses) == 2


def test_the_page_tells_of_dimensions_only_where_they_left(result, narrowed, tmp_path):
    narrowed.save_report(tmp_path / "narrowed.html")
    page = Page(text := (tmp_path / "narrowed.html").read_text(encoding="utf-8"))
    assert not page.open
    dims = narrowed.report.head_dims
    assert f'<p id="head-dims">{dims}.</p>' in " ".join(text.split())
    for name, (query_key, value) in dims.sizes.items():
        errors = [f"{error:.4f}" for error in dims.errors[name]]
        assert [name, f"{query_key}/8", f"{value}/8", *errors] in page.rows
    assert dims.sizes and DIMS_CAPTION in text
    assert len(page.addresses) == 4
    result.save_report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Dimensions inside heads" not in text and DIMS_CAPTION not in text


def test_the_page_refers_to_nothing_outside_itself(result, tmp_path):
    result.save_report(tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)


def test_what_users_named_is_text_and_not_markup(result, tmp_path):
    report = dataclasses.replace(
        result.report, settings=result.report.settings | {"model": "<script>alert(1)</script>"}
    )
    dataclasses.replace(result, report=report).save_report(tmp_path / "report.html")
    assert "<script>" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_to_is_one_error(result, tmp_path):
    with pytest.raises(SaveError, match="cannot be written: No such file"):
        result.save_report(tmp_path / "missing" / "report.html")


@pytest.fixture
def browse():
    """A browser without a window, with options of its own; what it prints."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"there is none of {', '.join(BROWSERS)} on this machine")

    def run(*options: str) -> str:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *options]
        done = subprocess.run(command, check=True, capture_output=True, timeout=120)
        return done.stdout.decode()

    return run


#: A frame, as a window is never narrower than 500 pixels; the widths of what may be pushed aside.
PHONE = """<iframe src="report.html" style="width: 390px; height: 6000px; border: 0"></iframe>
<pre></pre>
<script>
const frame = document.querySelector("iframe")
frame.onload = () => {
  const page = frame.contentDocument
  const parts = [page.documentElement, ...page.querySelectorAll(".wide")]
  document.querySelector("pre").textContent = parts.map(
    (part) => `${part.scrollWidth} of ${part.clientWidth}`
  ).join("\\n")
}
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["result", "narrowed"])
def test_tables_fit_on_a_telephone(request, which, tmp_path: Path, browse):
    request.getfixturevalue(which).save_report(tmp_path / "report.html")
    (tmp_path / "phone.html").write_text(PHONE)
    address = (tmp_path / "phone.html").as_uri()
    page = browse(
        "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom", address
    )
    widths = re.findall(r"(\d+) of (\d+)", page)
    assert len(widths) >= 4 and all(int(needed) <= int(given) for needed, given in widths)


@pytest.mark.slow
def test_a_browser_draws_the_page(result, tmp_path: Path, browse):
    result.save_report(tmp_path / "report.html")
    browse(
        "--hide-scrollbars",
        "--window-size=1000,2400",
        f"--screenshot={tmp_path / 'page.png'}",
        (tmp_path / "report.html").as_uri(),
    )
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    assert pixels.shape[1] == 1000
    # The dark blue of kept heads fills a good part of the figure, and black text is there.
    blue = np.abs(pixels - [0x00, 0x72, 0xB2]).sum(-1) < 12
    assert blue.mean() > 0.01
    assert (pixels.sum(-1) < 150).mean() > 0.001
    # Nothing sticks out to the right: the margin is white from top to bottom.
    assert (pixels[:, -10:] > 240).all()
