"""The stage that shares a budget with dimensions inside heads, where that is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from stat_prune.choosing.budget.costs import Budget
from stat_prune.choosing.budget.exploring import is_better
from stat_prune.errors import ModelError, SettingsError, TargetError
from stat_prune.families import find_blocks, stacks_of
from stat_prune.machine.distributed import num_processes
from stat_prune.machine.gathered_warnings import gathered_numerical_warnings
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.sensitivity import distances_by_sequence, outputs_of
from stat_prune.model.dispatched import is_dispatched
from stat_prune.model.modeling_stat_prune import computes_by_function
from stat_prune.pipeline.budgeting.sharing import with_table
from stat_prune.pipeline.inside_heads.dims_search import DimsSearch
from stat_prune.pipeline.run import Run
from stat_prune.pipeline.solving_again.second_pass import SURE
from stat_prune.pipeline.sources import Decided
from stat_prune.reporting.search_report import DimensionsOfHeads
from stat_prune.settings.targets import QUERY_KEY, VALUE, Target
from stat_prune.surgery.narrowing import NarrowedHeads


def check_narrowing(run: Run, targets: Sequence[Target]) -> None:
    """Refuse what heads cannot be narrowed for.

    Raises
    ------
    ModelError, SettingsError, TargetError
    """
    name = type(run.model).__name__
    if not dimensions_that_leave(run.model):
        raise ModelError(
            "head_dims=True is for models with BERT's attention (BERT, RoBERTa, XLM-RoBERTa, "
            "CamemBERT, ELECTRA, DistilBERT, ALBERT, ViT, DINOv2, CLIP; GPT-2, OPT; BART, T5, "
            "Whisper) or Llama's (Llama, Mistral, Qwen2, Qwen3, Gemma 3), in the version of "
            f"transformers that is installed, and {name} has neither. Leave head_dims out."
        )
    check_computed_in_one_place(run, "head_dims=True")
    for target in targets:
        if target.bounds_error or "all" not in target.fractions():
            raise TargetError(
                "head_dims=True takes one fraction of MACs, parameters, bytes or time, got "
                f"{target!r}. Use MACs(0.5), or leave head_dims out."
            )
    if not any(block.kind == "heads" for block in run.blocks):
        raise SettingsError(
            f"head_dims=True has no heads to narrow: ignore={run.settings.ignored!r} leaves all of "
            f"{name} alone. Leave one of the two out."
        )


def dimensions_that_leave(model: PreTrainedModel) -> list[str]:
    """Which dimensions can leave the heads of a model: names as in `DIMENSIONS` of targets."""
    base = model.base_model
    modules = [
        base.get_submodule(p) for b in find_blocks(model) if b.kind == "heads" for p in b.attributes
    ]
    if getattr(model.config, "is_decoder", False) or not all(map(computes_by_function, modules)):
        return []
    attentions = [one for stack, _ in stacks_of(model) for one in stack.attentions]
    able = {QUERY_KEY: ("all",), VALUE: ("all", "values")}
    return [kind for kind, own in able.items() if all(one.own_dims in own for one in attentions)]


def check_computed_in_one_place(run: Run, asked: str) -> None:
    """Refuse dispatched models, and several processes; `asked` is what was asked for.

    Raises
    ------
    ModelError
    """
    if is_dispatched(run.model) or num_processes() > 1:
        raise ModelError(
            f"{asked} takes a model without device_map and one process; "
            f"{type(run.model).__name__} is dispatched, or there are {num_processes()} processes. "
            "Leave dimensions inside heads out."
        )


def with_head_dims(
    run: Run,
    budget: Budget,
    whole: Decided,
    search: DimsSearch,
    fold: Callable[[Sequence[int]], Decided],
    solve_again: Callable[[Decided], Decided],
) -> Decided:
    """The best way to share a budget with dimensions inside heads, or `whole` heads.

    Narrower heads unless sequences held out speak clearly against them: a few, with one value each,
    scatter by more than what there is to choose between, and those of the search, which both
    corrections were solved on, say nothing of others.

    Parameters
    ----------
    run : Run
    budget : Budget
        Of MACs, parameters or a time.
    whole : Decided
        For the budget, heads and neurons alone, with all that is solved again.
    search : DimsSearch
    fold : callable
        From the candidate of each block to their plans.
    solve_again : callable
        The correction on the pruned model, of narrower heads as of others.
    """
    found = {f"{budget.fraction:.3g}": whole}
    with (
        run.stage("search dimensions of heads"),
        gathered_numerical_warnings("folding dimensions of heads"),
    ):
        spread = search.search(budget)
    if spread is not None:
        name = f"{spread.fraction:.3g}"
        # Its heads and neurons are spread by what the same search has found.
        folded = replace(fold(spread.choice), narrowed=spread.narrowed, search=whole.search)
        found[name] = solve_again(folded)
    with run.stage("compare dimensions of heads"):
        cut_from = with_table(run, budget)
        copies = [one.solution.cut_copy(cut_from) for one in found.values()]
        judges = run.calibration.held_out or run.calibration
        objective = objective_named(run.settings.objective)
        outputs = outputs_of((run.model, *copies), judges.batches, objective)
        measured = distances_by_sequence(outputs, objective, [*found])
    clearly = len(found) > 1 and is_better(*measured.values(), errors=SURE)
    taken = [*found][0 if clearly else -1]
    best = found[taken]
    report = account_of(
        best.narrowed,
        distances={name: float(far.mean()) for name, far in measured.items()},
        sequences=judges.num_samples,
        taken=taken,
        evaluations=0 if spread is None else spread.evaluations,
        passes=0.0 if spread is None else spread.passes,
    )
    return replace(best, head_dims=report)


def account_of(narrowed: Sequence[NarrowedHeads], **known: Any) -> DimensionsOfHeads:
    """What a report says of narrower heads, and of how they were found."""
    lost = {one.block.name: one for one in narrowed if one.layers}
    return DimensionsOfHeads(
        sizes={name: [one.query_key, one.value] for name, one in lost.items()},
        errors={name: [one.score_error, one.output_error] for name, one in lost.items()},
        **known,
    )
