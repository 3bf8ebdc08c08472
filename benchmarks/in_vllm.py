"""A pruned model in vLLM beside the same model in transformers: what both compute, on a CPU.

    python benchmarks/in_vllm.py FOLDER texts.json --output results/in_vllm

FOLDER is what `PruningResult.save` wrote of a model pruned with ``serve_with="vllm"``. vLLM
(pip install vllm) reads it as for serving: its config, its code and its weights, by the backend for
models of transformers. The kernels of attention, which want a GPU or a build of vLLM for CPUs, are
replaced by torch's; so this says nothing of them, of the cache or of speed.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from tqdm.auto import tqdm

from stat_prune.checkpoints.pretrained import load_pretrained, load_tokenizer
from stat_prune.examples.iterating import iterate_examples


class TorchAttention(nn.Module):
    """In place of vLLM's attention layer: one sequence at a time, by torch."""

    causal = True

    def __init__(
        self, num_heads: int, head_size: int, scale: float, num_kv_heads: int, **_: Any
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size
        self.scale = scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """From and to rows of all heads, one a token."""
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        by_head = (
            rows.view(1, len(rows), count, self.head_size).transpose(1, 2)
            for rows, count in zip((query, key, value), heads, strict=True)
        )
        context = scaled_dot_product_attention(
            *by_head, is_causal=self.causal, scale=self.scale, enable_gqa=True
        )
        return context[0].transpose(0, 1).flatten(1)


class TorchAttentionOfEncoders(TorchAttention):
    """Likewise where every token attends to all."""

    causal = False


class InVLLM:
    """The model that vLLM makes of a folder, on a CPU.

    Parameters
    ----------
    folder : Path
    tokens : int
        The longest sequence.
    """

    def __init__(self, folder: Path, tokens: int) -> None:
        from vllm import platforms
        from vllm.platforms.cpu import CpuPlatform

        # Before what asks for it is imported.
        platforms._current_platform = CpuPlatform()
        torch.accelerator.empty_cache = lambda: None
        from vllm.config import set_current_vllm_config
        from vllm.distributed import init_distributed_environment, initialize_model_parallel
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.model_loader import get_model
        from vllm.model_executor.models.transformers.base import Base

        theirs = Base._get_attn_cls

        def ours(backend: Base) -> type[nn.Module]:
            of_encoder = theirs(backend).__name__ == "EncoderOnlyAttention"
            return TorchAttentionOfEncoders if of_encoder else TorchAttention

        Base._get_attn_cls = ours
        arguments = EngineArgs(
            model=str(folder),
            trust_remote_code=True,
            dtype="float32",
            enforce_eager=True,
            model_impl="transformers",
            max_model_len=tokens,
        )
        self._config = arguments.create_engine_config()
        with set_current_vllm_config(self._config):
            init_distributed_environment(1, 0, "tcp://127.0.0.1:29511", 0, "gloo")
            initialize_model_parallel(1, 1)
            self.model: Any = get_model(vllm_config=self._config)

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Logits of a language model, or the last hidden states; one row a token."""
        from vllm.forward_context import set_forward_context

        with set_forward_context(None, self._config):
            states: Tensor = self.model(input_ids=ids, positions=torch.arange(len(ids)))
            return self.model.compute_logits(states) if hasattr(self.model, "lm_head") else states


def main(
    folder: Annotated[Path, typer.Argument(help="What was saved, and pruned for vLLM.")],
    texts: Annotated[str, typer.Argument(help="As `prune --dataset` takes them.")],
    output: Annotated[Path, typer.Option(help="Folder for in_vllm.json.")] = Path(
        "results/in_vllm"
    ),
    limit: Annotated[int, typer.Option(min=1, help="Texts, from the last.")] = 20,
    tokens: Annotated[int, typer.Option(help="Of each text.")] = 128,
) -> None:
    """Compare every text's outputs."""
    torch.set_num_threads(1)
    model = load_pretrained(str(folder)).float().eval()
    tokenizer = load_tokenizer(str(folder))
    every = [text for text in iterate_examples(texts, seed=0) if isinstance(text, str)]
    theirs = InVLLM(folder, tokens)
    difference = largest = 0.0
    same = count = 0
    for text in tqdm(every[-limit:]):
        ids = torch.tensor(tokenizer(text)["input_ids"][:tokens])
        with torch.no_grad():
            expected = model(ids[None])[0][0]
        found = theirs(ids)
        difference = max(difference, float((found - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
        same += int((found.argmax(-1) == expected.argmax(-1)).sum())
        count += len(ids)
    record = {
        "folder": folder.name,
        "vllm": version("vllm"),
        "class_in_vllm": type(theirs.model).__name__,
        "texts": limit,
        "tokens": count,
        "largest_difference": difference,
        "largest_output": largest,
        "same_argmax": same / count,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "in_vllm.json").write_text(json.dumps(record, indent=2))
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    typer.run(main)
