"""OLMo-2: neurons only, as the norms of queries and keys are over all heads together."""

from dataclasses import replace

from stat_prune.families.decoders.llama import LLAMA

OLMO2 = (
    replace(LLAMA, model_types=("olmo2",))
    .with_attention(
        stream_after=None,
        adds_to_stream=False,
        fixed=(
            "The heads of OLMo-2 stay: their queries and keys are normalised over all heads "
            "together, so that no head leaves without changing the others."
        ),
        own_dims=None,
    )
    .with_feed_forward(adds_to_stream=False)
)
