"""Products of half precision on a CPU without instructions for them: the same values, sooner."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import tiny_bert, tiny_llama
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from stat_prune.model.running import evaluating
from stat_prune.model.tensors import half_products
from stat_prune.model.tensors.half_products import copied_bytes, fast_half_products

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture
def without_instructions(monkeypatch):
    """As on a CPU that multiplies neither of the two at full speed."""
    monkeypatch.setattr(half_products, "is_native", lambda dtype: dtype not in HALF)


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64)).eval()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama, gpt2])
def test_a_model_is_as_near_to_float32_as_it_was(build, dtype, without_instructions):
    model = build().to(dtype)
    ids = torch.randint(3, 40, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = copy.deepcopy(model).float()(input_ids=ids)[0]
        native = model(input_ids=ids)[0]
    with evaluating(model):
        found = model(input_ids=ids)[0]
    assert found.dtype == native.dtype == dtype
    assert (found.float() - expected).norm() <= 1.2 * (native.float() - expected).norm()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_products_are_those_of_float32_rounded_once(dtype, without_instructions, monkeypatch):
    monkeypatch.setattr(half_products, "_PIECE", 100)  # a few rows of the weight at a time
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in [(40, 20), (13, 20), (13,)]
    )
    with fast_half_products([dtype]):
        with_bias, without = F.linear(rows, weight, bias), F.linear(rows, weight)
        product = rows @ weight.T
        added = torch.addmm(bias, rows, weight.T)  # as in GPT-2
    wide = rows.float() @ weight.float().T
    torch.testing.assert_close(with_bias, (wide + bias.float()).to(dtype))
    torch.testing.assert_close(without, wide.to(dtype))
    torch.testing.assert_close(product, wide.to(dtype))
    torch.testing.assert_close(added, (wide + bias.float()).to(dtype))


def test_few_rows_other_dtypes_and_timed_models_are_left_alone(without_instructions):
    calls = []

    class Spy(torch.Tensor):
        """Tells what torch is asked for."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func in (F.linear, torch.addmm):
                calls.append(args[func is torch.addmm].dtype)
            return super().__torch_function__(func, types, args, kwargs or {})

    weight = torch.randn(8, 4).bfloat16()
    many, few = (torch.randn(n, 4).bfloat16().as_subclass(Spy) for n in (32, 31))
    model = tiny_bert().bfloat16()
    with evaluating(model):
        F.linear(many, weight)
        torch.addmm(weight[:, 0], many, weight.T)
        F.linear(few, weight)
        F.linear(many.float(), weight.float())
    with evaluating(model, timed=True):
        F.linear(many, weight)
    half, single = torch.bfloat16, torch.float32
    assert calls == [single, single, half, single, half]


def test_where_there_are_instructions_nothing_changes(monkeypatch):
    monkeypatch.setattr(half_products, "is_native", lambda _dtype: True)
    rows, weight = torch.randn(64, 8).bfloat16(), torch.randn(8, 8).bfloat16()
    expected = F.linear(rows, weight)
    with fast_half_products(HALF):
        assert torch.equal(F.linear(rows, weight), expected)
    assert copied_bytes(torch.bfloat16, 10**9) == 0
