"""What all streamed statistics share: checked batches, merging, and saving of the state."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from stat_prune.linalg.checks import check_count, check_finite, check_matrix

Stream = TypeVar("Stream", bound="RowStream")


class RowStream:
    """A statistic of the rows of a matrix that arrive in batches.

    Subclasses name their tensors in `_tensors` and what must agree for a merge in `_settings`,
    and say how rows are added and counted (`_add`), how two statistics are combined (`_combine`)
    and how the tensors begin (`_allocate`).
    """

    _settings: tuple[str, ...] = ("num_channels",)
    _tensors: tuple[str, ...] = ()

    def __init__(self, num_channels: int, *, device: torch.device | str | None = None) -> None:
        self.num_channels = check_count(num_channels, "num_channels")
        self._seen = 0
        self._device: torch.device | None = None
        if device is not None:
            self._place(torch.device(device))

    def _place(self, device: torch.device) -> None:
        self._device = torch.empty(0, device=device).device
        self._allocate(self._device)

    def _allocate(self, device: torch.device) -> None:
        raise NotImplementedError

    def _add(self, rows: Tensor) -> None:
        raise NotImplementedError

    def _combine(self: Stream, other: Stream) -> None:
        raise NotImplementedError

    def _settle(self) -> None:
        """Bring the tensors up to date; a statistic that buffers rows overrides this."""
        if self._device is None:
            self._place(torch.device("cpu"))

    @property
    def count(self) -> int:
        """Number of rows seen."""
        return self._seen

    @property
    def device(self) -> torch.device | None:
        """Where the statistics live; None until the constructor or a batch has said."""
        return self._device

    def update(self: Stream, batch: Tensor) -> Stream:
        """Add the rows of a batch.

        Parameters
        ----------
        batch : Tensor of shape (n, m)
            Any floating-point dtype; n may be 0. It is not modified, and moved to the device of
            the statistics if it is elsewhere.

        Returns
        -------
        RowStream
            Itself.

        Raises
        ------
        ValueError
            If the shape is wrong, or (`NonFiniteError`) an entry is not finite; nothing of the
            batch is added then.
        TypeError
            If `batch` is not a floating-point tensor.
        """
        check_matrix(batch, "batch")
        if batch.shape[1] != self.num_channels:
            raise ValueError(
                f"`batch` must have {self.num_channels} columns, got shape {tuple(batch.shape)}."
            )
        check_finite(batch, "batch")
        if self._device is None:
            self._place(batch.device)
        self._add(batch.detach())
        return self

    def merge(self: Stream, other: Stream) -> Stream:
        """Add the rows that `other` has seen, as if they had come here; `other` is unchanged.

        Parameters
        ----------
        other : same class, same settings
            May be on another device.

        Returns
        -------
        RowStream
            Itself.

        Raises
        ------
        TypeError
            If `other` is a statistic of another kind.
        ValueError
            If it has other settings (channels, rows of the sketch, seed).
        """
        if type(other) is not type(self):
            raise TypeError(f"cannot merge a {type(other).__name__} into a {type(self).__name__}.")
        for name in self._settings:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(
                    f"cannot merge a {type(self).__name__} with {name}={theirs} "
                    f"into one with {name}={mine}."
                )
        other._settle()
        if self._device is None and other._device is not None:
            self._place(other._device)
        self._settle()
        self._combine(other)
        self._seen += other._seen
        return self

    def __add__(self: Stream, other: Stream) -> Stream:
        return self.from_state_dict(self.state_dict()).merge(other)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state: settings and count as plain values, statistics as tensors."""
        self._settle()
        state: dict[str, Any] = {name: getattr(self, name) for name in self._settings}
        state["count"] = self._seen
        return state | {name: getattr(self, f"_{name}").clone() for name in self._tensors}

    @classmethod
    def from_state_dict(cls: type[Stream], state: dict[str, Any]) -> Stream:
        """Rebuild from what `state_dict()` returned; its tensors are taken over, not copied.

        Raises
        ------
        ValueError
            If an entry is missing.
        """
        missing = {*cls._settings, *cls._tensors, "count"} - state.keys()
        if missing:
            raise ValueError(
                f"the state of a {cls.__name__} lacks {', '.join(sorted(missing))}; "
                "pass what its state_dict() returned."
            )
        stream = cls(**{name: state[name] for name in cls._settings})
        for name in cls._tensors:
            setattr(stream, f"_{name}", state[name])
        stream._seen = state["count"]
        stream._device = state[cls._tensors[0]].device
        return stream
