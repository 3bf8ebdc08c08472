"""Whatever a file or an object holds, it is read or refused by an error of this package."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stat_prune.data.calibration import CalibrationSet, build_calibration_set
from stat_prune.errors import DataError
from stat_prune.evaluation import read_glue, read_squad
from stat_prune.examples.records import FORMS

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")

NAMES = sorted({name for names, _ in FORMS for name in names} | {"label", "role", "from", "value"})
INPUTS = ["input_ids", "attention_mask", "token_type_ids", "labels", "pixel_values"]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from([10**30, -(2**63) - 1])
    | st.floats()
    | st.text(max_size=6)
)
NAMED = st.sampled_from([*NAMES, *INPUTS, "data", "paragraphs", "qas", "context", "id"])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMED | st.text(max_size=3), inner),
    max_leaves=8,
)
TABLE = st.text(alphabet="ab \",\t\r\n'\\;é\0\ufeff", max_size=60)

fuzzed = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read_or_refused(dataset: Any, tokenizer: Any) -> None:
    try:
        found = build_calibration_set(dataset, tokenizer=tokenizer, vocab_size=64)
    except DataError as error:
        assert str(error)
    else:
        assert isinstance(found, CalibrationSet)
        assert 0 < found.num_samples <= found.num_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@fuzzed
@given(content=st.binary(max_size=40), suffix=st.sampled_from(SUFFIXES), compressed=st.booleans())
@example(content=b"[" * 100_000, suffix=".json", compressed=False)
@example(content=b'{"text": "' + b"a" * 200_000 + b'"}', suffix=".json", compressed=False)
def test_bytes_are_read_or_refused(content, suffix, compressed, folder, word_tokenizer):
    path = folder / f"bytes{suffix}{'.gz' if compressed else ''}"
    path.write_bytes(gzip.compress(content) if compressed and len(content) % 3 else content)
    read_or_refused(path, word_tokenizer)


@fuzzed
@given(content=JSON, suffix=st.sampled_from([".json", ".jsonl"]))
def test_json_is_read_or_refused(content, suffix, folder, word_tokenizer):
    path = folder / f"document{suffix}"
    path.write_text(json.dumps(content))
    read_or_refused(path, word_tokenizer)
    try:
        assert read_squad(path)
    except DataError as error:
        assert str(error)


@fuzzed
@given(
    rows=TABLE,
    header=st.sampled_from(["text", "text,label", "sentence1\tsentence2\tlabel", ""]),
    suffix=st.sampled_from([".csv", ".tsv"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"]),
)
def test_tables_of_any_quoting_and_encoding_are_read_or_refused(
    rows, header, suffix, encoding, folder, word_tokenizer
):
    content = f"{header}\r\n{rows}".encode(encoding, "replace")
    (folder / f"table{suffix}").write_bytes(content)
    read_or_refused(folder / f"table{suffix}", word_tokenizer)
    (folder / "mrpc").mkdir(exist_ok=True)
    (folder / "mrpc" / "dev.tsv").write_bytes(content)
    try:
        data = read_glue("mrpc", folder)
    except DataError as error:
        assert str(error)
    else:
        assert len(data.texts) == len(data.labels)


@fuzzed
@given(dataset=JSON | st.lists(JSON) | st.lists(st.tuples(SCALARS, SCALARS)))
def test_objects_are_read_or_refused(dataset, word_tokenizer):
    if isinstance(dataset, str):
        dataset = [dataset]  # by itself it is a name
    read_or_refused(dataset, word_tokenizer)
