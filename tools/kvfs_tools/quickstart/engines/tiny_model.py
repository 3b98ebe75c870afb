"""A Llama-style model with random, seeded weights, made on the spot: nothing is downloaded, each run has the same.

Runs in the engine's environment. KV cache per token: 8 layers x 2 x 8 heads x 64 bfloat16 = 16 KiB.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, HIDDEN, FEED_FORWARD, LAYERS, HEADS, HEAD_SIZE = 1024, 512, 1024, 8, 8, 64

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": FEED_FORWARD,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": HEAD_SIZE,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


def prompt(tokens: int) -> list[int]:
    """A deterministic prompt of `tokens` token ids."""
    return [3 + (i * 7919) % 1000 for i in range(tokens)]


def _weights() -> Iterator[tuple[str, Any]]:
    generator = np.random.default_rng(7)

    def random_matrix(rows: int, columns: int) -> Any:
        return generator.standard_normal((rows, columns), dtype=np.float32) * columns**-0.5

    yield "model.embed_tokens.weight", random_matrix(VOCABULARY, HIDDEN) * HIDDEN**0.5
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for part in "qkvo":
            yield f"{prefix}self_attn.{part}_proj.weight", random_matrix(HEADS * HEAD_SIZE, HIDDEN)
        yield prefix + "mlp.gate_proj.weight", random_matrix(FEED_FORWARD, HIDDEN)
        yield prefix + "mlp.up_proj.weight", random_matrix(FEED_FORWARD, HIDDEN)
        yield prefix + "mlp.down_proj.weight", random_matrix(HIDDEN, FEED_FORWARD)
        yield prefix + "input_layernorm.weight", np.ones(HIDDEN, np.float32)
        yield prefix + "post_attention_layernorm.weight", np.ones(HIDDEN, np.float32)
    yield "model.norm.weight", np.ones(HIDDEN, np.float32)
    yield "lm_head.weight", random_matrix(VOCABULARY, HIDDEN)


def write_model(directory: Path) -> None:
    """Write config.json and model.safetensors as transformers and vLLM read them."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    save_file(dict(_weights()), directory / "model.safetensors", metadata={"format": "pt"})
