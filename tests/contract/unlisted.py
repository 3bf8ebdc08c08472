"""Families that are not registered: what inferring their blocks comes to."""

from __future__ import annotations

from families import (
    BART,
    BERT_LIKE,
    COMMON,
    EXPERTS,
    FIXED_HEADS,
    LLAMA_LIKE,
    NEOX_LIKE,
    T5,
    TOKENS,
    VIT,
    Family,
)

DECODER = ("Model", "ForCausalLM")
ENCODER = ("Model", "ForMaskedLM")
LLAMA = LLAMA_LIKE | TOKENS
GPT = COMMON | TOKENS | {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}
MPT = {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
SEQ2SEQ = ("Model", "ForConditionalGeneration")
REMBERT = {"input_embedding_size": 16, "output_embedding_size": 16}
XGLM = COMMON | TOKENS | {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}
XGLM |= {"max_position_embeddings": 64, "init_std": 0.25}
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
XL = {"vocab_size": 64, "d_model": 32, "n_head": 4}

#: Heads and neurons both leave; every promise is tested.
WHOLE = [
    Family("StableLm", LLAMA, DECODER, "layers"),
    Family("Cohere", LLAMA, DECODER, "layers"),
    Family("Starcoder2", LLAMA, DECODER, "layers"),
    Family("Glm", LLAMA, DECODER, "layers"),
    Family("Persimmon", NEOX_LIKE, DECODER, "layers"),
    # Neurons of GPT-J see the token alone, of which there are few.
    Family("GPTJ", GPT | {"n_inner": 32, "rotary_dim": 4}, DECODER, "h"),
    Family("GPTBigCode", GPT | {"n_inner": 48}, DECODER, "h", "multi-query"),
    Family("Ernie", BERT_LIKE, ENCODER, "encoder.layer"),
    Family("LayoutLM", BERT_LIKE, ENCODER, "encoder.layer"),
    Family("Pegasus", BART, SEQ2SEQ, ("encoder.layers", "decoder.layers")),
]

#: Neurons leave, and some heads or all stay; likewise.
NEURONS = [
    Family("Olmo3", LLAMA | FIXED_HEADS, DECODER, "layers"),
    Family("Mpt", MPT | {"expansion_ratio": 8, "initializer_range": 0.25}, DECODER, "blocks"),
]

#: As the above, but inferred alone.
FURTHER = [
    Family("Arcee", LLAMA, DECODER, "layers"),
    Family("BigBird", BERT_LIKE, ENCODER, "encoder.layer"),
    Family("BioGpt", NEOX_LIKE, DECODER, "layers"),
    Family("CodeGen", GPT | {"n_inner": 48, "rotary_dim": 4, "n_ctx": 64}, DECODER, "h"),
    Family("Cohere", LLAMA | {"use_qk_norm": True}, DECODER, "layers", "norms of heads"),
    Family("Cohere2", LLAMA, DECODER, "layers"),
    Family("Data2VecText", BERT_LIKE, ENCODER, "encoder.layer"),
    Family("DiffLlama", LLAMA, DECODER, "layers"),
    Family("Ernie4_5", LLAMA, DECODER, "layers"),
    Family("Esm", BERT_LIKE | {"mask_token_id": 4}, ENCODER, "encoder.layer"),
    Family("Exaone4", LLAMA, DECODER, "layers"),
    Family("Gemma", LLAMA, DECODER, "layers"),
    Family("GPTBigCode", GPT | {"n_inner": 48, "multi_query": False}, DECODER, "h", "multi-head"),
    Family("Granite", LLAMA_LIKE, DECODER, "layers"),
    Family("Helium", LLAMA, DECODER, "layers"),
    Family("M2M100", BART, SEQ2SEQ, ("encoder.layers", "decoder.layers")),
    Family("Marian", BART, ("Model", "MTModel"), ("encoder.layers", "decoder.layers")),
    Family("MBart", BART, SEQ2SEQ, ("encoder.layers", "decoder.layers")),
    Family("MegatronBert", BERT_LIKE, ENCODER, "encoder.layer"),
    Family("Nemotron", LLAMA, DECODER, "layers"),
    Family("NomicBert", BERT_LIKE, ENCODER, "layers"),
    Family("Olmo", LLAMA, DECODER, "layers"),
    Family("Phi", NEOX_LIKE, DECODER, "layers"),
    Family("RemBert", BERT_LIKE | REMBERT, ENCODER, "encoder.layer"),
    Family("RoFormer", BERT_LIKE | {"embedding_size": 32}, ENCODER, "encoder.layer"),
    Family("SeedOss", LLAMA, DECODER, "layers"),
    Family("SmolLM3", LLAMA, DECODER, "layers"),
    Family("UMT5", T5, SEQ2SEQ, ("encoder.block", "decoder.block")),
    Family("XGLM", XGLM, DECODER, "layers"),
    Family("XLMRobertaXL", BERT_LIKE, ENCODER, "encoder.layer"),
]

#: Nothing is proven; with what the refusal says.
REFUSED = [
    (
        Family("GraniteMoe", EXPERTS | {"num_local_experts": 4}, DECODER, ""),
        "Router.*is part of no",
    ),
    (Family("SqueezeBert", BERT_LIKE | {"embedding_size": 32}, ENCODER, ""), "no list of layers"),
    (Family("FNet", SMALL | {"intermediate_size": 48}, ENCODER, ""), "no list of layers"),
    (Family("Funnel", XL | {"d_head": 8, "block_sizes": [1, 1]}, ENCODER, ""), "size of a head"),
    (Family("XLNet", XL | {"n_layer": 2, "d_inner": 48}, ("Model",), ""), "no list of layers"),
    (Family("Mamba", SMALL, DECODER, ""), "size of a head"),
    (Family("Deberta", BERT_LIKE | DEBERTA, ENCODER, ""), "change places"),
    (Family("Longformer", BERT_LIKE | {"attention_window": [4, 4]}, ENCODER, ""), "change places"),
    (Family("MobileBert", BERT_LIKE | {"embedding_size": 16}, ENCODER, ""), "reads 48 neurons"),
    (Family("Nystromformer", BERT_LIKE, ENCODER, ""), "Conv2d.*is part of no"),
    (Family("ViTMAE", VIT, ("Model",), ""), "reads 'pixel_values'"),
]
