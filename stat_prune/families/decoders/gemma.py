"""Gemma 2 and the text model of Gemma 3: Llama's layer, with norms behind the sublayers too.

The residual stream gets the output of such a norm, not the consumer's own.
"""

from dataclasses import replace

from stat_prune.families.decoders.llama import LLAMA

GEMMA2 = (
    replace(LLAMA, model_types=("gemma2",))
    .with_attention(stream_after=None, adds_to_stream=False, own_dims=None)
    .with_feed_forward(adds_to_stream=False)
)

#: With norms of each head's queries and keys, as in Qwen3.
GEMMA3 = replace(GEMMA2, model_types=("gemma3_text",)).with_attention(own_dims="values")
