from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from tiny_models import tiny_bert
from torchmetrics.functional.text import squad as reference_squad
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from stat_prune.data.sampling import evenly_spaced
from stat_prune.errors import DataError
from stat_prune.evaluation import Question, answer_questions, evaluate_squad, read_squad
from stat_prune.evaluation.squad_decoding import best_spans, null_score
from stat_prune.evaluation.squad_metrics import exact_match, squad_scores, token_f1
from stat_prune.evaluation.squad_windows import Window, answer_positions, windows

CONTEXT = "the cat sat on the mat and the dog ran under a tree and then the bird flew over a house"


def question(answers: dict[str, int] | None, key: str = "q", text: str = "cat ran") -> Question:
    answers = answers or {}
    return Question(key, text, CONTEXT, tuple(answers), tuple(answers.values()))


def as_reference(questions: list[Question], predictions: dict[str, str]) -> dict[str, float]:
    """EM and F1 by torchmetrics, question by question: over all at once it sums in float32."""
    scores = [
        reference_squad(
            {"id": q.id, "prediction_text": predictions[q.id]},
            {"id": q.id, "answers": {"text": list(q.answers), "answer_start": list(q.starts)}},
        )
        for q in questions
    ]
    return {
        name: float(np.mean([score[name].double() for score in scores]))
        for name in ("f1", "exact_match")
    }


@pytest.fixture
def answering() -> BertForQuestionAnswering:
    return tiny_bert(BertForQuestionAnswering, initializer_range=0.5)


def files(entry: dict) -> dict:
    paragraph = {"context": CONTEXT, "qas": [{"id": "q", "question": "cat ran", **entry}]}
    return {"version": "x", "data": [{"title": "t", "paragraphs": [paragraph]}]}


def test_both_versions_of_the_files_are_read(tmp_path):
    path = tmp_path / "dev.json"
    answer = {"text": "the mat", "answer_start": 15}

    path.write_text(json.dumps(files({"answers": [answer]})))
    assert read_squad(path) == [question({"the mat": 15})]

    plausible = {"is_impossible": True, "answers": [], "plausible_answers": [answer]}
    path.write_text(json.dumps(files(plausible)))
    assert read_squad(path) == [question(None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "There is no"), ("{}", "not as SQuAD"), ("[", "not as"), ('{"data": []}', "no quest")],
)
def test_files_that_are_missing_or_malformed_are_refused(content, message, tmp_path):
    path = tmp_path / "dev.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_squad(path)


def test_without_hub_the_error_says_which_file_to_bring():
    with pytest.raises(DataError, match=r"dev-v2\.0\.json"):
        read_squad(version="2.0")


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "f1"),
    [
        ("The  Broncos!", "broncos", True, 1),
        ("a, b an", "b", True, 1),  # articles and punctuation are nothing
        ("Theatre", "atre", False, 0),  # an article within a word is no article
        ("two-way", "twoway", True, 1),  # punctuation is removed, not replaced
        ("Denver Broncos", "broncos", False, 2 / 3),
        ("x x y", "x y y", False, 2 / 3),  # words count as often as they occur
        ("", "broncos", False, 0),
        ("", "", True, 1),
        ("the", "", True, 1),
    ],
)
def test_edge_cases_score_as_the_official_script_defines(prediction, answer, exact, f1):
    assert exact_match(prediction, answer) is exact
    assert token_f1(prediction, answer) == pytest.approx(f1)


def test_the_best_of_several_answers_counts():
    several = question({"the mat": 15, "mat": 19, "on the mat": 12})

    scores = squad_scores([several], {"q": "sat on the mat"})

    assert scores["exact_match"] == 0
    assert scores["f1"] == pytest.approx(100 * 2 * 2 / (3 + 2))
    assert scores == pytest.approx(as_reference([several], {"q": "sat on the mat"}))


def test_unanswerable_questions_want_the_empty_string():
    questions = [
        question(None, "silent"),
        question(None, "talking"),
        question({"mat": 19}, "right"),
        question({"mat": 19, ".": 0}, "punctuation"),  # nothing is left of the second answer
    ]
    predictions = {"silent": "", "talking": "mat", "right": "the mat", "punctuation": ""}

    scores = squad_scores(questions, predictions)

    assert scores == {
        "f1": 50,
        "exact_match": 50,
        "answerable_f1": 50,
        "answerable_exact_match": 50,
        "unanswerable_exact_match": 50,
    }


def test_a_question_without_prediction_is_an_error():
    with pytest.raises(DataError, match=r"1 of 1 .*'q'"):
        squad_scores([question({"mat": 19})], {})


def test_windows_show_every_word_of_the_context_and_overlap_by_the_stride(word_tokenizer):
    long = Question("q", "a cat", " ".join([CONTEXT] * 8), ("dog",), (31,))

    rows = windows(word_tokenizer, [long], max_seq_length=80, stride=7)

    spans = [[span for span in row.offsets if span] for row in rows]
    assert len(rows) > 2
    assert all(len(row.inputs["input_ids"]) <= 80 for row in rows)
    words = [long.context[a:b] for a, b in dict.fromkeys(s for part in spans for s in part)]
    assert words == long.context.split()
    for before, after in zip(spans, spans[1:], strict=False):
        assert before[-7:] == after[:7]


