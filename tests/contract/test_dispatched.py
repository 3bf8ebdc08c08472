"""Models under a device_map, or offloaded, are pruned as plain ones and dispatched again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, output
from torch import Tensor
from transformers import PreTrainedModel

import stat_prune
from slicegpt import slicegpt
from stat_prune import Latency, MACs
from stat_prune.errors import ModelError, SettingsError, TargetError
from stat_prune.evaluation import perplexity
from stat_prune.families import find_blocks, stacks_of
from stat_prune.model.dispatched import in_memory, is_offloaded, stored_tensors
from stat_prune.pipeline import loaded_model, stages

accelerate = pytest.importorskip("accelerate")

BY_LABEL = {family.label: family for family in FAMILIES}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def copies_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks bring copies of what rests elsewhere, as to a GPU: here all is on the CPU."""
    place = accelerate.hooks.set_module_tensor_to_device

    def bring(module: Any, name: str, device: Any, value: Any = None, **options: Any) -> None:
        place(module, name, device, value=None if value is None else value.clone(), **options)

    monkeypatch.setattr(accelerate.hooks, "set_module_tensor_to_device", bring)


Placement = Callable[[PreTrainedModel, Path], PreTrainedModel]


def layer_paths(model: PreTrainedModel) -> list[str]:
    names = {module: name for name, module in model.named_modules()}
    return [names[layer] for _, layers in stacks_of(model) for layer in layers]


def device_map(model: PreTrainedModel, layers: list[Any], rest: Any) -> dict[str, Any]:
    """Layer by layer in turn the places in `layers`; all else is at `rest`."""
    paths = layer_paths(model)
    found = {path: layers[index % len(layers)] for index, path in enumerate(paths)}

    def add(module: torch.nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if any(one.startswith(f"{path}.") for one in paths):
                add(child, f"{path}.")
            else:
                found.setdefault(path, rest)

    add(model, "")
    own = [*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]
    return found | {name: rest for name, _ in own}


def with_hooks(model: PreTrainedModel, _folder: Path) -> PreTrainedModel:
    return accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)


def offloaded(model: PreTrainedModel, _folder: Path) -> PreTrainedModel:
    return accelerate.cpu_offload(model, CPU)


def partly_offloaded(model: PreTrainedModel, _folder: Path) -> PreTrainedModel:
    """As on a GPU with half of the layers on the CPU; the device computes in place of the GPU."""
    places = device_map(model, [CPU, "cpu"], CPU)
    return accelerate.dispatch_model(model, places, main_device=CPU)


def partly_on_disk(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.save_pretrained(folder / "dense")
    return type(model).from_pretrained(
        folder / "dense",
        device_map=device_map(model, ["cpu", "disk"], "cpu"),
        offload_folder=str(folder / "offloaded"),
    )


PLACEMENTS = [with_hooks, offloaded, partly_offloaded, partly_on_disk]
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("Llama", "ForCausalLM", {}),
    "Llama-tied": ("Llama", "ForCausalLM", {"tie_word_embeddings": True}),
    "Bert": ("Bert", "ForSequenceClassification", {}),
    "Mixtral": ("Mixtral", "ForCausalLM", {}),
    "T5": ("T5", "ForConditionalGeneration", {}),
    "GPT2": ("GPT2", "ForCausalLM", {}),
}


def build(name: str) -> PreTrainedModel:
    label, head, config = MODELS[name]
    return BY_LABEL[label].build(head, **config)


def held_state(model: PreTrainedModel) -> dict[str, tuple[Any, ...]]:
    """What accelerate has put on each module."""
    return {
        name: (
            vars(module).keys(),
            vars(module).get("forward"),
            vars(module).get("_hf_hook"),
            is_offloaded(module),
            len(module._forward_pre_hooks),
            len(module._forward_hooks),
        )
        for name, module in model.named_modules()
    }


