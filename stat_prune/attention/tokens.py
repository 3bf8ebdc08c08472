"""Which tokens are special, and which belong to content words."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

#: What stands for blanks and line ends in vocabularies of byte pairs and of SentencePiece.
BLANKS = str.maketrans(dict.fromkeys("Ġ▁Ċĉ", " "))
#: What tokens inside a word begin with in vocabularies of WordPiece.
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
        self._function_words = _english_stop_words() if function_words is None else function_words
        structural = {
            getattr(tokenizer, f"{name}_token_id", None)
            for name in ("bos", "eos", "cls", "sep", "pad", "mask")
        }
        # An unknown word is a word, unless its token has another role too (GPT-2).
        self._special = (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}) | structural
        vocabulary = tokenizer.get_vocab()
        self._has_continuations = any(token.startswith(CONTINUATION) for token in vocabulary)
        self._has_blanks = any(token != token.translate(BLANKS) for token in vocabulary)

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
        """Which tokens have part in a word that is no function word; punctuation has not.

        Parameters
        ----------
        ids : Tensor of shape (n,), int64
            Of one sequence in order: a word may be several tokens, and a token several words.

        Returns
        -------
        Tensor of shape (n,), bool
        """
        owners: list[int] = []  # of each character of the text
        pieces = []
        for position, number in enumerate(ids.tolist()):
            piece = " " if number in self._special else self._text(number)
            pieces.append(piece)
            owners += [position] * len(piece)
        mask = torch.zeros(len(ids), dtype=torch.bool)
        for word in re.finditer(r"[^\W_]+", "".join(pieces)):
            if word.group().lower() not in self._function_words:
                mask[owners[word.start() : word.end()]] = True
        return mask

    def _text(self, number: int) -> str:
        """What a token adds to the text, with the blanks around it."""
        token = self._tokenizer.convert_ids_to_tokens([number])[0]
        if self._has_blanks:
            return token.translate(BLANKS)
        if self._has_continuations and token.startswith(CONTINUATION):
            return token.removeprefix(CONTINUATION)
        return f" {token}"


def _english_stop_words() -> frozenset[str]:
    """Scikit-learn's; with pandas, which it brings, it takes a hundred megabytes."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words: frozenset[str] = ENGLISH_STOP_WORDS
    return words
