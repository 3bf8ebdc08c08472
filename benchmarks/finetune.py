"""Fine-tune a model for the benchmarks, where no fine-tuned checkpoint is at hand.

    python benchmarks/finetune.py squad --model google-bert/bert-base-uncased --output out
    python benchmarks/finetune.py glue --task sst2 --model distilbert/distilbert-base-uncased ...
    python benchmarks/finetune.py wikitext2 --from-scratch --text train.txt --output out

A plain recipe of `transformers.Trainer`: AdamW, a linear schedule, dropout as the model has it.
A run that is broken off goes on from its last hundred steps when it is started again.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from harness.texts import read_texts
from stat_prune.evaluation.glue import GLUE_TASKS, read_glue
from stat_prune.evaluation.squad_data import read_squad
from stat_prune.evaluation.squad_windows import answer_positions, windows

app = typer.Typer(add_completion=False, no_args_is_help=True)

Model = Annotated[str, typer.Option(help="A folder or Hub name.")]
Output = Annotated[Path, typer.Option(help="Folder for the fine-tuned model.")]
Epochs = Annotated[float, typer.Option(help="Passes over the training data.")]
LearningRate = Annotated[float, typer.Option(help="At its peak, after a tenth of the steps.")]
BatchSize = Annotated[int, typer.Option(help="Rows a step.")]
Length = Annotated[int, typer.Option(help="Tokens a row at most.")]
Limit = Annotated[int | None, typer.Option(help="Only so many examples, drawn at random.")]
Frozen = Annotated[bool, typer.Option(help="Leave the embeddings as they are.")]
Bfloat16 = Annotated[bool, typer.Option(help="Products in bfloat16, where they are faster.")]
Seed = Annotated[int, typer.Option(help="Of initial weights, order and dropout.")]

Row = dict[str, Any]


@app.command()
def glue(
    model: Model,
    output: Output,
    task: Annotated[str, typer.Option(help=f"One of {', '.join(GLUE_TASKS)}.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with TASK/train.tsv; default the Hub's copy.")
    ] = None,
    epochs: Epochs = 3,
    learning_rate: LearningRate = 5e-5,
    batch_size: BatchSize = 32,
    max_seq_length: Length = 128,
    limit: Limit = None,
    freeze_embeddings: Frozen = False,
    bf16: Bfloat16 = False,
    seed: Seed = 0,
) -> None:
    """Fine-tune for a task of GLUE."""
    set_seed(seed)
    known, train = GLUE_TASKS[task], read_glue(task, data, split="train")
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(
        model,
        num_labels=1 if task == "stsb" else max(len(known.labels), 2),
        **({"label2id": {name: i for i, name in enumerate(known.labels)}} if known.labels else {}),
        **({"id2label": dict(enumerate(known.labels))} if known.labels else {}),
        dtype=torch.float32,
    )
    pairs = [(text,) if isinstance(text, str) else text for text in train.texts]
    rows = [
        {**tokenizer(*pair, truncation=True, max_length=max_seq_length), "labels": label}
        for pair, label in zip(pairs, train.labels.tolist(), strict=True)
    ]
    trained(
        network,
        tokenizer,
        drawn(rows, limit, seed),
        output,
        collator=DataCollatorWithPadding(tokenizer),
        frozen=freeze_embeddings,
        settings=arguments(output, epochs, learning_rate, batch_size, bf16, seed),
    )


@app.command()
def squad(
    model: Model,
    output: Output,
    data: Annotated[
        Path | None, typer.Option(help="A file as SQuAD publishes it; default the Hub's copy.")
    ] = None,
    version: Annotated[str, typer.Option(help="1.1 or 2.0, of the Hub's copy.")] = "1.1",
    epochs: Epochs = 2,
    learning_rate: LearningRate = 5e-5,
    batch_size: BatchSize = 32,
    max_seq_length: Length = 384,
    stride: Annotated[int, typer.Option(help="Tokens that neighbouring windows share.")] = 128,
    limit: Limit = None,
    freeze_embeddings: Frozen = False,
    bf16: Bfloat16 = False,
    seed: Seed = 0,
) -> None:
    """Fine-tune for SQuAD: the first and the last token of the answer, window by window."""
    set_seed(seed)
    questions = drawn(read_squad(data, version=version, split="train"), limit, seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForQuestionAnswering.from_pretrained(model, dtype=torch.float32)
    rows = []
    for window in windows(tokenizer, questions, max_seq_length=max_seq_length, stride=stride):
        start, end = answer_positions(window, questions[window.question])
        rows.append({**window.inputs, "start_positions": start, "end_positions": end})
    trained(
        network,
        tokenizer,
        rows,
        output,
        collator=DataCollatorWithPadding(tokenizer),
        frozen=freeze_embeddings,
        settings=arguments(output, epochs, learning_rate, batch_size, bf16, seed),
    )


@app.command()
def wikitext2(
    output: Output,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Files: .txt, or .json with a list of texts. Never the test split."),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option(help="A small Llama with a tokenizer of its own, from random weights.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Go on with this one instead.")] = None,
    hidden_size: Annotated[int, typer.Option(help="From scratch: of the residual stream.")] = 256,
    layers: Annotated[int, typer.Option(help="From scratch.")] = 6,
    vocabulary: Annotated[int, typer.Option(help="From scratch: byte pairs and all.")] = 4096,
    context_length: Length = 512,
    epochs: Epochs = 10,
    learning_rate: LearningRate = 1e-3,
    batch_size: BatchSize = 8,
    bf16: Bfloat16 = False,
    seed: Seed = 0,
) -> None:
    """Train a causal language model on text; the last twentieth of it is held out for the log."""
    if from_scratch == (model is not None):
        raise typer.BadParameter("pass either --from-scratch or --model")
    set_seed(seed)
    texts = [piece for path in text or [] for piece in read_texts(path)]
    if not texts:
        raise typer.BadParameter("needs at least one file", param_hint="--text")
    if from_scratch:
        tokenizer = byte_pair_tokenizer(texts, vocabulary)
        network = small_llama(hidden_size, layers, context_length, tokenizer)
    else:
        tokenizer = AutoTokenizer.from_pretrained(model)
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = tokenizer("\n\n".join(texts))["input_ids"]
    blocks = [
        {"input_ids": ids[start : start + context_length]}
        for start in range(0, len(ids) - context_length + 1, context_length)
    ]
    rows = [{**block, "labels": block["input_ids"]} for block in blocks]
    held_out = max(len(rows) // 20, 1)
    trained(
        network,
        tokenizer,
        rows[:-held_out],
        output,
        collator=default_data_collator,
        evaluated_on=rows[-held_out:],
        settings=arguments(output, epochs, learning_rate, batch_size, bf16, seed)
        | {"weight_decay": 0.1, "adam_beta2": 0.95, "eval_strategy": "epoch"},
    )


def arguments(
    output: Path, epochs: float, learning_rate: float, batch_size: int, bf16: bool, seed: int
) -> dict[str, Any]:
    """Settings of `TrainingArguments` that all recipes share."""
    return {
        "output_dir": str(output / "training"),
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size,
        "warmup_steps": 0.1,
        "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(),  # else bfloat16 is refused on a CPU
        "seed": seed,
        "save_strategy": "steps",
        "save_steps": 100,
        "save_total_limit": 1,
        "logging_steps": 50,
        "report_to": "none",
        "train_sampling_strategy": "group_by_length",
    }


def trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    output: Path,
    *,
    collator: Any,
    settings: dict[str, Any],
    frozen: bool = False,
    evaluated_on: list[Row] | None = None,
) -> None:
    """Train, from the last checkpoint where there is one, and save the model with its tokenizer."""
    if frozen:
        model.get_input_embeddings().requires_grad_(False)
    trainer = Trainer(
        model,
        TrainingArguments(**settings),
        train_dataset=rows,
        eval_dataset=evaluated_on,
        data_collator=collator,
    )
    folder = Path(settings["output_dir"])
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def drawn(rows: Sequence[Any], limit: int | None, seed: int) -> list[Any]:
    """All rows, or so many drawn at random."""
    return list(rows) if limit is None else random.Random(seed).sample(rows, min(limit, len(rows)))


def byte_pair_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer learnt from these texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[end],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)


def small_llama(
    hidden_size: int, layers: int, context_length: int, tokenizer: PreTrainedTokenizerBase
) -> LlamaForCausalLM:
    """Llama's shape, with heads of 32 dimensions, two for each key/value head."""
    heads = hidden_size // 32
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=round(hidden_size * 8 / 3 / 16) * 16,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(heads // 2, 1),
            max_position_embeddings=context_length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


if __name__ == "__main__":
    app()
