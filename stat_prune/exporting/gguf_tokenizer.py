"""A tokenizer in the form in which llama.cpp keeps one in a GGUF file."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import gguf
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from stat_prune.errors import ModelError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

#: llama.cpp's names of the ways to split a text into words before merging, by their expressions.
PRE_TOKENIZERS = {
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}": "qwen2",
}
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def add_tokenizer(
    writer: gguf.GGUFWriter,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    pre_tokenizer: str | None = None,
) -> list[str]:
    """Write tokens, merges or scores, special tokens and the chat template.

    Parameters
    ----------
    writer : gguf.GGUFWriter
    tokenizer : PreTrainedTokenizerBase
    config : PreTrainedConfig
        It has the number of tokens, which may be larger than the tokenizer's.
    pre_tokenizer : str, optional
        llama.cpp's name of how texts are split before merging. Default: found from the tokenizer's
        own expression.

    Returns
    -------
    list of str
        What is to be said of it.

    Raises
    ------
    ModelError
        If llama.cpp has no tokenizer of that kind, or its name for the splitting is not known.
    """
    content = _content(tokenizer)
    model = content["model"]
    if model.get("type") != "BPE":
        raise ModelError(
            f"The tokenizer is of the kind {model.get('type')!r}; what can be written for "
            "llama.cpp is BPE, on bytes or on characters. Pass tokenizer= of that kind."
        )
    by_bytes = not model.get("byte_fallback")
    writer.add_tokenizer_model("gpt2" if by_bytes else "llama")
    if by_bytes:
        name = pre_tokenizer or _pre_tokenizer(content)
    else:
        name = "default"
        writer.add_add_space_prefix(_begins_with_space(content))
    writer.add_tokenizer_pre(name)
    tokens, kinds = _tokens(content, config.vocab_size)
    writer.add_token_list(tokens)
    if not by_bytes:
        writer.add_token_scores(_scores(tokens, model["merges"]))
    writer.add_token_types(kinds)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        config.to_json_file(Path(folder) / "config.json")
        special = gguf.SpecialVocab(folder, load_merges=by_bytes, n_vocab=len(tokens))
    special.add_to_gguf(writer, quiet=True)
    if by_bytes or gguf.TokenType.BYTE in kinds:
        return []
    return [
        "the tokenizer has no tokens for single bytes: llama.cpp fails at characters that it does "
        "not have"
    ]


def _content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{type(tokenizer).__name__} is not backed by the tokenizers library, so its tokens "
            "and merges cannot be read. Save it as a fast tokenizer, and load that."
        )
    content: dict[str, Any] = json.loads(backend.to_str())
    return content


def _tokens(content: dict[str, Any], count: int) -> tuple[list[str], list[int]]:
    """Texts and types of all tokens, in the order of their ids, with names for unused ids."""
    texts = {number: text for text, number in content["model"]["vocab"].items()}
    kinds = {
        number: gguf.TokenType.BYTE if _BYTE.fullmatch(text) else gguf.TokenType.NORMAL
        for number, text in texts.items()
    }
    unknown = content["model"].get("unk_token")
    for added in content["added_tokens"]:
        texts[added["id"]] = added["content"]
        own = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        unknowing = added["content"] == unknown
        kinds[added["id"]] = gguf.TokenType.UNKNOWN if unknowing else own
    if texts and max(texts) >= count:
        raise ModelError(
            f"The tokenizer has a token of the number {max(texts)}, and the model embeddings for "
            f"{count} only. Pass the tokenizer that belongs to the model."
        )
    return (
        [texts.get(number, f"[PAD{number}]") for number in range(count)],
        [kinds.get(number, gguf.TokenType.UNUSED) for number in range(count)],
    )


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """llama.cpp merges what has the highest score first: here, what is first among the merges."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _parts(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be one, several or none."""
    one = content.get(name) or {"type": "Sequence", f"{name}s": []}
    inner: list[dict[str, Any]] = one.get(f"{name}s", one.get("pretokenizers", [one]))
    return inner if one["type"] == "Sequence" else [one]


def _begins_with_space(content: dict[str, Any]) -> bool:
    prepends = any(part["type"] == "Prepend" for part in _parts(content, "normalizer"))
    return prepends or any(
        part["type"] == "Metaspace" and part.get("prepend_scheme") != "never"
        for part in _parts(content, "pre_tokenizer")
    )


def _pre_tokenizer(content: dict[str, Any]) -> str:
    """llama.cpp's name of how a byte-level tokenizer splits texts."""
    parts = _parts(content, "pre_tokenizer")
    expressions = [part["pattern"].get("Regex") for part in parts if part["type"] == "Split"]
    kinds = [part["type"] for part in parts]
    if len(expressions) == 1 and expressions[0] in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[expressions[0]]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    raise ModelError(
        f"llama.cpp's name for how this tokenizer splits texts ({expressions or kinds}) is not "
        "known here. Pass it: pre_tokenizer=, one of the names in llama.cpp's own list."
    )
