"""A pruned model in llama.cpp beside the same model in transformers: tokens and perplexity.

    python benchmarks/in_llama_cpp.py FOLDER texts.json --output results/in_llama_cpp

FOLDER is what `PruningResult.save` wrote. It is exported to GGUF in each type, and read by the
llama.cpp inside the package xllamacpp (pip install 'stat-prune[llama-cpp]'), over its server.
"""

from __future__ import annotations

import json
import math
import tempfile
import urllib.error
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from llama_server import LlamaCpp, serving
from stat_prune.checkpoints.pretrained import load_pretrained, load_tokenizer
from stat_prune.examples.iterating import iterate_examples
from stat_prune.exporting.gguf_file import write_gguf


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, ids: Sequence[int]) -> list[float]:
    """As `LlamaCpp.log_probabilities`, by transformers."""
    logits = model(torch.tensor([list(ids)])).logits[0, :-1].double()
    found: list[float] = (
        logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    )
    return found


def continuation(model: Any, ids: Sequence[int], count: int) -> list[int]:
    """As `LlamaCpp.continuation`, by transformers."""
    tokens = torch.tensor([list(ids)])
    written = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False
    )
    return [int(token) for token in written[0, len(ids) :]]


def without_end(ids: list[int], end: int | None) -> list[int]:
    """What comes before the end of the text."""
    return ids[: ids.index(end)] if end in ids else ids


def perplexity(log_probabilities: Sequence[Sequence[float]]) -> float:
    """Of all tokens of all texts."""
    every = [value for values in log_probabilities for value in values]
    return math.exp(-sum(every) / len(every))


def tokenized_alike(server: LlamaCpp, tokenizer: Any, texts: Sequence[str]) -> dict[str, int]:
    """How many texts become the same ids, other ids, or none, as no token holds a character."""
    counts = {"same": 0, "other": 0, "refused": 0}
    for text in texts:
        try:
            same = server.tokenize(text) == tokenizer(text)["input_ids"]
            counts["same" if same else "other"] += 1
        except urllib.error.HTTPError:
            counts["refused"] += 1
    return counts


def compared(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[str],
    type: str,
    sizes: dict[str, int],
) -> dict[str, Any]:
    """What one type of file gives, beside transformers."""
    ids = [tokenizer(text)["input_ids"][: sizes["tokens"]] for text in texts]
    prompts = [one[: sizes["prompt"]] for one in ids[: sizes["prompts"]]]
    end = model.config.eos_token_id
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        notes = write_gguf(model, tokenizer, file, type=type)
        with serving(file, sizes["tokens"] + sizes["new"]) as server:
            greedy = [
                without_end(continuation(model, prompt, sizes["new"]), end)
                == without_end(server.continuation(prompt, sizes["new"]), end)
                for prompt in tqdm(prompts, desc=f"{type}: greedy")
            ]
            theirs = [server.log_probabilities(one) for one in tqdm(ids, desc=f"{type}: texts")]
            tokens = tokenized_alike(server, tokenizer, texts)
        mebibytes = file.stat().st_size / 2**20
    ours = [log_probabilities(model, one) for one in ids]
    expected, found = perplexity(ours), perplexity(theirs)
    return {
        "mebibytes": mebibytes,
        "notes": notes,
        "texts_tokenized": tokens,
        "prompts": len(greedy),
        "same_greedy_tokens": sum(greedy),
        "perplexity_transformers": expected,
        "perplexity_llama_cpp": found,
        "relative_change": found / expected - 1,
        "largest_difference_of_log_probabilities": max(
            abs(a - b)
            for one, other in zip(ours, theirs, strict=True)
            for a, b in zip(one, other, strict=True)
        ),
    }


def main(
    folder: Annotated[str, typer.Argument(help="A pruned or plain causal language model.")],
    texts: Annotated[str, typer.Argument(help="As `prune --dataset` takes them; held-out ones.")],
    output: Annotated[Path, typer.Option(help="Folder for in_llama_cpp.json.")] = Path(
        "results/in_llama_cpp"
    ),
    types: Annotated[list[str], typer.Option("--type", help="May be repeated.")] = ["f32", "q8_0"],  # noqa: B006
    limit: Annotated[int, typer.Option(min=1, help="Texts, from the last.")] = 30,
    tokens: Annotated[int, typer.Option(help="Of each text.")] = 128,
    prompts: Annotated[int, typer.Option(help="How many texts are continued.")] = 20,
    prompt: Annotated[int, typer.Option(help="Tokens that are given of each.")] = 16,
    new: Annotated[int, typer.Option(help="Tokens that are written at most.")] = 40,
) -> None:
    """Compare each type with transformers, in float32."""
    torch.set_num_threads(1)
    model = load_pretrained(folder).float().eval()
    tokenizer = load_tokenizer(folder)
    every = [text for text in iterate_examples(texts, seed=0) if isinstance(text, str)]
    sizes = {"tokens": tokens, "prompts": prompts, "prompt": prompt, "new": new}
    record: dict[str, Any] = {"folder": Path(folder).name, **sizes}
    record["xllamacpp"] = version("xllamacpp")
    for type in types:
        record[type] = compared(model, tokenizer, every[-limit:], type, sizes)
    output.mkdir(parents=True, exist_ok=True)
    (output / "in_llama_cpp.json").write_text(json.dumps(record, indent=2))
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    typer.run(main)
