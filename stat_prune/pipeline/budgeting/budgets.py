"""What a run may spend, resolved once for each target."""

from __future__ import annotations

from collections.abc import Sequence

from stat_prune.choosing.budget.choice import check_reachable
from stat_prune.choosing.budget.costs import Budget
from stat_prune.errors import TargetError
from stat_prune.examples.input_rows import TOKENS_OF
from stat_prune.families import architecture_of
from stat_prune.machine.distributed import num_processes
from stat_prune.measuring.timing import TimedModel, time_model
from stat_prune.model.dispatched import is_dispatched
from stat_prune.pipeline.budgeting.sharing import Shares
from stat_prune.pipeline.run import Run
from stat_prune.settings.targets import Latency, Target
from stat_prune.surgery.token_tables import find_head, find_table


def resolve(run: Run, targets: Sequence[Target]) -> list[Budget]:
    """The budget of each target; a `Latency` has the dense model timed, once for each batch.

    Raises
    ------
    TargetError
        If the method cannot aim at a time, or the model takes no sequence so long.
    """
    known: dict[tuple[int, int], TimedModel] = {}
    return [_resolved(run, target, known) for target in targets]


def check_budget(run: Run, budget: Budget) -> None:
    """Refuse a budget that the smallest blocks and embeddings are beyond.

    Raises
    ------
    TargetError
    """
    settings, target = run.settings, budget.target
    if target.of_embeddings < 1:
        find_table(run.model).rank_for(target.of_embeddings)
    if target.of_head < 1:
        find_head(run.model).rank_for(target.of_head)
    if target.is_joint:
        Shares(run, budget, tables="factors")
        return
    check_reachable(
        run.blocks,
        run.untouched,
        budget,
        round_to=settings.round_to,
        remove=settings.removes_blocks,
        why=f"method={settings.method!r} leaves all heads." if settings.leaves_heads else "",
    )


def _resolved(run: Run, target: Target, known: dict[tuple[int, int], TimedModel]) -> Budget:
    """A target's length is that of every text; images and sounds have their own."""
    calibration = run.calibration
    asked = getattr(target, "seq_length", None)
    lengths = {
        mask: asked if asked and mask in TOKENS_OF else length
        for mask, length in calibration.mean_lengths.items()
    }
    if not isinstance(target, Latency):
        return Budget(target, lengths, calibration.main_mask)
    whole = {mask: round(length) for mask, length in lengths.items()}
    length = whole[calibration.main_mask]
    check_can_be_timed(run, target, length)
    key = (target.batch_size, length)
    if key not in known:
        with run.stage("time dense model"):
            known[key] = time_model(
                run.model,
                run.blocks,
                run.untouched,
                batch_size=target.batch_size,
                seq_length=length,
                round_to=run.settings.round_to,
                remove=run.settings.removes_blocks,
                head_dims=run.settings.head_dims,
            )
    return Budget(target, whole, calibration.main_mask, known[key])


def check_can_be_timed(run: Run, target: Latency, length: int) -> None:
    """Refuse what latency tables are not of: layers of two blocks that read texts, computed once.

    Raises
    ------
    TargetError
    """
    if not run.settings.planner.times:
        raise TargetError(
            f"method={run.settings.method!r} cannot aim at a time, got {target!r}. Use "
            "method='stat', or a fraction of MACs or parameters."
        )
    if num_processes() > 1:
        raise TargetError(
            f"{num_processes()} processes that compute at once cannot time a model, and the "
            f"target is {target!r}. Run a single process, or aim at MACs or parameters."
        )
    if is_dispatched(run.model):
        raise TargetError(f"{target!r} is for models without device_map. Use MACs.")
    blocks = [*run.blocks, *run.untouched]
    if run.masks != ["attention_mask"] or any(block.calls > 1 for block in blocks):
        raise TargetError(
            f"{target!r} is for models with one stack of layers that read text and have "
            f"weights of their own; {type(run.model).__name__} is none. Use MACs."
        )
    limit = architecture_of(run.model).max_positions(run.model.config)
    if limit is not None and length > limit:
        raise TargetError(f"seq_length={length} is beyond the model's {limit} positions.")
