"""The committed notebooks read well without being run, and run from top to bottom."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


#: Before the first cell: a search spends what it does with effort="fast".
SPEND_LITTLE = """
from stat_prune.pipeline.budgeting import efforts as _efforts
_efforts.BY_TOKEN["normal"] = _efforts.BY_TOKEN["fast"]
"""

#: Two layers of six, few steps of training, one size of several, and few examples to calibrate on.
FEW = {
    r"(fractions = \([\d.]+,)[^)]*": r"\1",
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


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom_with_what_its_extra_brings(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("STAT_PRUNE_DATA", raising=False)
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    for cell in cells:
        cell["source"] = shortened(cell["source"])
    cells[0]["source"] = SPEND_LITTLE + cells[0]["source"]
    place = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(notebook, timeout=900, startup_timeout=300, resources=place)
    client.execute()  # raises what a cell raises
    run = [cell["execution_count"] for cell in cells]
    assert run == list(range(1, len(run) + 1))