def copied(tensors: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_dispatched_model_becomes_what_the_plain_one_does_and_stays_as_it_was(
    prune, inputs, tmp_path, placement: Placement, name
):
    plain = build(name)
    expected = prune(plain, MACs(0.5))
    model = placement(copy.deepcopy(plain), tmp_path)
    before, held = copied(stored_tensors(model)), held_state(model)
    places = copy.copy(getattr(model, "hf_device_map", None))
    result = prune(model, MACs(0.5))

    assert result.plan == expected.plan
    assert result.report.before == expected.report.before
    assert result.report.after == expected.report.after
    assert_equal(dict(stored_tensors(result.model)), expected.model.state_dict())
    assert torch.equal(output(result.model, inputs), output(expected.model, inputs))

    assert held_state(model) == held
    assert getattr(model, "hf_device_map", None) == places
    assert_equal(dict(stored_tensors(model)), before)
    assert torch.equal(output(model, inputs), output(plain, inputs))

    result.save(tmp_path / "out")
    reloaded = stat_prune.load(tmp_path / "out")
    assert_equal(reloaded.state_dict(), expected.model.state_dict())
    assert torch.equal(output(reloaded, inputs), output(expected.model, inputs))


@pytest.mark.parametrize("placement", [offloaded, partly_offloaded])
def test_what_was_offloaded_is_offloaded_again_and_only_what_is_left_of_it(
    prune, tmp_path, placement: Placement
):
    model = placement(build("Llama"), tmp_path)
    result = prune(model, MACs(0.5)).model
    for name, module in model.named_modules():
        assert is_offloaded(result.get_submodule(name)) == is_offloaded(module), name
    rest = [name for name, one in result.named_parameters() if one.is_meta]
    assert rest == [name for name, one in model.named_parameters() if one.is_meta]
    own, dense = dict(stored_tensors(result)), dict(stored_tensors(model))
    for name in rest:
        assert own[name].shape == result.get_parameter(name).shape
        assert own[name].data_ptr() != dense[name].data_ptr()
    with torch.no_grad():
        for tensor in own.values():
            tensor.zero_()
    assert all(bool(tensor.any()) for tensor in dense.values())


def test_weights_from_a_disk_rest_in_memory_afterwards(prune, tmp_path):
    model = partly_on_disk(build("Llama"), tmp_path)
    assert "disk" in model.hf_device_map.values()
    result = prune(model, MACs(0.5)).model
    assert result.hf_device_map == dict.fromkeys(model.hf_device_map, "cpu")
    assert not any(parameter.is_meta for parameter in result.parameters())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", ["Llama-tied", "Bert", "Mixtral"])
def test_a_dispatched_model_is_pruned_itself_where_inplace_is_true(
    prune, inputs, tmp_path, placement: Placement, name
):
    plain = build(name)
    model = placement(copy.deepcopy(plain), tmp_path)
    expected = prune(plain, MACs(0.5)).model
    assert prune(model, MACs(0.5), inplace=True).model is model
    assert_equal(dict(stored_tensors(model)), expected.state_dict())
    assert torch.equal(output(model, inputs), output(expected, inputs))


@pytest.mark.parametrize("placement", [partly_offloaded, partly_on_disk])
@pytest.mark.parametrize(
    "method",
    ["magnitude", "random", "obs", "wanda-sp", "flap", "corp", "stat-paper", "attention-entropy"],
)
def test_every_method_without_gradients_finds_the_same(
    prune, tmp_path, placement: Placement, method
):
    plain = build("Llama")
    target = MACs({"heads": 0.5}) if method == "attention-entropy" else MACs(0.5)
    expected = prune(plain, target, method=method)
    found = prune(placement(plain, tmp_path), target, method=method)
    assert found.plan == expected.plan
    assert_equal(dict(stored_tensors(found.model)), expected.model.state_dict())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_the_second_pass_finds_the_same(prune, tmp_path, placement: Placement, name):
    plain = build(name)
    expected = prune(plain, MACs(0.5), passes=2)
    found = prune(placement(plain, tmp_path), MACs(0.5), passes=2)
    assert found.report.second_pass == expected.report.second_pass
    assert_equal(dict(stored_tensors(found.model)), expected.model.state_dict())


def test_what_is_written_into_weights_in_memory_stays_only_where_that_is_asked_for(tmp_path):
    model = offloaded(build("Llama"), tmp_path)
    layer, name = model.model.layers[0].mlp.down_proj, "model.layers.0.mlp.down_proj.weight"
    for stays in (False, True):
        with in_memory(layer, store=stays), torch.no_grad():
            assert layer.weight.any()
            layer.weight.zero_()
        assert layer.weight.is_meta
        assert bool(dict(stored_tensors(model))[name].any()) != stays


@pytest.mark.parametrize("placement", [offloaded, partly_on_disk])
def test_a_layer_without_heads_computes_nothing_under_hooks_too(
    prune, inputs, tmp_path, placement: Placement
):
    plain = build("Llama")
    target = MACs({"heads": 0.3})
    expected = prune(plain, target, remove_blocks=True)
    assert [] in expected.plan.values()
    found = prune(placement(plain, tmp_path), target, remove_blocks=True)
    assert found.plan == expected.plan
    assert torch.equal(output(found.model, inputs), output(expected.model, inputs))


@pytest.mark.parametrize("placement", [offloaded, partly_on_disk])
def test_a_run_that_was_broken_off_goes_on_with_a_dispatched_model(
    prune, tmp_path, monkeypatch, placement: Placement
):
    plain = build("Llama")
    expected = prune(plain, MACs(0.5))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "sensitivities", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prune(plain, MACs(0.5), work_dir=tmp_path / "work")
    model = placement(plain, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loaded_model, "collect", None)  # it has been done
        found = prune(model, MACs(0.5), work_dir=tmp_path / "work")
    assert_equal(dict(stored_tensors(found.model)), expected.model.state_dict())


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_result_can_be_pruned_and_saved_again(prune, inputs, tmp_path, placement: Placement):
    plain = build("Llama")
    expected = prune(prune(plain, MACs(0.7)).model, MACs(0.7))
    found = prune(prune(placement(plain, tmp_path), MACs(0.7)).model, MACs(0.7))
    assert found.plan == expected.plan
    found.model.save_pretrained(tmp_path / "out")
    reloaded = stat_prune.load(tmp_path / "out")
    assert torch.equal(output(reloaded, inputs), output(expected.model, inputs))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_result_generates_what_the_plain_one_does(prune, inputs, tmp_path, placement: Placement):
    plain = build("Llama")
    expected, found = (
        prune(one, MACs(0.5)).model for one in (plain, placement(copy.deepcopy(plain), tmp_path))
    )
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(found.generate(**inputs, **options), expected.generate(**inputs, **options))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", ["Bert", "Llama", "GPT2"])
def test_narrower_heads_compute_the_same_and_are_pruned_again(
    prune, inputs, tmp_path, placement: Placement, name
):
    """Of linear layers of their own, of rotary pairs, and of one layer for all three."""
    plain = prune(build(name), MACs({"query-key": 0.5, "value": 0.5})).model
    sizes = {(one.query_key_size, one.unit_size) for one in find_blocks(plain) if one.attributes}
    assert (8, 8) not in sizes
    model = placement(copy.deepcopy(plain), tmp_path)
    assert any(map(is_offloaded, model.modules())) == (placement is not with_hooks)
    assert torch.equal(output(model, inputs), output(plain, inputs))
    found, expected = (prune(one, MACs(0.6)).model for one in (model, plain))
    assert torch.equal(output(found, inputs), output(expected, inputs))


def test_a_saved_result_loads_with_a_device_map(prune, inputs, tmp_path):
    result = prune(build("Llama"), MACs(0.5))
    result.save(tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        trust_remote_code=True,
        device_map=device_map(result.model, ["cpu", "disk"], "cpu"),
        offload_folder=str(tmp_path / "offloaded"),
    )
    assert torch.equal(output(loaded, inputs), output(result.model, inputs))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_dispatched_model_is_evaluated_as_the_plain_one(
    tmp_path, word_tokenizer, texts, placement: Placement
):
    plain = build("Llama")
    expected = perplexity(plain, word_tokenizer, texts[:8])
    model = placement(plain, tmp_path)
    assert perplexity(model, word_tokenizer, texts[:8]) == expected


def test_what_needs_a_plain_model_says_so(prune, tmp_path, word_tokenizer, texts):
    held, decoder = (offloaded(build(name), tmp_path) for name in ("Bert", "Llama"))
    state = held_state(held)
    with pytest.raises(SettingsError, match="device='cpu'.*device_map.*Leave it out"):
        prune(held, MACs(0.5), device="cpu")
    with pytest.raises(TargetError, match="for models without device_map.*Use MACs"):
        prune(held, Latency(0.5))
    for method in ("fisher", "kprune", "kcm", "grail"):
        with pytest.raises(ModelError, match=f"{method}.*device_map.*Load .* on one device"):
            prune(held, MACs(0.7), method=method)
    with pytest.raises(ModelError, match="hooks of accelerate.*Load it on one device"):
        slicegpt(decoder, texts, targets=[MACs(0.5)], tokenizer=word_tokenizer)
    assert held_state(held) == state


def test_hooks_that_a_smaller_model_may_not_get_along_with_are_refused(prune, tmp_path):
    casting = build("Llama")
    hook = accelerate.hooks.LayerwiseCastingHook(torch.bfloat16, torch.float32, False)
    accelerate.hooks.add_hook_to_module(casting.model.layers[0].mlp, hook)
    casting.hf_device_map = {"": "cpu"}
    with pytest.raises(ModelError, match=r"layers\.0\.mlp has .*LayerwiseCastingHook.*Take"):
        prune(casting, MACs(0.5))
    twice = offloaded(with_hooks(build("Llama"), tmp_path), tmp_path)
    with pytest.raises(ModelError, match=r"AlignDevicesHook, AlignDevicesHook.*Take"):
        prune(twice, MACs(0.5))
    joint = accelerate.cpu_offload(build("Llama"), CPU, preload_module_classes=["LlamaMLP"])
    with pytest.raises(ModelError, match="no hook of its own.*without preload_module_classes"):
        prune(joint, MACs(0.5))
    part = with_hooks(build("Llama"), tmp_path).model
    with pytest.raises(ModelError, match="no hf_device_map. Pass the whole"):
        prune(part, MACs(0.5))


def test_layers_that_share_offloaded_weights_are_refused(prune, tmp_path):
    model = build("Llama")
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(ModelError, match=r"layers\.0.* and layers\.1.* share"):
        prune(offloaded(model, tmp_path), MACs(0.5))


def needing(count: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(torch.cuda.device_count() < count, reason=f"needs {count} GPU(s)")


@pytest.mark.parametrize(
    ("layers", "rest"),
    [
        pytest.param([0], 0, marks=needing(1), id="hooks on one GPU"),
        pytest.param([0, "cpu"], 0, marks=needing(1), id="a GPU and the CPU"),
        pytest.param([0, 1], 0, marks=needing(2), id="two GPUs"),
        pytest.param([1, "cpu"], 0, marks=needing(2), id="two GPUs and the CPU"),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"passes": 2}, {"method": "flap"}], ids=str)
@pytest.mark.parametrize("name", ["Llama-tied", "Bert"])
def test_layers_on_gpus_are_measured_and_cut_where_they_are(
    prune, inputs, layers, rest, settings, name
):
    plain = build(name)
    model = accelerate.dispatch_model(
        copy.deepcopy(plain), device_map(plain, layers, rest), force_hooks=True
    )
    expected = prune(plain.to("cuda:0"), MACs(0.5), **settings)
    places = {path: one.device for path, one in model.named_parameters()}
    found = prune(model, MACs(0.5), **settings)
    assert found.plan == expected.plan
    assert found.model.hf_device_map == model.hf_device_map
    assert {path: one.device for path, one in found.model.named_parameters()} == places
    weights = {path: one.cpu() for path, one in stored_tensors(found.model)}
    torch.testing.assert_close(
        weights, copied(expected.model.cpu().state_dict().items()), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        output(found.model, inputs), output(expected.model, inputs), rtol=1e-4, atol=1e-4
    )


@needing(1)
def test_a_checkpoint_that_is_loaded_on_a_gpu_and_a_disk_is_pruned(prune, inputs, tmp_path):
    plain = build("Llama")
    plain.save_pretrained(tmp_path / "dense")
    model = type(plain).from_pretrained(
        tmp_path / "dense",
        device_map=device_map(plain, [0, "disk"], 0),
        offload_folder=str(tmp_path / "offloaded"),
    )
    found = prune(model, MACs(0.5)).model
    expected = prune(plain.to("cuda:0"), MACs(0.5)).model.cpu()
    assert {one.device.type for one in found.parameters()} == {"cuda", "meta"}
    torch.testing.assert_close(
        output(found, inputs), output(expected, inputs), rtol=1e-4, atol=1e-4
    )
