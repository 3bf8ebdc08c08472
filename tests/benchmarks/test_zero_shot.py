from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import continuations
import zero_shot
from stat_prune.errors import SettingsError

EXAMPLES = [
    {"question": "the cat sat on the", "choices": ["mat", "very", "it then"], "answer": 0},
    {"question": "a dog ran under a", "choices": ["was", "tree house", "flew"], "answer": 1},
    {"question": "the bird flew over", "choices": ["and", "it was", "the house"], "answer": 2},
    {"question": "then it was very", "choices": ["cat", "under", "on a mat"], "answer": 1},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {data}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: {metric}
    higher_is_better: true
"""


@pytest.fixture
def tasks(tmp_path):
    """A task of one's own, scored in two ways."""
    data = tmp_path / "examples.jsonl"
    data.write_text("\n".join(map(json.dumps, EXAMPLES)))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, metric in (("plain", "acc"), ("normalised", "acc_norm")):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data, metric=metric))
    return folder


def accuracy(model, tokenizer, *, normalised: bool) -> float:
    """Share of the examples whose most probable choice is right, one choice at a time."""
    right = 0
    for example in EXAMPLES:
        scores = []
        for choice in example["choices"]:
            start = tokenizer(example["question"], add_special_tokens=False)["input_ids"]
            whole = tokenizer(f"{example['question']} {choice}", add_special_tokens=False)[
                "input_ids"
            ]
            with torch.no_grad():
                log_p = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            total = sum(float(log_p[i - 1, whole[i]]) for i in range(len(start), len(whole)))
            scores.append(total / len(choice) if normalised else total)
        right += scores.index(max(scores)) == example["answer"]
    return 100 * right / len(EXAMPLES)


@pytest.mark.slow
def test_the_model_in_memory_scores_as_one_choice_at_a_time(at_hand, tasks, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    app = typer.Typer()
    app.command()(zero_shot.main)
    arguments = [
        *("--model", "tiny-llama", "--task", "plain", "--task", "normalised"),
        *("--include", tasks, "--context-length", "32", "--samples", "40"),
        *("--budget", "0.6", "--method", "stat", "--output", tmp_path / "out"),
    ]

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])

    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "zero-shot-stat-0.json").read_text())
    folder = at_hand / "models" / "tiny-llama"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = accuracy(model, tokenizer, normalised=False)
    normalised = accuracy(model, tokenizer, normalised=True)
    assert record["details"]["dense"] == {
        "average": (plain + normalised) / 2,
        "plain": plain,
        "normalised": normalised,
    }
    assert set(record["details"]["0.6"]) == {"average", "plain", "normalised"}


def test_continuations_are_those_of_their_own_paragraphs(tmp_path):
    paragraphs = [" ".join(f"{name}{n}" for n in range(50)) for name in "abcdefg"]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(["too short", *paragraphs]))
    continuations.main(text, tmp_path / "tasks", limit=5, seed=0)

    rows = [json.loads(row) for row in (tmp_path / "tasks" / "continuations.jsonl").open()]
    assert len(rows) == 5
    for row in rows:
        whole = f"{row['beginning']} {row['choices'][row['answer']]}"
        assert any(paragraph.startswith(whole) for paragraph in paragraphs)
        assert len(set(row["choices"])) == 4
    assert len({row["answer"] for row in rows}) > 1
    task = yaml.safe_load((tmp_path / "tasks" / "continuations.yaml").read_text())
    assert Path(task["dataset_kwargs"]["data_files"]["validation"]).is_file()
    text.write_text("\n".join(paragraphs[:3]))
    with pytest.raises(typer.BadParameter, match="3 paragraphs have 44 words, at least 4"):
        continuations.main(text, tmp_path / "tasks")


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(SettingsError, match=r"stat-prune\[zero-shot\]"):
        zero_shot.zero_shot_scores(None, None, ["piqa"])
