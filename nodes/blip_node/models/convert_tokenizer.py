"""``python -m blip_node.models.convert_tokenizer model.gguf folder``: what llama.cpp does not do.

The tokenizer, its chat template and the configuration of a GGUF file, as transformers reads them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def convert(source: Path, folder: Path, report: Callable[[float], None]) -> None:
    """Write the small files of ``source`` into an existing ``folder``."""
    from transformers import AutoConfig, AutoTokenizer

    where: dict[str, Any] = {
        "gguf_file": source.name,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    AutoTokenizer.from_pretrained(source.parent, **where).save_pretrained(folder)
    report(0.8)
    AutoConfig.from_pretrained(source.parent, **where).save_pretrained(folder)
    report(1.0)


def main() -> None:
    """Convert what the command line names, with progress from 0 to 1 as lines on stdout."""
    from blip_node.runtimes.environment import WORKER_ENV

    os.environ.update(WORKER_ENV)
    convert(Path(sys.argv[1]), Path(sys.argv[2]), lambda share: print(share, flush=True))


if __name__ == "__main__":
    main()
