"""`trim_vocabulary`: from texts to a model and a tokenizer that have what such texts need."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.checkpoints.checkpoint import save_checkpoint
from stat_prune.checkpoints.pretrained import given_tokenizer
from stat_prune.checkpoints.replacing import PLAN_FILE, REPORT_FILE, check_apart
from stat_prune.data.token_rows import MAX_LENGTH, tokenized
from stat_prune.errors import DataError, SettingsError
from stat_prune.examples.iterating import iterate_examples
from stat_prune.machine.progress import progress_bar
from stat_prune.model.model_checks import check_model
from stat_prune.model.whole_encoders import encoder_kind, tokenizer_of, transformer_of
from stat_prune.reporting.accounts import num_parameters, own_account
from stat_prune.reporting.report import PruningReport
from stat_prune.reporting.trimming_report import TrimmingReport
from stat_prune.reporting.what_was_done import what_was_done
from stat_prune.settings.arguments import flag
from stat_prune.surgery.token_tables import find_table
from stat_prune.trimming.behind import check_own, tokens_besides, with_trimmed
from stat_prune.trimming.rows import ids_in_configs, keep_rows
from stat_prune.trimming.tokenizer import Vocabulary

#: One text in so many is counted as if it were not there.
HELD_OUT = 10

_AT_ONCE = 256


@dataclass(frozen=True)
class TrimmedModel:
    """A model and its tokenizer with part of their vocabulary.

    Attributes
    ----------
    model : PreTrainedModel
        Where a model of sentence-transformers was given, one of its class.
    tokenizer : PreTrainedTokenizerBase
    report : TrimmingReport
    kept : list of int
        The old id of each new one.
    source : str or None
        Where the model came from.
    pruned : PruningReport or None
        Of a model that lay beside the report of its pruning, that report, which tells of the
        trimming, too.
    plan : dict of str to list of int, or None
        As in `PruningResult`, which lies there as well.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    report: TrimmingReport
    kept: list[int]
    source: str | None = None
    pruned: PruningReport | None = None
    plan: dict[str, list[int]] | None = None

    def save(self, directory: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write model, config and tokenizer; atomically, as `PruningResult.save`.

        Of a pruned model report and plan, too.

        Raises
        ------
        SaveError
        """
        check_apart(directory, self.source)
        files, account = {}, ""
        if self.pruned is not None:
            files = {REPORT_FILE: self.pruned.to_json(), PLAN_FILE: json.dumps(self.plan)}
            account = what_was_done(self.pruned)
        save_checkpoint(
            directory,
            model=self.model,
            tokenizer=self.tokenizer,
            files=files,
            overwrite=overwrite,
            account=account,
        )


def trim_vocabulary(
    model: PreTrainedModel | nn.Module,
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None,
    texts: Any,
    *,
    keep: Iterable[str] = (),
    progress: bool = True,
) -> TrimmedModel:
    """Leave out the tokens that texts of one kind never need; exact on all others.

    What stays: each token of `texts`, special and added tokens, single characters and bytes,
    `keep`, and whatever these are merged of. A text whose tokens all stay is split as before, and
    the model computes the same of it, to the bit; the logits of a head up to the rounding of a
    smaller product. Any other text is split otherwise, into tokens that stay.

    Parameters
    ----------
    model : PreTrainedModel
        Left as it is. Pruned or not, with any head; a language model then writes what is left. Or
        a ``SentenceTransformer``, ``CrossEncoder`` or ``SparseEncoder``: its transformer and its
        tokenizer are trimmed, what is behind stays, and the result is one of the same class. The
        embeddings of a ``SparseEncoder`` that has a number a token have those of tokens that stay.
    tokenizer : PreTrainedTokenizerBase or path, or None
        The model's own, of the library tokenizers: WordPiece, Unigram, byte pairs or whole words.
        Models of sentence-transformers have theirs: None.
    texts : object
        As many as stand for what the model will read, in any form that `prune` takes. All of them
        are read, and none is cut.
    keep : iterable of str
        Tokens that stay besides, as the tokenizer spells them.
    progress : bool
        Show a progress bar.

    Returns
    -------
    TrimmedModel
        With ``model``, ``tokenizer``, ``report`` and ``save(directory)``.

    Raises
    ------
    DataError
        If there are no texts, `keep` names what is no token, or the tokenizer has more tokens than
        the model.
    SettingsError
        If there is no tokenizer, or it is of another kind, or not that of a model of
        sentence-transformers.
    ModelError
        If the model reads no tokens, or something of it depends on the vocabulary in its own way.
    """
    given = given_tokenizer(tokenizer)
    if encoder_kind(model) is not None:
        return _trimmed_inside(model, given, texts, keep, progress)
    model = cast(PreTrainedModel, model)
    check_model(model)
    if given is None:
        raise SettingsError(
            "`tokenizer` is None, and which tokens are left out is told from the tokenizer. Pass "
            "the model's own, AutoTokenizer.from_pretrained(...), or its folder."
        )
    vocabulary, size = Vocabulary(given), find_table(model).num_rows
    largest = max(vocabulary.ids.values())
    if largest >= size:
        raise DataError(
            f"The tokenizer has ids up to {largest}, and the model {size} embeddings. Load both "
            "from the same checkpoint; for added tokens call model.resize_token_embeddings first."
        )
    wanted = {*_named(keep, vocabulary), *(at for at in ids_in_configs(model) if at < size)}
    used = _Used(texts, given, progress=flag("progress", progress))
    kept = vocabulary.closed({*used.tokens, *wanted})
    new = {at: number for number, at in enumerate(kept)}
    trimmed = keep_rows(model, new)
    report = TrimmingReport(
        num_texts=used.num_texts,
        num_tokens=used.num_tokens,
        vocabulary_before=size,
        vocabulary=len(kept),
        parameters_before=num_parameters(model),
        parameters=num_parameters(trimmed),
        unseen=used.unseen(set(vocabulary.closed(used.of_most | wanted))),
    )
    source = model.name_or_path or None
    pruned, plan = own_account(model) or (None, None)
    if pruned is not None:
        pruned = replace(pruned, trimmings=[*pruned.trimmings, (len(pruned.finishes), report)])
    return TrimmedModel(trimmed, vocabulary.cut(new), report, kept, source, pruned, plan)


def _trimmed_inside(
    whole: nn.Module,
    given: PreTrainedTokenizerBase | None,
    texts: Any,
    keep: Iterable[str],
    progress: bool,
) -> TrimmedModel:
    """Of a model of sentence-transformers."""
    inner = transformer_of(whole)
    check_own(whole, given)
    found = trim_vocabulary(
        inner,
        tokenizer_of(whole),
        texts,
        keep=[*_names_in(keep), *tokens_besides(whole)],
        progress=progress,
    )
    new = {at: number for number, at in enumerate(found.kept)}
    made = with_trimmed(whole, found.model, found.tokenizer, new)
    return replace(found, model=cast(PreTrainedModel, made))


class _Used:
    """The tokens of texts, and those of nine in ten of them."""

    def __init__(self, texts: Any, tokenizer: PreTrainedTokenizerBase, *, progress: bool) -> None:
        self.of_most: set[int] = set()
        self._held_out: Counter[int] = Counter()
        self.num_texts = self.num_tokens = 0
        for ids in progress_bar(
            _ids_of(texts, tokenizer), shown=progress, desc="read texts", unit="text"
        ):
            self.num_texts += 1
            self.num_tokens += len(ids)
            (self.of_most if self.num_texts % HELD_OUT else self._held_out).update(ids)
        if not self.num_tokens:
            raise DataError(
                "There is no token in the texts, so that nothing would be left of the vocabulary. "
                "Pass texts of the kind that the model is to read."
            )

    @property
    def tokens(self) -> set[int]:
        """Of all texts."""
        return self.of_most | set(self._held_out)

    def unseen(self, kept: set[int]) -> float | None:
        """Of the tokens of the tenth that is held out, the fraction outside of `kept`."""
        total = self._held_out.total()
        outside = sum(count for at, count in self._held_out.items() if at not in kept)
        return outside / total if total else None


def _ids_of(texts: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """The ids of each example, in a fixed order of their own."""
    examples = iterate_examples(texts, seed=0)
    while some := list(islice(examples, _AT_ONCE)):
        rows = [one for one in some if isinstance(one, dict)]
        rows += tokenized(
            [(t, None) for t in some if not isinstance(t, dict)], tokenizer, MAX_LENGTH
        )
        for row in rows:
            names = [name for name in row if name.endswith("input_ids") or name == "target_ids"]
            yield [at for name in names for at in row[name].tolist()]


def _names_in(keep: Iterable[str]) -> list[str]:
    """Tokens to keep; one by itself is no sequence of characters."""
    return [keep] if isinstance(keep, str) else list(keep)


def _named(keep: Iterable[str], vocabulary: Vocabulary) -> set[int]:
    names = _names_in(keep)
    unknown = [name for name in names if name not in vocabulary.ids]
    if unknown:
        raise DataError(
            f"keep={unknown[0]!r} is no token of the tokenizer. Name tokens as it spells them: "
            f"{', '.join(map(repr, islice(vocabulary.ids, 5)))}, for instance."
        )
    return {vocabulary.ids[name] for name in names}
