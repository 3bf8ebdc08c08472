from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import tiny_bert
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    PreTrainedModel,
)

from stat_prune.errors import DataError
from stat_prune.evaluation import GLUE_TASKS, GlueData, evaluate_glue, glue_examples, read_glue
from stat_prune.evaluation.forward import forward_texts
from stat_prune.evaluation.glue import glue_scores

TEXTS = ["the cat sat", "a dog ran under the tree and then over it", "it was very", "the bird"]

FILES = {
    # quotation marks are text; CoLA has no header; QNLI has class names
    "sst2": ('sentence\tlabel\n"a cat\t1\nthe dog\t0\n', ['"a cat', "the dog"], [1, 0]),
    "cola": ("gj04\t1\t\tThe cat.\nbc01\t0\t*\tCat the.\n", ["The cat.", "Cat the."], [1, 0]),
    "mrpc": (
        'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA "cat".\t"A cat.\n',
        [('A "cat".', '"A cat.')],
        [1],
    ),
    "stsb": (
        "index\tgenre\tsentence1\tsentence2\tscore\n0\tnews\ta cat\ta dog\t3.800\n",
        [("a cat", "a dog")],
        [3.8],
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\twho?\tit\tentailment\n1\twhy?\tit\tnot_entailment\n",
        [("who?", "it"), ("why?", "it")],
        [0, 1],
    ),
}


@pytest.mark.parametrize("task", FILES)
def test_training_examples_are_records_of_the_train_split(task, tmp_path):
    content, texts, labels = FILES[task]
    (tmp_path / task).mkdir()
    (tmp_path / task / "train.tsv").write_text(content)
    rows = glue_examples(task, tmp_path)
    columns = GLUE_TASKS[task].columns
    assert [row["label"] for row in rows] == labels
    assert [tuple(row[name] for name in columns) for row in rows] == [
        (text,) if isinstance(text, str) else text for text in texts
    ]


def test_labels_are_the_models_own_numbers_of_the_classes_it_names(tmp_path):
    (tmp_path / "qnli").mkdir()
    (tmp_path / "qnli" / "train.tsv").write_text(FILES["qnli"][0])
    named = {"NOT_ENTAILMENT": 0, "entailment": 1}
    for given, expected in ((named, [1, 0]), ({"LABEL_0": 0, "LABEL_1": 1}, [0, 1])):
        names = {number: name for name, number in given.items()}
        config = classifier(2, label2id=given, id2label=names).config
        assert [row["label"] for row in glue_examples("qnli", tmp_path, config)] == expected


def classifier(num_labels: int, **config) -> PreTrainedModel:
    return tiny_bert(
        BertForSequenceClassification, num_labels=num_labels, initializer_range=0.5, **config
    )


