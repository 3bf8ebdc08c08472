"""Which tokens are special, and which belong to content words."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor
from transformers import PreTrainedTokenizerBase

#: What the first token of a word begins with, in the vocabularies that mark it.
WORD_MARKS = ("Ġ", "▁")
#: What the tokens of a word after the first begin with, in WordPiece vocabularies.
CONTINUATION = "##"


class TokenClasses:
    """Classes of a tokenizer's tokens.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    function_words : collection of str, optional
        Words, in lower case, that say little by themselves. Default: the English stop words of
        scikit-learn. For text in another language pass those of that language.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        function_words: Collection[str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._function_words = ENGLISH_STOP_WORDS if function_words is None else function_words
        structural = {
            getattr(tokenizer, f"{name}_token_id", None)
            for name in ("bos", "eos", "cls", "sep", "pad", "mask")
        }
        # An unknown word is a word, unless its token has another role too (GPT-2).
        self._special = (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}) | structural
        vocabulary = tokenizer.get_vocab()
        self._continues = any(token.startswith(CONTINUATION) for token in vocabulary)
        self._marks = any(token.startswith(WORD_MARKS) for token in vocabulary)

    def special(self, ids: Tensor) -> Tensor:
        """Which tokens stand for no text, such as ``[CLS]``, ``[SEP]`` and ``<s>``.

        Parameters
        ----------
        ids : Tensor of shape (n,), int64

        Returns
        -------
        Tensor of shape (n,), bool
        """
        return torch.tensor([number in self._special for number in ids.tolist()])

    def content(self, ids: Tensor) -> Tensor:
        """Which tokens belong to words other than function words; punctuation does not.

        Parameters
        ----------
        ids : Tensor of shape (n,), int64
            Of one sequence in order: a word may be several tokens.

        Returns
        -------
        Tensor of shape (n,), bool
        """
        mask = torch.zeros(len(ids), dtype=torch.bool)
        for positions, word in self._words(ids.tolist()):
            mask[positions] = word.lower() not in self._function_words
        return mask

    def _words(self, ids: list[int]) -> Iterator[tuple[list[int], str]]:
        """Runs of tokens that make up a word with a letter or digit in it, and that word."""
        positions: list[int] = []
        word = ""
        for position, (number, token) in enumerate(
            zip(ids, self._tokenizer.convert_ids_to_tokens(ids), strict=True)
        ):
            piece = token.removeprefix(CONTINUATION).lstrip("".join(WORD_MARKS))
            is_text = number not in self._special and any(c.isalnum() for c in piece)
            if positions and not (is_text and self._is_continuation(token)):
                yield positions, word
                positions, word = [], ""
            if is_text:
                positions, word = [*positions, position], word + piece
        if positions:
            yield positions, word

    def _is_continuation(self, token: str) -> bool:
        if self._continues:
            return token.startswith(CONTINUATION)
        return self._marks and not token.startswith(WORD_MARKS)
