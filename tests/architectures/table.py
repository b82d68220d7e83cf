"""Tiny random models of many architectures: what each is called, how it is made, what it is fed.

A row is data. Sizes are the smallest that have weights worth coding (64 x 64 and more).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "head_dim")}
SEQ2SEQ = {
    "vocab_size": 128,
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
T5 = {
    "vocab_size": 128,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 1,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
SPEECH = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "conv_dim": (32, 32),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
DEEPSEEK = {
    **SIZES,
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
IDS = torch.tensor([[5, 6, 7, 8, 9, 100, 101, 3]])


def text() -> dict[str, torch.Tensor]:
    return {"input_ids": IDS}


def two_texts() -> dict[str, torch.Tensor]:
    return {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}


def image() -> dict[str, torch.Tensor]:
    return {"pixel_values": _noise(1, 3, 32, 32)}


def image_and_text() -> dict[str, torch.Tensor]:
    return {**text(), **image()}


def speech() -> dict[str, torch.Tensor]:
    return {"input_values": _noise(1, 800)}


def mel_and_text() -> dict[str, torch.Tensor]:
    return {"input_features": _noise(1, 16, 32), "decoder_input_ids": IDS[:, :4]}


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


@dataclass(frozen=True)
class Architecture:
    """One row.

    Attributes:
        kind: model_type of the configuration.
        head: the Auto class that makes the model.
        options: of the configuration.
        inputs: what forward gets; floating ones are cast to the model's dtype.
        dtypes: that the dense model itself runs in on a CPU.
    """

    kind: str
    head: str = "AutoModelForCausalLM"
    options: dict[str, Any] = field(default_factory=lambda: SIZES)
    inputs: Callable[[], dict[str, torch.Tensor]] = text
    name: str = ""
    dtypes: tuple[torch.dtype, ...] = DTYPES

    def __str__(self) -> str:
        return self.name or self.kind


def _causal(kind: str, **options: Any) -> Architecture:
    return Architecture(kind, options={**SIZES, **options})


def _masked(kind: str, **options: Any) -> Architecture:
    return Architecture(kind, "AutoModelForMaskedLM", {**ENCODER, **options})


def _seq2seq(kind: str, **options: Any) -> Architecture:
    return Architecture(kind, "AutoModelForSeq2SeqLM", {**SEQ2SEQ, **options}, two_texts)


def _vision(kind: str, **options: Any) -> Architecture:
    return Architecture(kind, "AutoModel", {**VISION, **options}, image)


def _other(kind: str, **options: Any) -> Architecture:
    """A causal model whose configuration has names of its own."""
    return Architecture(kind, options={"vocab_size": 128, **options})


TRANSFORMERS = [
    # ---- decoders ----
    _causal("llama"),
    _causal("mistral"),
    _causal("qwen2", tie_word_embeddings=True),
    _causal("qwen3"),
    _causal("olmo2"),
    _causal("smollm3", tie_word_embeddings=True),
    _causal("gemma"),
    _causal("gemma2"),
    _causal("gemma3_text"),
    _causal("phi"),
    _causal("phi3"),
    _causal("starcoder2"),
    _causal("stablelm"),
    _causal("cohere"),
    _causal("granite"),
    _causal("glm"),
    _causal("nemotron"),
    _causal("gpt_neox"),
    _causal("persimmon"),
    _other("falcon", hidden_size=64, num_hidden_layers=2, num_attention_heads=4),
    _other("gpt2", n_embd=64, n_layer=2, n_head=4, n_positions=64),
    _other("gpt_bigcode", n_embd=64, n_layer=2, n_head=4, n_positions=64),
    _other("gptj", n_embd=64, n_layer=2, n_head=4, n_positions=64, rotary_dim=8),
    _other("codegen", n_embd=64, n_layer=2, n_head=4, n_positions=64, rotary_dim=8),
    _other(
        "gpt_neo", hidden_size=64, num_layers=2, num_heads=4, max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]],
    ),
    _other(
        "opt", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128,
        max_position_embeddings=64, word_embed_proj_dim=64,
    ),
    _other("bloom", hidden_size=64, n_layer=2, n_head=4),
    _other("mpt", d_model=64, n_heads=4, n_layers=2, max_seq_len=64),
    _other("xglm", d_model=64, ffn_dim=128, num_layers=2, attention_heads=4),
    # ---- mixtures of experts ----
    _causal("mixtral", num_local_experts=4),
    _causal("qwen2_moe", **MOE, shared_expert_intermediate_size=64),
    _causal("qwen3_moe", **MOE),
    _causal("olmoe", num_experts=4, num_experts_per_tok=2),
    _causal("gpt_oss", num_local_experts=4, num_experts_per_tok=2),
    Architecture("deepseek_v2", options=DEEPSEEK),
    Architecture("deepseek_v3", options=DEEPSEEK),
    # ---- states instead of attention ----
    _other("mamba", hidden_size=64, state_size=8, num_hidden_layers=2, time_step_rank=8),
    _other(
        "mamba2", hidden_size=64, state_size=16, num_hidden_layers=2, head_dim=16, num_heads=8,
        n_groups=1, expand=2, chunk_size=8,
    ),
    _other(
        "rwkv", hidden_size=64, attention_hidden_size=64, num_hidden_layers=2, context_length=64,
    ),
    _causal(
        "jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=2, mamba_d_state=8, mamba_d_conv=4, mamba_expand=2,
        use_mamba_kernels=False,
    ),
    _causal("recurrent_gemma", lru_width=64, block_types=["recurrent", "attention"]),
    # ---- encoders and decoders ----
    Architecture("t5", "AutoModelForSeq2SeqLM", T5, two_texts),
    Architecture("mt5", "AutoModelForSeq2SeqLM", T5, two_texts),
    _seq2seq("bart"),
    _seq2seq("marian"),
    _seq2seq("pegasus"),
    _seq2seq("m2m_100"),
    Architecture(
        "whisper",
        "AutoModelForSpeechSeq2Seq",
        {**SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 16, "max_target_positions": 32},
        mel_and_text,
    ),
    # ---- encoders ----
    Architecture("bert", "AutoModelForMaskedLM", ENCODER),
    _masked("roberta"),
    _masked("electra", embedding_size=64),
    _masked("albert", embedding_size=64),
    _masked("modernbert", cls_token_id=1, sep_token_id=2),
    Architecture(
        "deberta", "AutoModelForMaskedLM",
        {**ENCODER, "pos_att_type": ["c2p", "p2c"], "relative_attention": True},
        dtypes=(torch.float32,),  # it scales by a float32 tensor
    ),
    _masked("deberta-v2", pos_att_type=["c2p", "p2c"], relative_attention=True,
            position_buckets=32, norm_rel_ebd="layer_norm", share_att_key=True),
    _masked("mpnet"),
    Architecture(
        "distilbert", "AutoModelForMaskedLM",
        {"vocab_size": 128, "dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
    ),
    # ---- images and sound ----
    _vision("vit"),
    _vision("dinov2", mlp_ratio=2),
    _vision("siglip_vision_model"),
    _vision("clip_vision_model"),
    Architecture(
        "siglip", "AutoModel", {"text_config": SIZES, "vision_config": VISION}, image_and_text,
    ),
    Architecture(
        "clip", "AutoModel",
        {"text_config": SIZES, "vision_config": VISION, "projection_dim": 64}, image_and_text,
    ),
    Architecture("wav2vec2", "AutoModelForCTC", SPEECH, speech),
    Architecture("hubert", "AutoModel", SPEECH, speech),
]  # fmt: skip


class Attention(nn.Module):
    """A plain nn.MultiheadAttention: hands out_proj.weight to a function of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def decoder() -> nn.Module:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerDecoderLayer(64, 4, 128, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x, x)

    return Both()


def recurrent() -> nn.Module:
    class Sentence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(64, 64, batch_first=True), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.rnn(x)[0])

    return Sentence()


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "multihead_attention": Attention,
    "transformer_encoder": encoder,
    "transformer_decoder": decoder,
    "lstm": recurrent,
}
