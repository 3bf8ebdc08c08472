"""A tokenizer with part of its vocabulary, which splits what is made of that part as before."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from stat_prune.errors import DataError, SettingsError

#: Models of the library tokenizers whose vocabulary can be cut.
KINDS = ("BPE", "Unigram", "WordLevel", "WordPiece")

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")

#: Stands for the blank before a word.
_BLANK = "▁"


class Vocabulary:
    """The tokens of a tokenizer, and what each of them needs.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase

    Raises
    ------
    SettingsError
        If it is not of the library tokenizers, or of a kind that it cannot be cut in.

    Attributes
    ----------
    ids : dict of str to int
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise SettingsError(
                f"{type(tokenizer).__name__} is not of the library tokenizers, which tells what "
                "its vocabulary is. Pass the model's fast tokenizer where it has one "
                "(tokenizer.is_fast). One of bytes or characters (ByT5, CANINE) has few tokens to "
                "leave out, or none; embeddings of any model that has a table of them become "
                "smaller by factors: prune with target=Parameters({'embeddings': 0.5})."
            )
        self._tokenizer, self._state = tokenizer, json.loads(backend.to_str())
        self._model: dict[str, Any] = self._state["model"]
        if self._model["type"] not in KINDS:
            raise SettingsError(
                f"A vocabulary of the kind {self._model['type']} cannot be cut; only "
                f"{', '.join(KINDS)} can."
            )
        self._added = {one["content"]: one["id"] for one in self._state["added_tokens"]}
        self.ids: dict[str, int] = self._own_ids() | self._added

    def closed(self, used: Iterable[int]) -> list[int]:
        """Ids of all tokens that have to stay where these do, ascending.

        Those are: added and special tokens; single characters and bytes, into which whatever is
        left out can be split; of byte pairs, the parts of each token; of unigrams, the least likely
        one, by which the unknown is priced.
        """
        kept = {*used, *self._added.values(), *_ids_in(self._state["post_processor"])}
        kept |= {at for token, at in self.ids.items() if self._is_floor(token)}
        unknown = self._model.get("unk_token")
        if unknown is not None:
            kept.add(self.ids[unknown])
        if self._model["type"] == "Unigram":
            scores = [score for _, score in self._model["vocab"]]
            kept.add(scores.index(min(scores)))
            if self._model["unk_id"] is not None:
                kept.add(self._model["unk_id"])
        if self._model["type"] == "BPE":
            self._add_parts(kept)
        return sorted(kept)

    def cut(self, new: Mapping[int, int]) -> PreTrainedTokenizerBase:
        """The tokenizer with these tokens alone, by old and new ids.

        Raises
        ------
        DataError
            If it would number a token otherwise.
        """
        state, model = copy.deepcopy(self._state), self._model
        if model["type"] == "Unigram":
            rows = [row for at, row in enumerate(model["vocab"]) if at in new]
            state["model"]["vocab"] = rows
            if model["unk_id"] is not None:
                state["model"]["unk_id"] = new[model["unk_id"]]
        else:
            own = {token: new[at] for token, at in model["vocab"].items() if at in new}
            state["model"]["vocab"] = own
            if model["type"] == "BPE":
                state["model"]["merges"] = [
                    [first, second]
                    for first, second, result in self._merges()
                    if first in own and second in own and result in own
                ]
        for one in state["added_tokens"]:
            one["id"] = new[one["id"]]
        if state["padding"] is not None:
            state["padding"]["pad_id"] = new[state["padding"]["pad_id"]]
        _renumber(state["post_processor"], new)
        cut: Any = copy.deepcopy(self._tokenizer)
        cut._tokenizer = Tokenizer.from_str(json.dumps(state))
        found = cut.get_vocab()
        wrong = [t for t, at in self.ids.items() if at in new and found.get(t) != new[at]]
        if wrong:
            raise DataError(
                f"The tokenizer would number {wrong[0]!r} as {found.get(wrong[0])} rather than "
                f"{new[self.ids[wrong[0]]]}: its ids have gaps. Save it again without them."
            )
        trimmed: PreTrainedTokenizerBase = cut
        return trimmed

    def _own_ids(self) -> dict[str, int]:
        vocabulary = self._model["vocab"]
        if self._model["type"] == "Unigram":
            return {token: at for at, (token, _) in enumerate(vocabulary)}
        return dict(vocabulary)

    def _is_floor(self, token: str) -> bool:
        """Whether it is a single character or byte, however it says where in a word it is."""
        for mark in ("continuing_subword_prefix", "end_of_word_suffix"):
            part = self._model.get(mark) or ""
            if part and mark.endswith("prefix"):
                token = token.removeprefix(part)
            elif part:
                token = token.removesuffix(part)
        return len(token.removeprefix(_BLANK)) <= 1 or bool(_BYTE.fullmatch(token))

    def _merges(self) -> list[tuple[str, str, str]]:
        """Both parts and the result of each, in order."""
        prefix = len(self._model.get("continuing_subword_prefix") or "")
        pairs = (m.split(" ") if isinstance(m, str) else m for m in self._model["merges"])
        return [(first, second, first + second[prefix:]) for first, second in pairs]

    def _add_parts(self, kept: set[int]) -> None:
        """What a token is merged of, and what that is; by each merge that makes it.

        A text is then merged as before wherever all of its tokens stay: the merges that it took
        are all there, in the same order, and none has come before them.
        """
        ids: dict[str, int] = self._model["vocab"]
        parts: dict[int, set[int]] = {}
        for first, second, result in self._merges():
            parts.setdefault(ids[result], set()).update((ids[first], ids[second]))
        waiting = list(kept)
        while waiting:
            for part in parts.get(waiting.pop(), ()):
                if part not in kept:
                    kept.add(part)
                    waiting.append(part)


def _ids_in(processor: Mapping[str, Any] | None) -> list[int]:
    """Of the tokens that are put around a text."""
    if processor is None:
        return []
    if processor["type"] == "Sequence":
        return [at for part in processor["processors"] for at in _ids_in(part)]
    ids = [processor[name][1] for name in ("sep", "cls") if name in processor]
    special: Sequence[Any] = list(processor.get("special_tokens", {}).values())
    return ids + [at for one in special for at in one["ids"]]


def _renumber(processor: dict[str, Any] | None, new: Mapping[int, int]) -> None:
    """The same tokens around a text by their new ids, in place."""
    if processor is None:
        return
    for part in processor.get("processors", ()):
        _renumber(part, new)
    for name in ("sep", "cls"):
        if name in processor:
            token, at = processor[name]
            processor[name] = [token, new[at]]
    for one in processor.get("special_tokens", {}).values():
        one["ids"] = [new[at] for at in one["ids"]]
