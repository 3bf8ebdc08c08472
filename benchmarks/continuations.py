"""A zero-shot task from any text: which words go on from these? For where there is no hub.

    python benchmarks/continuations.py test.txt --output tasks
    python benchmarks/zero_shot.py --include tasks --task continuations --model ...

Every example is the beginning of a paragraph with four continuations, its own and those of three
other paragraphs, as lm-evaluation-harness reads them. Its accuracy compares with no published one.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated

import typer

#: Words of the beginning and of a continuation, and continuations to choose from.
BEGINNING, CONTINUATION, CHOICES = 32, 12, 4
TASK = """\
task: continuations
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {data}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{beginning}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    higher_is_better: true
"""


def examples(text: str, seed: int) -> list[dict[str, object]]:
    """One of every paragraph that is long enough, in random order."""
    paragraphs = [line.split() for line in text.splitlines()]
    paragraphs = [words for words in paragraphs if len(words) >= BEGINNING + CONTINUATION]
    ends = [" ".join(words[BEGINNING : BEGINNING + CONTINUATION]) for words in paragraphs]
    distinct = sorted(set(ends))
    if len(distinct) < CHOICES:
        raise typer.BadParameter(
            f"{len(distinct)} paragraphs have {BEGINNING + CONTINUATION} words, at least "
            f"{CHOICES} are needed. Give a longer text, a paragraph a line."
        )
    draw = random.Random(seed)
    found: list[dict[str, object]] = []
    for words, own in zip(paragraphs, ends, strict=True):
        others = [end for end in distinct if end != own]
        choices = [own, *draw.sample(others, CHOICES - 1)]
        draw.shuffle(choices)
        beginning = " ".join(words[:BEGINNING])
        found.append({"beginning": beginning, "choices": choices, "answer": choices.index(own)})
    draw.shuffle(found)
    return found


def main(
    text: Annotated[Path, typer.Argument(help="A paragraph a line.")],
    output: Annotated[Path, typer.Option(help="Folder for the task.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many examples.")] = None,
    seed: int = 0,
) -> None:
    """Write the task's examples and its description."""
    output.mkdir(parents=True, exist_ok=True)
    data = output.resolve() / "continuations.jsonl"
    rows = examples(text.read_text(encoding="utf-8"), seed)[:limit]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (output / "continuations.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    print(f"{len(rows)} examples in {output}")


if __name__ == "__main__":
    typer.run(main)
