"""The forms in which people have their texts: files of any make, tables, streams, chats, words."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pytest
import torch
from torch.utils.data import DataLoader

from stat_prune.data.calibration import build_calibration_set
from stat_prune.errors import CalibrationWarning, DataError
from stat_prune.evaluation import read_glue, read_squad
from stat_prune.examples.iterating import iterate_examples, iterate_labelled_examples
from stat_prune.examples.records import Chat, Words

TEXTS = ["the cat sat", "a dog ran", "the bird flew über the house"]

FILES: dict[str, str] = {
    "a.txt": "\r\n".join(TEXTS),
    "a.csv": "text\r\n" + "\r\n".join(TEXTS),
    "a.tsv": "text\r\n" + "\r\n".join(TEXTS),
    "a.json": json.dumps(TEXTS, ensure_ascii=False),
    "a.jsonl": "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS),
}

SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "the cat",
                    "qas": [
                        {
                            "id": "1",
                            "question": "who",
                            "answers": [{"text": "cat", "answer_start": 4}],
                        }
                    ],
                }
            ]
        }
    ]
}


def read(dataset: Any) -> list[Any]:
    return sorted(iterate_examples(dataset, seed=0), key=repr)


def in_utf8(text: str) -> bytes:
    return text.encode()


def marked(text: str) -> bytes:
    return codecs.BOM_UTF8 + text.encode()


def in_utf16(text: str) -> bytes:
    return text.encode("utf-16")


def in_utf16_of_the_other_order(text: str) -> bytes:
    return codecs.BOM_UTF16_BE + text.encode("utf-16-be")


def in_utf32(text: str) -> bytes:
    return text.encode("utf-32")


ENCODINGS = [in_utf8, marked, in_utf16, in_utf16_of_the_other_order, in_utf32]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("encode", ENCODINGS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_the_same_texts_in_every_unicode_encoding_compressed_or_not(
    name, encode: Callable[[str], bytes], suffix, tmp_path
):
    content = encode(FILES[name])
    (tmp_path / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    assert read(tmp_path / (name + suffix)) == sorted(TEXTS, key=repr)


@pytest.mark.parametrize("encode", ENCODINGS)
def test_files_of_glue_and_squad_are_read_in_every_unicode_encoding(encode, tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "dev.tsv").write_bytes(encode("sentence\tlabel\nthe cat sat\t1\n"))
    (tmp_path / "squad.json").write_bytes(encode(json.dumps(SQUAD)))
    assert read_glue("sst2", tmp_path).texts == ["the cat sat"]
    assert [question.text for question in read_squad(tmp_path / "squad.json")] == ["who"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caf\xe9".encode("latin1"), "no text in UTF-8.*0xe9.*iconv"),
        ("the cat".encode("utf-16-le"), "bytes that are zero.*byte order mark"),
        (b"\x89PNG\r\n\x1a\n\0\0", "bytes that are zero.*parquet"),
        (codecs.BOM_UTF16_LE + b"a", "truncated"),
    ],
    ids=["latin 1", "UTF-16 without mark", "an image", "half a character"],
)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_text_is_refused_with_the_way_to_make_it_one(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "dev.tsv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_glue("sst2", tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"the cat " * 99)[:-9]],
    ids=["empty", "no gzip", "cut off"],  # the header of an archive holds the time
)
def test_a_damaged_archive_is_a_data_error(content, tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt\.gz|empty"):
        build_calibration_set(tmp_path / "a.txt.gz")


def test_fields_of_any_length_are_read_and_the_limit_of_the_csv_module_stays(tmp_path):
    limit, long = csv.field_size_limit(), "the cat " * 20_000
    (tmp_path / "a.csv").write_text(f"text\n{long}\n")
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "dev.tsv").write_text(f"sentence\tlabel\n{long}\t1\n")
    assert read(tmp_path / "a.csv") == [long]
    assert read_glue("sst2", tmp_path).texts == [long]
    assert csv.field_size_limit() == limit


def test_a_quote_that_is_never_closed_does_not_swallow_the_rows_behind_it(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"a cat\non a mat",1\n"a dog,1\na bird,0\n')
    with pytest.raises(DataError, match="quote that is opened on line 4 is not closed"):
        read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text('text,label\n"a cat\non a mat",1\n"a ""dog""",1\n')
    assert read(tmp_path / "a.csv") == ['a "dog"', "a cat\non a mat"]


