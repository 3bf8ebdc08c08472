"""One budget shared out between blocks, token embeddings and a language model's head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from transformers import PreTrainedModel

from stat_prune.choosing.budget.choice import check_reachable
from stat_prune.choosing.budget.costs import Budget, Share, full_cost
from stat_prune.errors import TargetError
from stat_prune.model.dispatched import own_parameters, shared_copy
from stat_prune.model.factored_table import FactoredTable
from stat_prune.pipeline.run import Run
from stat_prune.settings.targets import Bytes, MACs, Target
from stat_prune.surgery.embeddings import factor, factor_own_head
from stat_prune.surgery.token_tables import Table, find_head, find_table, own_head

#: Parts of the embeddings, and of a head of its own, that are tried, from the largest on.
FRACTIONS = (1.0, 0.75, 0.5, 0.4, 0.33, 0.25, 0.15, 0.08)

#: Most that are tried at once: by these, and by what leaves the blocks whole.
NUM_SHARES = len(FRACTIONS) + 1

#: Tokens that so many texts have more than once, which alone may have exact rows: by the root of
#: all that are read, as Heaps' law has it. Of texts of STS-B, SQuAD and stories it was 2 to 15.
READ_AGAIN = 8.0


class Shares:
    """The ways to share out a joint budget that can be reached.

    Parameters
    ----------
    run : Run
    budget : Budget
    tables : {"decomposed", "factors", "foreseen"}
        What they are priced as: by the rank and exact rows that leave least, or without being
        decomposed, as of factors alone or as `foreseen_shape` has it.

    Raises
    ------
    TargetError
        If there is none.
    ModelError
        If there is nothing but the blocks that could share the budget.
    """

    def __init__(
        self,
        run: Run,
        budget: Budget,
        *,
        tables: Literal["decomposed", "factors", "foreseen"] = "decomposed",
    ) -> None:
        self._run, self._budget, target = run, budget, budget.target
        self._tables = tables
        self._of_macs = isinstance(target, MACs)
        self._table, self._head = joint_tables(run.model, target)
        blocks = [*run.blocks, *run.untouched]
        self._in_blocks = sum(full_cost(block, budget.cost) for block in blocks)
        parts = [one for one in (self._table, self._head) if one is not None]
        self._whole = self._in_blocks + sum(self._cost(one, one.parameters) for one in parts)
        self._allowed = self._allowance(parts)
        self.first = [*filter(None, (self._share(one, one) for one in self._fractions()))]
        if not self.first:
            raise TargetError(
                f"{target!r} leaves {max(self._allowed, 0):,.0f} parameters for the blocks and the "
                f"token embeddings of {type(run.model).__name__}, of {self._whole:,.0f} now, "
                "which is less than the fewest heads and neurons take beside the smallest table "
                "that is tried. Ask for more."
                if not self._of_macs
                else f"{target!r} is less than the fewest heads and neurons take beside the "
                f"smallest head of {type(run.model).__name__} that is tried. Ask for more."
            )

    def other_heads(self, share: Share) -> list[Share]:
        """Those with the same embeddings and more or less of a head of its own."""
        if self._head is None or self._table is None:
            return []
        of_table = share.of_embeddings
        found = (self._share(of_table, one) for one in FRACTIONS if one != share.of_head)
        return [one for one in found if one is not None]

    def _fractions(self) -> list[float]:
        """Of table and head, from the largest on; with what leaves the blocks whole."""
        spare = self._allowed - self._in_blocks
        alone = spare / max(self._whole - self._in_blocks, 1)
        return sorted({*FRACTIONS, *([alone] if 0 < alone < 1 else [])}, reverse=True)

    def _cost(self, table: Table, parameters: float) -> float:
        """In what the target limits, of so many numbers of a table or head."""
        if not self._of_macs:
            return parameters
        lengths = self._budget.lengths
        return parameters * lengths.get("decoder_attention_mask", self._budget.seq_length)

    def _spent(self, table: Table, fraction: float) -> float:
        """What is left of a table or head takes."""
        rank, num_exact = self._shape(table, fraction)
        if rank is None:
            return self._cost(table, table.parameters + table.ids(table.num_exact))
        return self._cost(table, table.cost(rank, num_exact) + table.ids(num_exact))

    def _shape(self, table: Table, fraction: float) -> tuple[int | None, int]:
        """Rank and number of exact rows; no rank of a table that stays as it is."""
        run = self._run
        multiple = run.settings.round_to
        if self._tables == "factors":
            return table.rank_for(fraction, multiple), 0
        if self._tables == "foreseen":
            return foreseen_shape(run, table, fraction)
        found = run.decomposed_table if table is self._table else run.decomposed_head
        shape = found.shape(table, fraction, multiple)
        return (None, 0) if shape is None else (shape.rank, len(shape.exact))

    def _allowance(self, parts: Sequence[Table]) -> float:
        """What may be spent on blocks, table and head together."""
        target, model = self._budget.target, self._run.model
        fraction: float = target.fractions()["all"]
        if not isinstance(target, Bytes):
            return fraction * self._whole
        # Others may be of another dtype; these are of the model's.
        size = model.dtype.itemsize
        whole = sum(one.numel() * one.element_size() for one in own_parameters(model))
        return (fraction * whole - (whole - size * self._whole)) / size

    def _share(self, of_table: float, of_head: float) -> Share | None:
        """What is left for blocks beside so much of the others; None where it is too little."""
        run, joint = self._run, self._budget
        asked = [(self._table, of_table), (self._head, of_head)]
        try:
            spent = sum(
                self._spent(table, fraction) for table, fraction in asked if table is not None
            )
            left = (self._allowed - spent) / self._in_blocks
            if left <= 0:
                return None
            share = Share(
                min(left, 1.0),
                embeddings=None if self._table is None else float(of_table),
                lm_head=None if self._head is None else float(of_head),
            )
            check_reachable(
                run.blocks,
                run.untouched,
                replace(joint, share=share),
                round_to=run.settings.round_to,
                remove=run.settings.removes_blocks,
            )
        except TargetError:
            return None
        return share


def joint_tables(model: PreTrainedModel, target: Target) -> tuple[Table | None, Table | None]:
    """Embeddings and head that a joint target counts with the blocks.

    Raises
    ------
    ModelError
        If there is nothing but the blocks that could share the budget.
    """
    own, of_macs = own_head(model) is not None, isinstance(target, MACs)
    head = find_head(model) if own else None
    table = None if of_macs and own else find_table(model)
    if table is not None and of_macs and not table.tied_heads:
        find_head(model)  # says what is missing
    return table, head


def tables_to_factor(model: PreTrainedModel, budget: Budget) -> list[Table]:
    """Embeddings and head, where a budget may have them factored."""
    if budget.target.is_joint:
        return [one for one in joint_tables(model, budget.target) if one is not None]
    tables = [find_table(model)] if budget.of_embeddings < 1 else []
    return [*tables, find_head(model)] if budget.of_head < 1 else tables


def even_share(run: Run, budget: Budget) -> Share:
    """That of a joint budget which keeps about the same fraction of everything."""
    fraction = budget.target.fractions()["all"]
    return min(
        Shares(run, budget, tables="foreseen").first,
        key=lambda one: abs(min(one.of_embeddings, one.of_head) - fraction),
    )


def foreseen_shape(run: Run, table: Table, fraction: float) -> tuple[int | None, int]:
    """Rank and number of exact rows of a table that is not decomposed; no rank where it stays.

    Which pair leaves least is not known; the largest rank, and as many exact rows as there is room
    for beside it, take about as much.
    """
    rank = table.rank_for(fraction, run.settings.round_to)
    if rank is None:
        return None, 0
    read_again = int(READ_AGAIN * run.calibration.num_tokens**0.5)
    return rank, table.exact_beside(rank, fraction, min(read_again, table.num_rows - 1))


def spared_by_factors(run: Run, budget: Budget) -> tuple[int, int]:
    """Parameters and bytes of embeddings and head that a budget does without, as foreseen."""
    parameters = bytes_ = 0
    for find, fraction in ((find_table, budget.of_embeddings), (find_head, budget.of_head)):
        if fraction < 1:
            table = find(run.model)
            rank, num_exact = foreseen_shape(run, table, fraction)
            if rank is not None:
                spared = table.parameters - table.cost(rank, num_exact)
                ids = table.ids(table.num_exact) - table.ids(num_exact)
                parameters += spared
                bytes_ += round((spared + ids) * table.itemsize)
    return parameters, bytes_


def with_table(run: Run, budget: Budget) -> PreTrainedModel:
    """The dense model, or a copy whose embeddings or head are factored as a budget says.

    The last one is remembered, as a share is corrected, judged and cut in turn: to be copied, and
    not changed.
    """
    if not budget.factors:
        return run.model
    asked = budget.of_embeddings, budget.of_head
    if asked not in run.factored:
        copied = shared_copy(run.model)
        factor_as(run, budget, copied)
        run.factored = {asked: copied}
    return run.factored[asked]


def factor_as(
    run: Run, budget: Budget, model: PreTrainedModel
) -> tuple[FactoredTable | None, FactoredTable | None]:
    """Factor embeddings and head of a model, in place, as a budget says.

    Returns
    -------
    FactoredTable or None, twice
        Of the embeddings and of the head; None of what stays.
    """
    multiple = run.settings.round_to
    table = head = None
    if budget.of_embeddings < 1:
        table = factor(model, run.decomposed_table, budget.of_embeddings, multiple)
    if budget.of_head < 1:
        head = factor_own_head(model, run.decomposed_head, budget.of_head, multiple)
    return table, head
