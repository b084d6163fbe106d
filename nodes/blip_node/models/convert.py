"""``python -m blip_node.models.convert model.gguf folder``: GGUF to bfloat16 safetensors.

transformers reads GGUF slowly (half a minute for 135 million weights, most of it parsing the
header in Python), so it is done once, in a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def convert(source: Path, folder: Path, report: Callable[[float], None]) -> None:
    """Write ``source`` into an existing ``folder`` as ``from_pretrained`` wants it."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {
        "gguf_file": source.name,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    tokenizer.save_pretrained(folder)
    report(0.3)
    if hasattr(transformers, "GgufConfig"):  # else a GPU's kernels would keep the blocks packed
        where["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.bfloat16, **where)
    report(0.9)
    # A model read from GGUF counts as quantised and refuses to be saved, though its weights are
    # plain tensors by now: move them into a model of the same shape that does not.
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    report(1.0)


def main() -> None:
    """Convert what the command line names, with progress from 0 to 1 as lines on stdout."""
    from blip_node.runtimes.environment import WORKER_ENV

    os.environ.update(WORKER_ENV)
    convert(Path(sys.argv[1]), Path(sys.argv[2]), lambda share: print(share, flush=True))


if __name__ == "__main__":
    main()