def test_json_lines_in_a_file_called_json_are_read(tmp_path):
    (tmp_path / "a.json").write_text(FILES["a.jsonl"])
    assert read(tmp_path / "a.json") == sorted(TEXTS, key=repr)


def test_a_line_that_is_no_json_is_named_by_its_number(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a cat"}\n\n{"text": a dog}\n')
    with pytest.raises(DataError, match="line 3 is no JSON"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("form", ["parquet", "arrow stream", "arrow file", "feather"])
def test_a_file_with_a_table_is_read(form, tmp_path):
    data = datasets.Dataset.from_dict({"label": [0, 1, 2], "text": TEXTS})
    table = data.data.table
    path = tmp_path / f"a.{form.split()[0]}"
    if form == "parquet":
        data.to_parquet(path)
    else:
        make = pyarrow.ipc.new_stream if form == "arrow stream" else pyarrow.ipc.new_file
        with pyarrow.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table)
    found = dict(iterate_labelled_examples(path, seed=0))
    assert found == dict(zip(TEXTS, range(3), strict=True))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.parquet.gz"])
def test_a_damaged_table_is_a_data_error(name, tmp_path):
    (tmp_path / name).write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"cannot be read as a table.*to_parquet"):
        read(tmp_path / name)


def test_the_folder_of_a_model_is_not_taken_for_examples(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="that of a model, not of examples"):
        read(tmp_path)


def test_an_empty_folder_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no readable dataset"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["the cat sat on the mat. " * 400, "a\0b", ""])
def test_a_string_that_is_no_name_is_a_data_error_of_one_breath(name):
    with pytest.raises(DataError) as caught:
        read(name)
    assert len(str(caught.value)) < 1500


class Stream(torch.utils.data.IterableDataset):
    """It says how long it is, and is read from its beginning all the same."""

    def __iter__(self):
        return iter(TEXTS)

    def __len__(self):
        return len(TEXTS)


SERIES = pandas.Series(["x", *TEXTS])

TABLES = {
    "a table": pandas.DataFrame({"text": TEXTS}),
    "a table without some rows": pandas.DataFrame({"text": ["x", *TEXTS]}).iloc[1:],
    "a table with a column twice": pandas.DataFrame(
        [[text, 0, 1] for text in TEXTS], columns=["text", "label", "label"]
    ),
    "a filtered series": SERIES[SERIES != "x"],
    "a series of categories": pandas.Series(TEXTS, dtype="category"),
    "a table of pyarrow": pyarrow.table({"text": TEXTS}),
    "a column of pyarrow": pyarrow.table({"text": TEXTS})["text"],
    "a column of datasets": datasets.Dataset.from_dict({"text": TEXTS})["text"],
    "an array": np.array(TEXTS),
    "columns": {"text": TEXTS},
    "columns with labels": {"text": TEXTS, "label": [0, 1, 2]},
    "batches of columns": [{"text": TEXTS[:2]}, {"text": TEXTS[2:]}],
    "a stream with a length": Stream(),
    "a loader of records": DataLoader([{"text": text, "label": 1} for text in TEXTS], batch_size=2),
    "a loader of strings": DataLoader(TEXTS, batch_size=2),
    "texts with labels": [(text, 1) for text in TEXTS],
    "a capital letter": [{"Text": text} for text in TEXTS],
}


@pytest.mark.parametrize("form", TABLES)
def test_tables_columns_and_streams_give_their_texts(form):
    assert read(TABLES[form]) == sorted(TEXTS, key=repr)


