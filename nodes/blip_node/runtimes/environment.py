"""What a worker process needs in its environment before it imports torch.

The supervisor sets these for the forkserver; tests and the GGUF converter set them for themselves.
"""

from __future__ import annotations

#: Variables and values; each is read once, at import, by the library it is for.
WORKER_ENV: dict[str, str] = {
    # OpenMP's threads spin at barriers by default. With as many threads as cores and anything
    # else running, decoding is up to five times slower for it.
    "OMP_WAIT_POLICY": "PASSIVE",
    # A worker loads what is on disk; a hub look-up that hangs must not hang a load.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Advice for people at a notebook; real failures are raised.
    "TRANSFORMERS_VERBOSITY": "error",
    # Tokenizers warns about every fork after it used its threads, and one prompt needs only one.
    "TOKENIZERS_PARALLELISM": "false",
    # Ask NVML, not CUDA, whether there is a GPU: a CUDA context in the forkserver would be
    # inherited, and useless, in every worker.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # Key-value caches grow a little with every token; fixed segments fragment under that.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    # onnxruntime tells its maker about its sessions otherwise, and keeps a database of that.
    "ORT_DISABLE_TELEMETRY": "1",
}
