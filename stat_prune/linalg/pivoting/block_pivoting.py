"""Pivoting by groups of columns, on the residual seen through the next layer's weight."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from stat_prune.linalg.checks import check_choice, check_gram, check_group_size, check_weight
from stat_prune.linalg.exceptions import NumericalWarning

_EPS = torch.finfo(torch.float64).eps


@dataclass
class BlockPivoting:
    """An order of groups of columns, and what each length of it leaves.

    Attributes
    ----------
    order : Tensor of shape (g,), int64
        Groups, the one to keep first first.
    residual_curve : Tensor of shape (g + 1,), float64
        ‖(A - A_J T) Wᵀ‖² after keeping the first k groups, k = 0..g: tr(W S_k Wᵀ).
    activation_curve : Tensor of shape (g + 1,), float64
        ‖A - A_J T‖² likewise: tr S_k.
    """

    order: Int64[Tensor, " g"]
    residual_curve: Float64[Tensor, " g+1"]
    activation_curve: Float64[Tensor, " g+1"]


def block_pivoting(
    gram: Tensor,
    weight: Tensor | None,
    group_size: int,
    *,
    criterion: str = "energy",
    direction: str = "forward",
) -> BlockPivoting:
    """Order groups of consecutive columns greedily.

    Forward, the group of largest `criterion` on the Schur complement S is taken and eliminated,
    again and again. Backward, all groups are kept at first and the one whose removal raises
    tr(W S Wᵀ) least leaves, the others making up for it by least squares; the order is the
    reverse of the order of leaving.

    Parameters
    ----------
    gram : Tensor of shape (m, m), float64
        G = AᵀA.
    weight : Tensor of shape (d, m) or None
        W, through which the residual is seen; None for the identity.
    group_size : int
        Columns a group; divides m.
    criterion : {"energy", "gain"}
        What a forward step maximises: "energy", tr(W_b S_bb W_bᵀ), what the group itself sends
        through W; or "gain", tr(W S_:b S_bb⁺ S_b: Wᵀ), by how much the error falls when the group
        is kept.
    direction : {"forward", "backward"}
        `criterion` applies to "forward" only.

    Returns
    -------
    BlockPivoting

    Raises
    ------
    TypeError, ValueError
        If a matrix is malformed or not finite, or `group_size` does not divide m.

    Warns
    -----
    NumericalWarning
        If `direction="backward"` needed a ridge to invert the Gram matrix.

    References
    ----------
    Hassibi and Stork (1993), Second order derivatives for network pruning: Optimal Brain Surgeon,
    for the backward step; here it holds exactly, since the error is quadratic.

    Examples
    --------
    Two groups of two columns; the second is larger:

    >>> import torch
    >>> from stat_prune.linalg import block_pivoting
    >>> gram = torch.diag(torch.tensor([1.0, 1.0, 4.0, 4.0], dtype=torch.float64))
    >>> found = block_pivoting(gram, None, 2)
    >>> found.order, found.activation_curve
    (tensor([1, 0]), tensor([10.,  2.,  0.], dtype=torch.float64))
    """
    check_gram(gram)
    m = len(gram)
    groups = check_group_size(group_size, m)
    check_choice(criterion, "criterion", ("energy", "gain"))
    check_choice(direction, "direction", ("forward", "backward"))
    if weight is None:
        importance = torch.eye(m, dtype=torch.float64, device=gram.device)
    else:
        matrix = check_weight(weight, m, gram.device)
        importance = matrix.T @ matrix
    schur = _Schur(gram, importance, groups)
    if direction == "backward":
        return schur.eliminate_all(_backward_order(gram, importance, groups))
    if criterion == "gain":
        schur.track_gain()
    return schur.eliminate_all(None)


class _Schur:
    """The Schur complement S of a Gram matrix, as groups are eliminated from it."""

    def __init__(
        self,
        gram: Float64[Tensor, "m m"],
        importance: Float64[Tensor, "m m"],
        groups: int,
    ) -> None:
        self.matrix = gram.clone()
        self.importance = importance
        self.groups = groups
        # Relative to the block as it was at first: what elimination leaves of a block that others
        # span is rounding error, however large it is against itself.
        blocks = diagonal_blocks(gram, groups)
        self.floor = len(gram) * _EPS * blocks.diagonal(dim1=1, dim2=2).sum(1)
        self.importance_blocks = diagonal_blocks(importance, groups)
        self.seen: Float64[Tensor, "m m"] | None = None

    def track_gain(self) -> None:
        """Keep K S beside S (K = WᵀW), from which every group's gain follows."""
        self.seen = self.importance @ self.matrix

    def scores(self) -> Float64[Tensor, " g"]:
        """The criterion of every group on what is left."""
        blocks = diagonal_blocks(self.matrix, self.groups)
        if self.seen is None:
            return (blocks * self.importance_blocks).sum(dim=(1, 2))
        size = blocks.shape[1]
        rows = self.matrix.view(self.groups, size, -1)
        columns = self.seen.view(-1, self.groups, size).transpose(0, 1)
        reduction = torch.bmm(rows, columns)
        return torch.stack([(self._pinv(b) * reduction[b].T).sum() for b in range(self.groups)])

    def _pinv(self, group: int) -> Float64[Tensor, "b b"]:
        block = diagonal_blocks(self.matrix, self.groups)[group]
        values, vectors = torch.linalg.eigh(block)
        inverse = torch.where(values > self.floor[group], 1.0 / values, torch.zeros_like(values))
        pseudoinverse: Tensor = (vectors * inverse) @ vectors.T
        return pseudoinverse

    def _eliminate(self, group: int) -> None:
        size = len(self.matrix) // self.groups
        columns = slice(group * size, (group + 1) * size)
        rows = self._pinv(group) @ self.matrix[columns]
        if self.seen is not None:
            self.seen.addmm_(self.seen[:, columns].clone(), rows, alpha=-1.0)
        self.matrix.addmm_(self.matrix[:, columns].clone(), rows, alpha=-1.0)
        # In exact arithmetic they vanish.
        self.matrix[columns] = 0.0
        self.matrix[:, columns] = 0.0
        if self.seen is not None:
            self.seen[:, columns] = 0.0

    def eliminate_all(self, order: list[int] | None) -> BlockPivoting:
        """Eliminate every group, in the `order` given or greedily, and record what is left."""
        taken: list[int] = []
        left = torch.ones(self.groups, dtype=torch.bool, device=self.matrix.device)
        residual, activation = [self._through()], [self.matrix.trace()]
        for step in range(self.groups):
            if order is None:
                scores = self.scores()
                group = int(torch.where(left, scores, -torch.inf).argmax())
            else:
                group = order[step]
            self._eliminate(group)
            taken.append(group)
            left[group] = False
            residual.append(self._through())
            activation.append(self.matrix.trace())
        return BlockPivoting(
            torch.tensor(taken, dtype=torch.int64, device=self.matrix.device),
            _monotone(residual),
            _monotone(activation),
        )

    def _through(self) -> Tensor:
        return (self.matrix * self.importance).sum()