def test_labels_stay_with_the_rows_of_a_table():
    labels = dict(zip(TEXTS, [2, 0, 1], strict=True))
    columns = {"text": TEXTS, "label": list(labels.values())}
    for form in (columns, pandas.DataFrame(columns), pyarrow.table(columns), [*labels.items()]):
        assert dict(iterate_labelled_examples(form, seed=0)) == labels


def test_columns_that_differ_in_length_are_refused():
    with pytest.raises(DataError, match="'text' holds a list"):
        read({"text": TEXTS, "label": [1]})


class ByName:
    """A container with a length whose elements go by names."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, name: str) -> str:
        return {"a": "the cat", "b": "a dog"}[name]


def test_a_container_that_is_not_read_by_position_says_how_to_pass_it():
    with pytest.raises(DataError, match="ByName of length 2 has no element.*as a list"):
        read(ByName())


NAN = float("nan")

WITH_NULLS = {
    "texts": ["the cat", None],
    "a column": datasets.Dataset.from_dict({"text": ["the cat", None]}),
    "a pair": datasets.Dataset.from_dict({"premise": ["a", "b"], "hypothesis": ["c", None]}),
    "pairs": [("a", "b"), ("a", None)],
    "a table": pandas.DataFrame({"text": ["the cat", None]}),
    "not a number": [{"text": "the cat"}, {"text": NAN}],
    "a series": pandas.Series(["the cat", pandas.NA], dtype="string"),
    "a chat": [{"messages": [{"role": "user", "content": "a cat"}]}, {"messages": None}],
    "words": [{"tokens": ["a", "cat"]}, {"tokens": None}],
}


@pytest.mark.parametrize("form", WITH_NULLS)
def test_rows_whose_text_is_null_are_left_out(form):
    assert len(read(WITH_NULLS[form])) == 1


@pytest.mark.parametrize(
    "nothing",
    [
        [None, None],
        [{"text": None}] * 2,
        pandas.DataFrame({"text": [None, NAN]}),
        {"premise": ["a", "b"], "hypothesis": [None, None]},
    ],
    ids=["texts", "records", "a table", "half a pair"],
)
def test_where_all_texts_are_null_an_error_says_so(nothing, word_tokenizer):
    with pytest.raises(DataError, match="2 of them are null"):
        build_calibration_set(nothing, tokenizer=word_tokenizer)


@pytest.mark.parametrize(
    "columns",
    [
        ("anchor", "positive"),
        ("instruction", "output"),
        ("instruction", "response"),
        ("question", "answer"),
        ("query", "passage"),
        ("query", "document"),
        ("prompt", "completion"),
        ("prompt", "response"),
        ("sentence1", "sentence2"),
        ("sentence_A", "sentence_B"),
        ("text1", "text2"),
        ("text_a", "text_b"),
        ("input", "output"),
    ],
)
def test_pairs_are_read_under_the_names_that_datasets_give_them(columns):
    pairs = [("the cat", "it sat"), ("a dog", "it ran")]
    rows = [dict(zip(columns, pair, strict=True)) for pair in pairs]
    assert read([{"id": 1, "score": 0.5} | row for row in rows]) == sorted(pairs)


def test_what_an_instruction_is_about_stands_behind_it():
    rows = [
        {"instruction": "count", "input": "a cat", "output": "1"},
        {"instruction": "greet", "input": "", "output": "hello"},
    ]
    assert read(rows) == [("count\na cat", "1"), ("greet", "hello")]


MESSAGES = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "it sat"}]
TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"

CHATS = {
    "messages": {"messages": MESSAGES},
    "a prompt beside them": {"prompt": "the cat", "messages": MESSAGES},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "the cat"}, {"from": "gpt", "value": "it sat"}]
    },
    "prompt and completion": {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
    "a column of them": {"messages": [MESSAGES]},
}


@pytest.fixture
def chat_tokenizer(word_tokenizer):
    word_tokenizer.chat_template = TEMPLATE
    yield word_tokenizer
    word_tokenizer.chat_template = None


@pytest.mark.parametrize("form", CHATS)
def test_conversations_go_through_the_chat_template(form, chat_tokenizer):
    (chat,) = read(CHATS[form])
    assert isinstance(chat, Chat)
    found = build_calibration_set([CHATS[form]], tokenizer=chat_tokenizer)
    text = "user : the cat assistant : it sat"
    (ids,) = found.batches[0]["input_ids"].tolist()
    assert ids == chat_tokenizer(text, add_special_tokens=False)["input_ids"]
    cut = build_calibration_set([CHATS[form]], tokenizer=chat_tokenizer, max_seq_length=3)
    assert cut.batches[0]["input_ids"].tolist() == [ids[:3]]


CHOSEN = {
    "texts": ({"chosen": "it sat", "rejected": "it ran"}, "it sat"),
    "prompt and texts": (
        {"prompt": "the cat", "chosen": "it sat", "rejected": "it ran"},
        ("the cat", "it sat"),
    ),
    "question and texts": (
        {"system": "", "question": "the cat", "chosen": "it sat", "rejected": "it ran"},
        ("the cat", "it sat"),
    ),
    "conversations": ({"chosen": MESSAGES, "rejected": MESSAGES[:1]}, Chat(tuple(MESSAGES))),
    "prompt and conversations": (
        {"prompt": "the cat", "chosen": MESSAGES, "rejected": MESSAGES[:1]},
        Chat(tuple(MESSAGES)),
    ),
    "prompt and what follows": (
        {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": MESSAGES[1:]},
        Chat(tuple(MESSAGES)),
    ),
    "columns": ({"chosen": ["it sat"], "rejected": ["it ran"]}, "it sat"),
}


@pytest.mark.parametrize("form", CHOSEN)
def test_of_preference_data_the_chosen_answers_are_read_and_one_note_says_so(form):
    row, wanted = CHOSEN[form]
    with pytest.warns(CalibrationWarning, match="the chosen ones are read") as said:
        found = list(iterate_examples([row, row], seed=0))
    assert found == [wanted, wanted]
    assert len(said) == 1


def test_conversations_without_a_template_say_what_to_set(word_tokenizer):
    with pytest.raises(DataError, match="chat_template: set the one of.*column 'text'"):
        build_calibration_set([{"messages": MESSAGES}], tokenizer=word_tokenizer)


def test_a_conversation_that_the_template_refuses_is_named(chat_tokenizer):
    chat_tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="'the cat'.*roles must alternate"):
        build_calibration_set([{"messages": MESSAGES}], tokenizer=chat_tokenizer)


@pytest.mark.parametrize("column", ["tokens", "words"])
def test_words_already_split_are_tokenized_as_such(column, word_tokenizer):
    rows = [{column: text.split(), "ner_tags": [0] * len(text.split())} for text in TEXTS]
    assert all(isinstance(example, Words) for example in read(rows))
    for form in (rows, datasets.Dataset.from_list(rows), pandas.DataFrame(rows)):
        split = build_calibration_set(form, tokenizer=word_tokenizer)
        whole = build_calibration_set(TEXTS, tokenizer=word_tokenizer)
        assert split.fingerprint == whole.fingerprint


def test_a_text_that_the_tokenizer_refuses_is_named(word_tokenizer):
    with pytest.raises(DataError, match="cannot read the example.*ud800"):
        build_calibration_set([*TEXTS, "\ud800"], tokenizer=word_tokenizer)


@pytest.mark.parametrize(
    "wrong",
    [3, {"headline": "a cat"}, {"text": 3}, ["a", "b", "c"], {"messages": ["hello"]}, {}],
    ids=repr,
)
def test_a_row_that_is_no_example_is_named_by_its_number(wrong):
    with pytest.raises(DataError, match=r"In row 2 of the dataset"):
        read([*TEXTS[:2], wrong])


@pytest.mark.parametrize("row", ["the cat", "the cat\tnan", "the cat\tgood"])
def test_a_row_of_glue_that_is_damaged_is_named(row, tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "dev.tsv").write_text(f"sentence\tlabel\na dog\t1\n{row}\n")
    with pytest.raises(DataError, match="row 1 .the first is 0"):
        read_glue("sst2", tmp_path)
