"""Tables in the documents are those of the records beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_record import RECORD

import into_docs
from stat_prune.errors import DataError

DOCS = Path(__file__).parents[2] / "docs"
TEXT = "before\n<!-- records: here -->\nnothing yet\n<!-- end -->\nafter\n"


def test_a_table_takes_the_place_of_what_stood_there(tmp_path):
    assert into_docs.with_tables(TEXT, tmp_path) == TEXT  # there are no records yet
    (tmp_path / "here" / "deep").mkdir(parents=True)
    (tmp_path / "here" / "deep" / "one.json").write_text(json.dumps(RECORD))
    measured = RECORD | {
        "task": "mrpc",
        "sizes": {"0.5": {"kept_macs": 0.5, "kept_parameters": 0.4}},
        "measures": {"0.5": {"bytes": 2**20}},
    }
    (tmp_path / "here" / "two.json").write_text(json.dumps(measured))
    (tmp_path / "here" / "dense.json").write_text(json.dumps(RECORD | {"method": "dense"}))

    text = into_docs.with_tables(TEXT, tmp_path)

    assert text.startswith("before\n<!-- records: here -->\n\n**mrpc**")
    assert text.endswith("\n<!-- end -->\nafter\n") and "nothing yet" not in text
    assert "| 0.5 | stat | 0.8000 | 0.500 | 1.0 |" in text
    assert "| stat | 0.8000 |" in text and text.count("| dense") == 1
    assert into_docs.with_tables(text, tmp_path) == text


def test_what_is_no_record_and_a_place_without_an_end_are_refused(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "one.json").write_text(json.dumps(RECORD | {"surprise": 1}))
    with pytest.raises(DataError, match="surprise"):
        into_docs.with_tables(TEXT, tmp_path)
    with pytest.raises(DataError, match="no <!-- end -->"):
        into_docs.with_tables(TEXT.replace("<!-- end -->", ""), tmp_path)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_documents_have_the_tables_of_their_records(path):
    text = path.read_text(encoding="utf-8")
    assert into_docs.with_tables(text, DOCS) == text
    for _, folder, _, _ in into_docs.PLACE.findall(text):
        assert folder == "records/gpu" or into_docs.read(DOCS / folder), folder