@pytest.mark.parametrize("task", FILES)
def test_files_are_read_as_glue_publishes_them(task, tmp_path):
    content, texts, labels = FILES[task]
    (tmp_path / task).mkdir()
    (tmp_path / task / "dev.tsv").write_text(content)

    data = read_glue(task, tmp_path)

    assert data.texts == texts
    assert data.labels.tolist() == labels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no .*dev.tsv"),
        ("text\tlabel\na\t1\n", "not as GLUE"),
        ("sentence\tlabel\na\tx\n", "not as"),
    ],
)
def test_files_that_are_missing_or_malformed_are_refused(content, message, tmp_path):
    (tmp_path / "sst2").mkdir()
    if content is not None:
        (tmp_path / "sst2" / "dev.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_glue("sst2", tmp_path)


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(DataError, match="'sst-2'.*cola, sst2, mrpc"):
        read_glue("sst-2")


def test_without_hub_the_error_says_which_file_to_bring():
    with pytest.raises(DataError, match="folder that holds rte/dev.tsv"):
        read_glue("rte")


def test_scores_are_those_of_the_textbook():
    labels, predictions = np.array([1, 1, 1, 0, 0, 1, 0, 1]), np.array([1, 0, 1, 0, 1, 1, 0, 1])
    true_pos, false_pos, false_neg, true_neg = 4, 1, 1, 2

    paraphrase = glue_scores("mrpc", labels, predictions)
    acceptability = glue_scores("cola", labels, predictions)

    assert paraphrase["accuracy"] == pytest.approx(6 / 8)
    assert paraphrase["f1"] == pytest.approx(2 * true_pos / (2 * true_pos + false_pos + false_neg))
    assert acceptability["matthews"] == pytest.approx(
        (true_pos * true_neg - false_pos * false_neg) / np.sqrt(5 * 5 * 3 * 3)
    )
    assert glue_scores("stsb", np.arange(5), np.arange(5) ** 3) == {
        "spearman": pytest.approx(1),
        "pearson": pytest.approx(np.corrcoef(np.arange(5), np.arange(5) ** 3)[0, 1]),
    }


@pytest.mark.parametrize("task", ["sst2", "mrpc"])
def test_batched_evaluation_scores_as_one_text_at_a_time(task, word_tokenizer):
    model = classifier(2)
    texts = TEXTS if task == "sst2" else list(zip(TEXTS, reversed(TEXTS), strict=True))
    with torch.no_grad():
        predictions = [
            int(
                model(
                    **word_tokenizer(*[t] if isinstance(t, str) else t, return_tensors="pt")
                ).logits.argmax()
            )
            for t in texts
        ]
    # three right, one wrong
    labels = np.array(predictions)
    labels[2] = 1 - labels[2]
    model.train()

    scores = evaluate_glue(model, word_tokenizer, task, GlueData(texts, labels), batch_size=3)

    assert scores["accuracy"] == 0.75
    assert scores["num_examples"] == 4
    assert model.training


def test_classes_are_matched_by_name_where_the_model_names_them(word_tokenizer):
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    plain = classifier(2)
    swapped = classifier(
        2,
        label2id={"not_entailment": 0, "entailment": 1},
        id2label={0: "not_entailment", 1: "entailment"},
    )
    logits = forward_texts(plain, word_tokenizer, pairs, read=lambda output, _: output.logits)
    data = GlueData(pairs, logits.argmax(1).numpy())

    assert evaluate_glue(plain, word_tokenizer, "rte", data)["accuracy"] == 1
    assert evaluate_glue(swapped, word_tokenizer, "rte", data)["accuracy"] == 0


def test_a_model_with_the_wrong_number_of_outputs_is_refused(word_tokenizer):
    data = GlueData(list(zip(TEXTS, TEXTS, strict=True)), np.arange(4.0))
    with pytest.raises(DataError, match="1 output"):
        evaluate_glue(classifier(2), word_tokenizer, "stsb", data)


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric", "score", "tolerance"),
    [
        # One SST-2 text has logits 0.001 apart: it falls on either side with the arithmetic.
        ("sst2", "accuracy", 0.892, 0.0005 + 1 / 872),
        ("mrpc", "accuracy", 0.799, 0.0005),
        ("stsb", "spearman", 0.859, 0.0005),
    ],
)
def test_fine_tuned_encoders_score_what_they_are_known_for(
    task, metric, score, tolerance, real_data
):
    folder = real_data / "models" / f"minilm-{task}"
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    scores = evaluate_glue(model, tokenizer, task, real_data / "data" / "glue")

    assert scores[metric] == pytest.approx(score, abs=tolerance)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("task", "split", "rows", "positives"),
    [
        ("cola", "train", 8551, None),
        ("mrpc", "dev", 408, 279),
        ("qnli", "dev", 5463, None),
        ("sst2", "train", 67349, None),
        ("stsb", "train", 5749, None),
    ],
)
def test_published_files_have_the_published_numbers_of_rows(
    task, split, rows, positives, real_data
):
    data = read_glue(task, real_data / "data" / "glue", split=split)

    assert len(data.texts) == len(data.labels) == rows
    assert positives is None or int(data.labels.sum()) == positives
    assert all(len(text) == 2 for text in data.texts) or len(GLUE_TASKS[task].columns) == 1