def _backward_order(
    gram: Float64[Tensor, "m m"], importance: Float64[Tensor, "m m"], groups: int
) -> list[int]:
    """Groups in the reverse of the order in which they leave."""
    size = len(gram) // groups
    inverse = torch.cholesky_inverse(positive_definite(gram)[1])
    # UᵀU of the corrected weight U = W Tᵀ; while all are kept, U = W.
    energy = importance.clone()
    left = torch.ones(groups, dtype=torch.bool, device=gram.device)
    leaving: list[int] = []
    for _ in range(groups):
        blocks = diagonal_blocks(inverse, groups).clone()
        blocks[~left] = torch.eye(size, dtype=torch.float64, device=gram.device)
        inner = torch.linalg.inv(blocks)
        cost = (inner * diagonal_blocks(energy, groups)).sum(dim=(1, 2))
        group = int(torch.where(left, cost, torch.inf).argmin())
        columns = slice(group * size, (group + 1) * size)
        rows = inner[group] @ inverse[columns]
        # U <- U - U_b (H_bb)^-1 H_b:, applied to both sides of UᵀU; it also zeroes U_b.
        energy -= energy[:, columns].clone() @ rows
        energy -= rows.T @ energy[columns].clone()
        inverse -= inverse[:, columns].clone() @ rows
        left[group] = False
        leaving.append(group)
    return leaving[::-1]


def positive_definite(
    gram: Float64[Tensor, "m m"],
) -> tuple[Float64[Tensor, "m m"], Float64[Tensor, "m m"]]:
    """G, by the smallest ridge in steps of ten that makes Cholesky succeed, and its factor."""
    scale = gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    shifted = gram
    factor, info = torch.linalg.cholesky_ex(gram)
    ridge = 0.0
    relative = len(gram) * _EPS
    while int(info) or float(factor.diagonal().min()) ** 2 <= relative * float(scale):
        ridge = 10.0 * ridge if ridge else 10.0 * relative
        shifted = gram.clone()
        shifted.diagonal().add_(ridge * scale)
        factor, info = torch.linalg.cholesky_ex(shifted)
    if ridge:
        warnings.warn(
            f"The Gram matrix of {len(gram)} columns is rank-deficient: backward elimination "
            f"added a ridge of {ridge:.1e} times its mean diagonal.",
            NumericalWarning,
            stacklevel=4,
        )
    return shifted, factor


def diagonal_blocks(matrix: Float64[Tensor, "m m"], groups: int) -> Float64[Tensor, "g b b"]:
    """The diagonal blocks of a matrix, as a view."""
    size = len(matrix) // groups
    row, column = matrix.stride()
    return matrix.as_strided(
        (groups, size, size), (size * (row + column), row, column), matrix.storage_offset()
    )


def _monotone(values: list[Tensor]) -> Float64[Tensor, " n"]:
    """A non-negative, non-increasing curve: rounding may have left specks below zero."""
    return torch.stack(values).clamp(min=0.0).cummin(0).values