def test_answers_are_found_in_the_windows_that_hold_them(word_tokenizer):
    far = Question("q", "a cat", " ".join([CONTEXT] * 8), ("dog ran",), (31 + 4 * 88,))

    rows = windows(word_tokenizer, [far], max_seq_length=80, stride=7)

    held = 0
    for row in rows:
        start, end = answer_positions(row, far)
        if (start, end) == (row.null, row.null):
            continue
        held += 1
        assert far.context[row.offsets[start][0] : row.offsets[end][1]] == "dog ran"
    assert held == sum(
        any(span == (far.starts[0], far.starts[0] + 3) for span in row.offsets)
        and any(span == (far.starts[0] + 4, far.starts[0] + 7) for span in row.offsets)
        for row in rows
    )
    assert 0 < held < len(rows)


def test_endless_questions_leave_room_for_the_context(word_tokenizer):
    endless = Question("q", "cat " * 500, CONTEXT, ("mat",), (19,))
    rows = windows(word_tokenizer, [endless], max_seq_length=96, stride=4)
    assert all(len(row.inputs["input_ids"]) <= 96 for row in rows)


def test_windows_too_short_for_the_overlap_are_refused(word_tokenizer):
    with pytest.raises(DataError, match="longer or stride shorter"):
        windows(word_tokenizer, [question(None)], max_seq_length=80, stride=20)


def test_the_best_span_is_that_of_an_exhaustive_search():
    generator = np.random.default_rng(0)
    words = CONTEXT.split()
    offsets, position = [None], 0
    for word in words:
        offsets.append((position, position + len(word)))
        position += len(word) + 1
    offsets.append(None)
    for _ in range(50):
        found = [
            (Window(0, {}, 0, offsets), *generator.normal(size=(2, len(offsets)))) for _ in range(2)
        ]
        spans = best_spans(found, question(None), n_best=len(offsets), max_answer_length=4)
        best = max(
            (starts[i] + ends[j], CONTEXT[offsets[i][0] : offsets[j][1]])
            for _, starts, ends in found
            for i in range(1, len(words) + 1)
            for j in range(i, min(i + 4, len(words) + 1))
        )
        assert (spans[0].score, spans[0].text) == (pytest.approx(best[0]), best[1])
        assert null_score(found) == min(starts[0] + ends[0] for _, starts, ends in found)


def test_batched_answers_are_those_of_one_window_at_a_time(answering, word_tokenizer):
    texts = [" ".join(CONTEXT.split()[start:]) for start in range(6)]
    questions = [Question(str(i), "cat", text, ("mat",), (0,)) for i, text in enumerate(texts)]

    answers = answer_questions(
        answering, word_tokenizer, questions, batch_size=4, max_seq_length=96, stride=4
    )

    for one in questions:
        encoded = word_tokenizer(
            one.text, one.context, return_tensors="pt", return_offsets_mapping=True
        )
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            output = answering(**encoded)
        inside = [i for i, part in enumerate(encoded.sequence_ids(0)) if part == 1]
        start, end = max(
            ((i, j) for i in inside for j in inside if i <= j < i + 30),
            key=lambda pair: float(output.start_logits[0, pair[0]] + output.end_logits[0, pair[1]]),
        )
        assert answers[one.id] == one.context[offsets[start][0] : offsets[end][1]]


def test_silence_wins_where_its_score_exceeds_the_threshold(answering, word_tokenizer):
    questions = [question(None, "a"), question({"mat": 19}, "b")]
    scores = {
        threshold: evaluate_squad(
            answering,
            word_tokenizer,
            questions,
            max_seq_length=96,
            stride=4,
            null_threshold=threshold,
        )
        for threshold in (-1e6, 1e6)
    }
    assert scores[-1e6]["unanswerable_exact_match"] == 100
    assert scores[-1e6]["answerable_exact_match"] == 0
    assert scores[1e6]["unanswerable_exact_match"] == 0


def test_a_limit_takes_questions_from_all_over_the_data(answering, word_tokenizer):
    questions = [question({"mat": 19}, key=str(number)) for number in range(20)]
    taken = [questions[0], questions[5], questions[10], questions[15]]
    assert [questions[index] for index in evenly_spaced(20, 4)] == taken
    assert evenly_spaced(20, None) == evenly_spaced(20, 30) == list(range(20))
    assert evenly_spaced(10, 7) == sorted(set(evenly_spaced(10, 7)))
    limited = evaluate_squad(answering, word_tokenizer, questions, limit=4)
    assert limited == evaluate_squad(answering, word_tokenizer, taken)
    assert limited["num_examples"] == 4


def test_other_heads_are_refused(word_tokenizer):
    classifier = tiny_bert(BertForSequenceClassification)
    with pytest.raises(DataError, match="AutoModelForQuestionAnswering"):
        evaluate_squad(
            classifier, word_tokenizer, [question({"mat": 19})], max_seq_length=96, stride=4
        )


def test_slow_tokenizers_are_refused(word_tokenizer, monkeypatch):
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(DataError, match="fast tokenizer"):
        windows(word_tokenizer, [question(None)])


@pytest.mark.realdata
def test_scores_on_the_whole_dev_set_are_those_of_an_independent_implementation(real_data):
    questions = read_squad(real_data / "data" / "squad" / "dev-v1.1.json")
    draw = random.Random(0)

    def blurred(one: Question) -> str:
        """An answer, or one cut, stretched or taken from anywhere."""
        start, answer = one.starts[0], one.answers[0]
        return draw.choice(
            [
                answer,
                f"The {answer}.",
                one.context[max(start - 9, 0) : start + len(answer)],
                answer[: len(answer) // 2],
                draw.choice(one.context.split()),
                "",
            ]
        )

    predictions = {one.id: blurred(one) for one in questions}

    scores = squad_scores(questions, predictions)

    assert len(questions) == 10570
    assert 20 < scores["exact_match"] < scores["f1"] < 80
    assert scores == pytest.approx(as_reference(questions, predictions), abs=1e-5)
