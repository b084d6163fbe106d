"""Language models with random weights and ``tiny-chat``'s tokenizer, made in milliseconds.

What they say is noise, but deterministic noise: whoever decodes them correctly gets the same.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

HERE = Path(__file__).parent
TINY_CHAT = HERE / "tiny-chat"
TINY_EMBED = HERE / "tiny-embed"
VOCABULARY = 448
END = 2  # <|im_end|>

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "eos_token_id": END,
    "bos_token_id": 0,
    "pad_token_id": 0,
}

_HYBRID: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}

#: Configuration class and what it needs beyond the common, by a name for the test's output.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "mistral-sliding": ("MistralConfig", {"sliding_window": 32}),
    "gemma2-mixed": ("Gemma2Config", {"sliding_window": 32}),
    "phi3": ("Phi3Config", {}),
    "phi3-longrope": (
        "Phi3Config",
        {
            "original_max_position_embeddings": 64,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": [2.0] * 8,
                "short_factor": [1.0] * 8,
            },
        },
    ),
    "bloom-alibi": ("BloomConfig", {"n_layer": 2, "n_head": 4}),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 4096}),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "gpt-oss": ("GptOssConfig", {"num_local_experts": 4, "sliding_window": 32}),
    "lfm2-hybrid": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
    "qwen3-next-hybrid": ("Qwen3NextConfig", _HYBRID),
}

#: The same for those that keep their state where no cache sees it.
FORGETFUL: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", {"state_size": 4}),
    "recurrent-gemma": ("RecurrentGemmaConfig", {}),
}


def make_random(folder: Path, architecture: str = "llama", **changes: Any) -> Path:
    """Save a random model of an architecture, with tokenizer and chat template, into a folder."""
    name, own = (ARCHITECTURES | FORGETFUL)[architecture]
    fields = own if architecture == "gpt2" else _COMMON | own
    if architecture == "gpt2":
        fields = {key: _COMMON[key] for key in ("vocab_size", "eos_token_id", "bos_token_id")} | own
    torch.manual_seed(0)
    config = getattr(transformers, name)(**fields | changes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # far enough apart that rounding does not change who is first
            torch.nn.init.normal_(parameter, std=0.2)
    model.tie_weights()
    model.generation_config = transformers.GenerationConfig(eos_token_id=END, pad_token_id=0)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY_CHAT / file, folder)
    return folder


def generate(folder: Path, ids: list[int], new_tokens: int, **settings: Any) -> list[int]:
    """Return what transformers' own ``generate`` appends to a prompt, greedily."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = torch.tensor([ids])
    output = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        do_sample=False,
        **settings,
    )
    generated: list[int] = output[0, len(ids) :].tolist()
    return generated
