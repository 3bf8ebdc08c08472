"""Mixtures of experts with Llama's attention: Mixtral, Qwen2-MoE, Qwen3-MoE.

The weights of a layer's experts are one tensor, so that each expert is a block of its own but all
keep equally many neurons. Qwen2-MoE has an ordinary network beside them that sees every token, and
both Qwens may have layers with nothing else.
"""

from dataclasses import replace

from stat_prune.families.architecture import FeedForward
from stat_prune.families.decoders.llama import LLAMA

_EXPERTS = FeedForward(
    inputs=("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj"),
    output="mlp.experts.down_proj",
    config_neurons="moe_intermediate_size",
    experts_per_token="num_experts_per_tok",
    counts={"intermediate_dim": "neurons"},
    adds_to_stream=False,
    optional=True,
)
_DENSE = replace(LLAMA.feed_forwards[0], name="dense_neurons", optional=True)
_SHARED = FeedForward(
    inputs=("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    output="mlp.shared_expert.down_proj",
    config_neurons="shared_expert_intermediate_size",
    adds_to_stream=False,
    name="shared_expert_neurons",
    optional=True,
)

MIXTRAL = replace(
    LLAMA,
    model_types=("mixtral",),
    feed_forwards=(replace(_EXPERTS, config_neurons="intermediate_size", optional=False),),
).with_attention(own_dims=None)
QWEN_MOE = replace(
    LLAMA,
    model_types=("qwen2_moe", "qwen3_moe"),
    feed_forwards=(_EXPERTS, _SHARED, _DENSE),
).with_attention(own_dims=None)
