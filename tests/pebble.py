"""A made-up decoder that stat_prune has never heard of; the example of docs/architectures.md."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput


class PebbleConfig(PreTrainedConfig):
    model_type = "pebble"

    vocab_size: int = 64
    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    width: int = 48


class Mixer(nn.Module):
    def __init__(self, config: PebbleConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        fused = self.qkv(hidden).unflatten(-1, (3, self.num_heads, self.head_size))
        query, key, value = fused.permute(2, 0, 3, 1, 4)
        read = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(read.transpose(1, 2).flatten(2))


class PebbleBlock(nn.Module):
    def __init__(self, config: PebbleConfig) -> None:
        super().__init__()
        self.first_norm, self.second_norm = (nn.LayerNorm(config.hidden_size) for _ in range(2))
        self.mixer = Mixer(config)
        self.up = nn.Linear(config.hidden_size, config.width)
        self.down = nn.Linear(config.width, config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = hidden + self.mixer(self.first_norm(hidden), mask)
        return hidden + self.down(nn.functional.gelu(self.up(self.second_norm(hidden))))


class PebblePreTrainedModel(PreTrainedModel):
    config_class = PebbleConfig
    base_model_prefix = "stone"


class PebbleModel(PebblePreTrainedModel):
    def __init__(self, config: PebbleConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(PebbleBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        length = input_ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()[None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None].bool()
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden, mask[:, None])
        return BaseModelOutput(last_hidden_state=hidden)


class PebbleForCausalLM(PebblePreTrainedModel, GenerationMixin):
    def __init__(self, config: PebbleConfig) -> None:
        super().__init__(config)
        self.stone = PebbleModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> CausalLMOutput:
        hidden = self.stone(input_ids, attention_mask).last_hidden_state
        return CausalLMOutput(logits=self.head(hidden))
