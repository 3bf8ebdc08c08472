"""Families that are not registered: the same promises, or a refusal that says why."""

from __future__ import annotations

import contextlib
import copy
import warnings

import pytest
import torch
import transformers
from families import TEXT_FAMILIES, Family, output
from matrix import DOCS, table_of_unlisted

# The same tests, once for each of `ROWS`.
from test_data import (
    batches,  # noqa: F401
    halved,  # noqa: F401
    test_padding_does_not_change_the_result,  # noqa: F401
)
from test_identity import (
    half_of_what_can_leave,
    test_keeping_everything_is_the_identity,  # noqa: F401
    test_linearly_dependent_heads_and_neurons_leave_without_loss,  # noqa: F401
)
from test_models import (
    assert_untouched,
    test_generating_with_the_cache_gives_what_a_full_forward_gives,  # noqa: F401
)
from test_reload import (
    assert_plain,
    test_every_head_class_loads_to_the_bit_in_both_ways,  # noqa: F401
)
from test_report import test_reported_macs_are_those_that_torch_counts  # noqa: F401
from unlisted import FURTHER, NEURONS, REFUSED, WHOLE

import stat_prune
from stat_prune import MACs, Parameters
from stat_prune.errors import InferredArchitectureWarning, TargetError, UnsupportedArchitectureError
from stat_prune.families import architecture_of, find_blocks, registry
from stat_prune.inferring import describe

ROWS = [*WHOLE, *NEURONS]

pytestmark = pytest.mark.filterwarnings("ignore::stat_prune.errors.InferredArchitectureWarning")


@pytest.fixture
def nothing_known(monkeypatch):
    """As in a new process: nothing was inferred yet."""
    monkeypatch.setattr(registry, "_INFERRED", {})


