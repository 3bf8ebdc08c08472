"""The committed notebooks read well without being run, and run from top to bottom."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from forks import Fork
from nbclient import NotebookClient
from tiny_models import tiny_bert
from transformers import AutoTokenizer

from stat_prune.cli.demo.demo_data import find_sentence_encoder

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


#: Before the first cell: a search spends what it does with effort="fast".
SPEND_LITTLE = """
from stat_prune.pipeline.budgeting import efforts as _efforts
_efforts.BY_TOKEN["normal"] = _efforts.BY_TOKEN["fast"]
"""

#: Likewise: a narrow encoder in place of the sentence encoder, but where cells ask for what only
#: its sizes allow.
BE_NARROW = """
from pathlib import Path as _Path
import stat_prune.cli.demo.demo_data as _data
_data.find_sentence_encoder = lambda: _Path({folder!r})
"""
WIDE = ("01", "02", "05")

#: Two layers of six, few steps of training, one size of several, and few examples to calibrate on
#: and to compare on.
FEW = {
    r"\.calibration\b(\[:\d+\])?": ".calibration[:64]",
    r"held_out\[:\d+\]": "held_out[:24]",
    r"in range\(\d{3}\)": "in range(3)",
    r"((?:fractions|budgets) = \([\d.]+,)[^)]*": r"\1",
    r"(AutoModel\.from_pretrained\(folder)\)": r"\1, num_hidden_layers=2)",
    r"encoder\.layer\[3\]": "encoder.layer[1]",
    r"(\b(?!total)\w+_steps=)\d+": r"\g<1>4",
    r"(num(?:_calibration)?_samples=)\d+": r"\g<1>64",
}


def shortened(source: str) -> str:
    """A cell that does the same with less: what comes out is nobody's to read."""
    for pattern, few in FEW.items():
        source = re.sub(pattern, few, source)
    return source


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(1, 10)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_of_one_run_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert sum(bool(cell["outputs"]) for cell in cells) >= len(cells) / 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_hold_no_path_of_the_machine_and_no_warning(path):
    for cell in code_cells(path):
        for output in cell["outputs"]:
            shown = "".join(output.get("text", "")) + json.dumps(
                {kind: v for kind, v in output.get("data", {}).items() if "image" not in kind}
            )
            assert output.get("name") != "stderr"
            assert not any(part in shown for part in ("site-packages", "/home/", "/tmp/", "/root/"))


#: The cells of a notebook, one after the other, as a kernel runs them.
RUN = """
import sys, nbformat
from IPython.core.interactiveshell import InteractiveShell

class Shell(InteractiveShell):
    def enable_gui(self, gui=None):  # there is none
        pass

shell = Shell.instance()
for cell in nbformat.read(sys.argv[1], as_version=4).cells:
    if cell["cell_type"] == "code":
        shell.run_cell(cell["source"]).raise_error()
"""


@pytest.fixture(scope="module")
def narrow_encoder(tmp_path_factory) -> Path:
    """Random weights, and the tokenizer of the sentence encoder."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(find_sentence_encoder())
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}
    tiny_bert(vocab_size=len(tokenizer), **sizes).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom_with_what_its_extra_brings(
    path, monkeypatch, tmp_path, narrow_encoder
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("STAT_PRUNE_DATA", raising=False)
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    for cell in cells:
        cell["source"] = shortened(cell["source"])
    narrow = "" if path.name[:2] in WIDE else BE_NARROW.format(folder=str(narrow_encoder))
    cells[0]["source"] = SPEND_LITTLE + narrow + cells[0]["source"]
    if path != NOTEBOOKS[0]:
        nbformat.write(notebook, tmp_path / path.name)
        done = Fork(["-c", RUN, str(tmp_path / path.name)], cwd=FOLDER).ended()
        assert done.returncode == 0, done.stderr
        return
    # One in a kernel of its own, which takes seconds to start.
    place = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(notebook, timeout=900, startup_timeout=300, resources=place)
    client.execute()  # raises what a cell raises
    run = [cell["execution_count"] for cell in cells]
    assert run == list(range(1, len(run) + 1))
