"""What a model reads beside what the data says: a decoder's inputs, positions of signals."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.data.token_rows import without_targets
from stat_prune.errors import CalibrationWarning, DataError
from stat_prune.examples.input_rows import TokenRow
from stat_prune.families import stacks_of


class Completion:
    """Makes of a row what the stacks of a model read.

    Images and sounds get a mask over the positions that the model makes of them. A decoder behind
    an encoder reads, of what the example has, the first of ``decoder_input_ids``; its ``labels``
    behind the token that decoders start with; and the text that the encoder reads, shifted in the
    same way, as in the pre-training of BART by denoising (Lewis et al. 2020). The last is a
    stand-in for what the model writes: one `CalibrationWarning` says so.

    Parameters
    ----------
    model : PreTrainedModel
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._stacks = [stack for stack, _ in stacks_of(model)]
        self._config = model.config
        self._name = type(model).__name__
        self._warned = False

    def __call__(self, row: TokenRow) -> TokenRow:
        """The completed row.

        Raises
        ------
        DataError
            If it lacks what a stack reads.
        """
        completed = without_targets(row)
        for stack in self._stacks:
            signal = stack.signal
            if signal is not None:
                self._need(signal.name, row)
                count = signal.positions(self._config, row[signal.name].shape)
                completed[stack.mask] = torch.ones(count, dtype=torch.int64)
            elif stack.mask != "decoder_attention_mask":
                self._need("input_ids", row)
            elif "decoder_input_ids" not in row:
                completed["decoder_input_ids"] = self._decoder_input_ids(row)
                completed[stack.mask] = torch.ones_like(completed["decoder_input_ids"])
        return completed

    def _need(self, wanted: str, row: TokenRow) -> None:
        if wanted not in row:
            raise DataError(
                f"{self._name} reads {wanted!r}, which the calibration dataset lacks: an example "
                f"has {sorted(row)}. Pass examples as the model's tokenizer or processor makes "
                "them."
            )

    def _decoder_input_ids(self, row: TokenRow) -> Tensor:
        start = self._config.decoder_start_token_id
        targets = row.get("target_ids", row.get("input_ids"))
        if targets is None or start is None:
            raise DataError(
                f"The decoder of {self._name} has nothing to read: give each example "
                "'decoder_input_ids' or 'labels', for instance what model.generate(...) writes "
                "for it."
            )
        if "target_ids" not in row:
            self._warn()
        return torch.cat([torch.tensor([start]), targets[: self._num_targets(targets) - 1]])

    def _num_targets(self, targets: Tensor) -> int:
        """Tokens to write: targets may be padded with the id of padding instead of -100."""
        padding, ends = self._config.pad_token_id, self._config.eos_token_id
        real = (targets != padding).nonzero()
        count = int(real[-1]) + 1 if len(real) else 0
        if padding in (ends if isinstance(ends, list) else [ends]):
            count = min(count + 1, len(targets))  # the first of them ends the text
        return max(count, 1)

    def _warn(self) -> None:
        if not self._warned:
            warnings.warn(
                f"The examples say nothing of what the decoder of {self._name} writes, so it is "
                "calibrated on the encoder's text. Give each 'labels' or 'decoder_input_ids', for "
                "instance what model.generate(...) makes of it.",
                CalibrationWarning,
                stacklevel=2,
            )
            self._warned = True