@pytest.fixture(autouse=True)
def known(request):
    """Described, for tests that look at blocks before anything is pruned."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    row = parameters.get("row", parameters.get("family"))
    if row and "nothing_known" not in request.fixturenames:
        with contextlib.suppress(UnsupportedArchitectureError):
            describe(row.build())


def of(rows: list[Family]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=lambda family: family.label)


@of(NEURONS)
def test_heads_that_no_proof_covers_stay_and_the_error_says_why(row: Family, prune):
    fixed = [block.kind == "heads" for block in find_blocks(row.build()) if block.fixed]
    assert fixed and all(fixed)
    with pytest.raises(TargetError, match="stay: .*where units"):
        prune(row.build(), Parameters({"heads": 0.5}))


def test_the_documentation_says_what_was_found_in_every_family_that_was_tried():
    assert table_of_unlisted() in DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("row", "reason"), REFUSED, ids=lambda value: getattr(value, "label", None)
)
def test_what_cannot_be_proven_is_refused_with_the_reason(row: Family, reason, prune):
    model = row.build()
    before = copy.deepcopy(model)
    with pytest.raises(UnsupportedArchitectureError, match=reason) as caught:
        prune(model, MACs(0.5))
    assert "register_architecture" in str(caught.value)
    assert_untouched(model, before)


@of([*NEURONS, *WHOLE[::3]])
def test_half_precision_proves_no_more_and_no_less(row: Family):
    single = stat_prune.infer_architecture(row.build())
    for dtype in ("bfloat16", "float16"):
        model = row.build(dtype=dtype)
        before = copy.deepcopy(model)
        half = stat_prune.infer_architecture(model)
        assert_untouched(model, before)
        found = zip((single, *single.other_stacks), (half, *half.other_stacks), strict=True)
        for one, other in found:
            assert one.feed_forwards == other.feed_forwards
            assert [a.counts for a in one.attentions] == [a.counts for a in other.attentions]
            assert [bool(a.fixed) for a in one.attentions] == [
                bool(a.fixed) for a in other.attentions
            ]


@of(ROWS)
def test_the_given_model_is_untouched_and_one_warning_says_what_was_found(
    row: Family, prune, nothing_known
):
    model = row.build().train()
    before = copy.deepcopy(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        describe(model)
        prune(model, half_of_what_can_leave(model))
    (said,) = [str(w.message) for w in caught if w.category is InferredArchitectureWarning]
    consumers = {b.consumer.partition(".1.")[2] for b in find_blocks(model) if not b.fixed} - {""}
    assert all(consumer in said for consumer in consumers)
    assert_untouched(model, before)


@of(ROWS)
def test_a_pruned_model_is_inferred_again_where_nothing_is_known(
    row: Family, prune, inputs, tmp_path, nothing_known
):
    first = prune(row.build(row.heads[-1]), MACs(0.7))
    first.save(tmp_path / "out")
    registry._INFERRED.clear()
    loaded = stat_prune.load(tmp_path / "out")
    describe(first.model)
    describe(loaded)
    before, after = ({b.name: b for b in find_blocks(one)} for one in (first.model, loaded))
    for name, block in before.items():
        assert after[name].num_units == block.num_units
        assert after[name].producers == block.producers
    second = prune(loaded, MACs(0.8))
    assert second.report.after.block_macs <= 0.8 * first.report.after.block_macs
    assert torch.isfinite(output(second.model, inputs)).all()


@of(ROWS)
def test_uniform_results_open_in_plain_transformers_where_the_config_can_say_them(
    row: Family, prune, inputs, tmp_path
):
    model = row.build(row.heads[-1])
    architecture = architecture_of(model)
    stacks = (architecture, *architecture.other_stacks)
    kinds = []
    if all(one.config_heads for stack in stacks for one in stack.attentions):
        kinds.append("heads")
    if all(one.config_neurons for stack in stacks for one in stack.feed_forwards):
        kinds.append("neurons")
    if not kinds:
        pytest.skip(f"the config of {row.label} can say neither heads nor neurons")
    result = prune(model, Parameters(dict.fromkeys(kinds, 0.6)), uniform=True)
    result.save(tmp_path / "out")
    assert_plain(tmp_path / "out")
    stock = getattr(transformers, row.class_name(row.heads[-1])).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(output(stock, inputs), output(result.model, inputs))


def test_rows_of_a_report_are_in_the_order_of_the_blocks_where_some_heads_stay(prune):
    (umt5,) = [family for family in FURTHER if family.name == "UMT5"]
    model = umt5.build()
    result = prune(model, MACs(0.9))
    assert [row.name for row in result.report.blocks] == [b.name for b in find_blocks(model)]
    cross = [row for row in result.report.blocks if row.name.endswith("cross_heads")]
    assert len(cross) == 2 and all(row.name in result.plan for row in cross)


def described(model) -> dict[str, tuple]:
    """The producers, units, groups and so on of each consumer."""
    return {
        block.consumer: (
            block.name, block.producers, block.num_units, block.num_groups, block.unit_size,
            block.key_mask,
        )
        for block in find_blocks(model)
    }  # fmt: skip


#: Registered families whose description the rules and proofs find by themselves.
FOUND = [
    *("Bert", "Roberta", "Electra", "DistilBert", "Llama", "Mistral", "Qwen2", "Qwen3", "GPT2"),
    *("GPTNeo", "GPTNeoX-parallel", "OPT-norms before", "Phi3", "Gemma2", "Olmo2", "Bart"),
    *("Falcon-grouped", "DebertaV2-shared keys", "ModernBert", "CLIPText"),
]


@of([family for family in TEXT_FAMILIES if family.label in FOUND])
def test_what_is_inferred_of_a_registered_family_is_its_description(row: Family):
    model = row.build(row.heads[1])
    inferred, registered = stat_prune.infer_architecture(model), architecture_of(model)
    expected = described(model)
    with registry.describing(model, inferred):
        assert described(model) == expected
    assert inferred.causal == registered.causal
    assert inferred.positions_after_padding == registered.positions_after_padding


@pytest.mark.parametrize("label", ["MPNet", "T5", "Falcon-ALiBi", "Bloom"])
def test_heads_with_a_bias_made_for_all_of_them_are_not_believed_to_leave(label):
    (family,) = [family for family in TEXT_FAMILIES if family.label == label]
    inferred = stat_prune.infer_architecture(family.build())
    for stack in (inferred, *inferred.other_stacks):
        for attention in stack.attentions:
            assert attention.cross or "change places" in attention.fixed
