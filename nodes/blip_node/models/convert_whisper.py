"""``python -m blip_node.models.convert_whisper folder... target``: CTranslate2 to safetensors.

A Whisper model in CTranslate2's layout becomes what transformers loads: the same weights under
other names, in their own precision, with the tokenizer, the feature extractor and everything that
generation must know (languages, tasks, timestamps, tokens to suppress, heads that align).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blip_node.models import ctranslate
from blip_node.models.files import read_object

#: CTranslate2's names of what is alike in all layers, and transformers'.
_NORMS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
}
_LINEARS = {
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
#: What CTranslate2 has in one matrix, and the matrices that transformers makes of it.
_FUSED = {
    "self_attention/linear_0": ("self_attn", "qkv"),
    "attention/linear_1": ("encoder_attn", "kv"),
}

Tensors = Mapping[str, Any]


def state_dict(tensors: Tensors) -> dict[str, Any]:
    """Return the weights under transformers' names."""
    found: dict[str, Any] = {
        "model.decoder.embed_tokens.weight": tensors["decoder/embeddings/weight"]
    }
    for name, value in tensors.items():
        side, _, rest = name.partition("/")
        if value.ndim == 0 or side not in ("encoder", "decoder"):
            continue
        place = f"model.{side}."
        if rest == "position_encodings/encodings":
            found[place + "embed_positions.weight"] = value
        elif rest.startswith("conv"):
            found[place + rest.replace("/", ".")] = value
        elif rest.startswith("layer_norm/"):
            found[place + "layer_norm." + _norm(rest)] = value
        elif rest.startswith("layer_"):
            layer, _, inner = rest.removeprefix("layer_").partition("/")
            module, _, what = inner.rpartition("/")
            place += f"layers.{layer}."
            if module in _NORMS:
                found[f"{place}{_NORMS[module]}.{_norm(what)}"] = value
            elif module in _LINEARS:
                found[f"{place}{_LINEARS[module]}.{what}"] = value
            elif module in _FUSED:
                attention, letters = _FUSED[module]
                for letter, part in zip(letters, value.chunk(len(letters)), strict=True):
                    if (letter, what) != ("k", "bias"):  # Whisper's keys have none; it is zero
                        found[f"{place}{attention}.{letter}_proj.{what}"] = part.contiguous()
    return found


def _norm(name: str) -> str:
    return "weight" if name.endswith("gamma") else "bias"


def convert(folders: list[Path], target: Path, report: Callable[[float], None]) -> None:
    """Write the model in ``folders`` into an existing folder as ``from_pretrained`` wants it."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    files = ctranslate.find(folders)
    assert files is not None, "no model of CTranslate2"
    variables = ctranslate.read_header(files)
    shape = ctranslate.shape_of(variables)
    report(0.1)
    tensors = _tensors(files, variables)
    report(0.4)
    tokenizer = _tokenizer(files.folder)
    id_of = tokenizer.convert_tokens_to_ids
    end = id_of("<|endoftext|>")
    config = WhisperConfig(
        vocab_size=shape.vocabulary,
        num_mel_bins=shape.mel,
        d_model=shape.width,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=_heads(tensors, "encoder", shape.heads),
        decoder_attention_heads=_heads(tensors, "decoder", shape.heads),
        encoder_ffn_dim=shape.inner,
        decoder_ffn_dim=shape.inner,
        max_source_positions=shape.frames,
        max_target_positions=shape.tokens,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=id_of("<|startoftranscript|>"),
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    dtype = tensors["decoder/embeddings/weight"].dtype
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config).to(dtype)
    missing, unexpected = model.load_state_dict(state_dict(tensors), strict=False, assign=True)
    if unexpected or set(missing) - {"proj_out.weight"}:
        raise ValueError(f"its weights are not Whisper's: {[*missing, *unexpected][:3]}")
    model.tie_weights()
    model.generation_config = _generation(files, variables, tokenizer, shape.tokens)
    report(0.6)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    WhisperFeatureExtractor(feature_size=shape.mel).save_pretrained(target)
    report(1.0)


def _tensors(files: ctranslate.Files, variables: Mapping[str, ctranslate.Variable]) -> Tensors:
    """Read every variable; what is stored once under two names is read once."""
    import torch

    dtypes = {
        "F32": torch.float32,
        "I8": torch.int8,
        "I16": torch.int16,
        "I32": torch.int32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }
    read: dict[int, Any] = {}
    with ctranslate.Joined(files.parts) as file:
        for variable in variables.values():
            if variable.at not in read:
                name, size = ctranslate.DTYPES[variable.dtype]
                data = bytearray(file.read(variable.at, variable.elements * size))
                read[variable.at] = torch.frombuffer(data, dtype=dtypes[name]).reshape(
                    variable.shape
                )
    return {name: read[variable.at] for name, variable in variables.items()}


def _heads(tensors: Tensors, side: str, otherwise: int) -> int:
    found = tensors.get(f"{side}/num_heads")
    return otherwise if found is None else int(found)


def _tokenizer(folder: Path) -> Any:
    from transformers import WhisperTokenizerFast

    mark = "<|endoftext|>"
    return WhisperTokenizerFast.from_pretrained(
        folder,
        tokenizer_file=str(folder / "tokenizer.json"),
        local_files_only=True,
        bos_token=mark,
        eos_token=mark,
        unk_token=mark,
        pad_token=mark,
    )


def _generation(
    files: ctranslate.Files,
    variables: Mapping[str, ctranslate.Variable],
    tokenizer: Any,
    tokens: int,
) -> Any:
    """Return the generation configuration that OpenAI's own conversion has."""
    from transformers import GenerationConfig

    said = read_object(files.folder / "config.json")
    id_of = tokenizer.convert_tokens_to_ids
    end = id_of("<|endoftext|>")
    several: dict[str, Any] = {"is_multilingual": False}
    if ctranslate.is_multilingual(files, variables):
        languages = {tokenizer.convert_ids_to_tokens(id): id for id in said["lang_ids"]}
        tasks = {name: id_of(f"<|{name}|>") for name in ("transcribe", "translate")}
        several = {"is_multilingual": True, "lang_to_id": languages, "task_to_id": tasks}
    if said.get("alignment_heads"):
        several["alignment_heads"] = said["alignment_heads"]
    return GenerationConfig(
        max_length=tokens,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=id_of("<|startoftranscript|>"),
        prev_sot_token_id=id_of("<|startofprev|>"),
        no_timestamps_token_id=id_of("<|notimestamps|>"),
        return_timestamps=False,
        suppress_tokens=said.get("suppress_ids") or [],
        begin_suppress_tokens=said.get("suppress_ids_begin") or [],
        max_initial_timestamp_index=50,  # a second, in steps of 20 ms, as OpenAI has it
        **several,
    )


def main() -> None:
    """Convert what the command line names, with progress from 0 to 1 as lines on stdout."""
    from blip_node.runtimes.environment import WORKER_ENV

    os.environ.update(WORKER_ENV)
    *folders, target = map(Path, sys.argv[1:])
    convert(folders, target, lambda share: print(share, flush=True))


if __name__ == "__main__":
    main()
