"""Write the vectors that are missing: ``python -m tests.vectors.write``.

A vector that exists is never written again: those are the bytes that other machines speak.
"""

from __future__ import annotations

import sys
from pathlib import Path

from blip.protocol.codec import CONTROL_LIMIT, encode
from tests.vectors.samples import FOLDER, SAMPLES, render


def main(folder: Path = FOLDER) -> int:
    """Write what is missing; return 1 if a vector that exists says something else."""
    status = 0
    for name, batch in SAMPLES.items():
        [frames] = encode(batch, CONTROL_LIMIT)
        seq, first = batch[0]
        title = f"{type(first).__name__} {seq}" + (f" and {len(batch) - 1} more" * (len(batch) > 1))
        text = render(title, frames)
        path = folder / f"{name}.hex"
        if not path.exists():
            path.write_text(text, encoding="ascii")
            print(f"wrote {path}")
        elif path.read_text(encoding="ascii") != text:
            print(f"{path} differs from what is encoded now: the wire has changed", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
