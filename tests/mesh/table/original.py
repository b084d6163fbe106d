"""BitingLip's curl lines, letter for letter as its documents have them, but for host and key."""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from typing import Any

import pytest
from PIL import Image

from tests.mesh.table.mesh import TableMesh, run
from tests.mesh.table.pictures import DRAWN, SCENES
from tests.mesh.table.sounds import heard

#: https://github.com/BitingLip/biting-lip/blob/main/README.md and, the last three,
#: https://github.com/BitingLip/gateway-manager: README.md and docs/api.md.
TEXTS = (
    r"""curl -X POST http://localhost:8001/api/v1/inference/text-generation \
  -H "Content-Type: application/json" \
  -d '{"model": "gpt2", "prompt": "Hello world", "max_tokens": 50}'""",
    r"""curl -X POST http://localhost:8001/api/v1/inference/text-generation \
  -H "Authorization: Bearer YOUR_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "model": "gpt2",
    "prompt": "The future of AI is",
    "max_tokens": 100,
    "temperature": 0.7
  }'""",
    r"""curl -X POST "http://localhost:8080/api/v1/inference/text-generation" \
  -H "X-API-Key: your-api-key" \
  -H "Content-Type: application/json" \
  -d '{
    "model_name": "gpt2",
    "prompt": "The future of AI is",
    "max_length": 100,
    "temperature": 0.7
  }'""",
    r"""curl -X POST "https://api.bitinglip.com/v1/inference/text-generation" \
     -H "Authorization: Bearer YOUR_API_KEY" \
     -H "Content-Type: application/json" \
     -d '{
       "model": "llama-2-7b",
       "prompt": "Explain quantum computing",
       "max_tokens": 512,
       "temperature": 0.7
     }'""",
)

IMAGES = (
    r"""curl -X POST http://localhost:8001/api/v1/inference/image-generation \
  -H "Authorization: Bearer YOUR_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "model": "stable-diffusion-xl",
    "prompt": "A beautiful landscape at sunset",
    "width": 1024,
    "height": 1024,
    "steps": 50
  }'""",
    r"""curl -X POST "https://api.bitinglip.com/v1/inference/image-generation" \
     -H "Authorization: Bearer YOUR_API_KEY" \
     -H "Content-Type: application/json" \
     -d '{
       "model": "stable-diffusion-xl",
       "prompt": "A beautiful sunset over mountains",
       "width": 1024,
       "height": 1024
     }'""",
)

HOSTS = ("http://localhost:8001", "http://localhost:8080", "https://api.bitinglip.com")

#: Where its README and its API reference have their routes.
BASES = ("/api/v1", "/v1")

#: The body of its API reference, which has no curl line for it.
SPEECH = {
    "model": "bark",
    "text": "Hello, welcome to BitingLip AI services!",
    "voice": "speaker_1",
    "language": "en",
    "speed": 1.0,
    "pitch": 1.0,
}


def ask(mesh: TableMesh, line: str) -> tuple[Any, Any]:
    """Run a line, with this mesh's address; return what it sends and what is answered."""
    sent = json.loads(line[line.index("{") : line.rindex("}") + 1])
    for host in HOSTS:
        line = line.replace(host, mesh.origin)
    answer = json.loads(run(line.replace("curl", "curl -sS", 1)))
    assert answer.get("status") == "completed", answer
    assert answer["task_id"]
    assert answer["worker_id"] == "rig"
    assert answer["processing_time"] > 0
    assert answer["created_at"] < answer["completed_at"]
    model = sent.get("model") or sent["model_name"]
    assert answer["result"]["model_used"] == model
    return sent, answer["result"]


def text_generation(mesh: TableMesh) -> None:
    for line in TEXTS:
        sent, result = ask(mesh, line)
        most = sent.get("max_tokens") or sent["max_length"]
        assert 0 < result["tokens_generated"] <= most
        assert result["generated_text"]
        assert result["finish_reason"] in ("stop", "length")


def fetched(url: str) -> bytes:
    """Fetch what an answer says can be fetched, without a key."""
    with urllib.request.urlopen(url, timeout=10) as response:
        return bytes(response.read())


def image_generation(mesh: TableMesh) -> None:
    for line in IMAGES:
        sent, result = ask(mesh, line)
        assert result["steps_completed"] == 50
        (image,) = result["images"]
        shown = Image.open(io.BytesIO(fetched(image["url"])))
        assert shown.size == (image["width"], image["height"]) == (1024, 1024)
        assert image["format"] == "png"
        assert shown.text["prompt"] == sent["prompt"]  # type: ignore[attr-defined]


def text_to_speech(mesh: TableMesh) -> None:
    for base, voice in zip(BASES, ("speaker_0", "speaker_1"), strict=True):
        body = json.dumps(SPEECH | {"voice": voice})
        words = f"-X POST {mesh.origin}{base}/inference/text-to-speech"
        _, result = ask(mesh, f"curl {words} -H 'Content-Type: application/json' -d '{body}'")
        samples, rate = heard(fetched(result["audio_url"]), "wav")
        assert rate == result["sample_rate"]
        assert round(len(samples) / rate, 3) == result["duration"]
        assert result["format"] == "wav"


def image_to_text(mesh: TableMesh) -> None:
    body = {"model": "toy-caption", "image_data": base64.b64encode(DRAWN).decode()}
    for base in BASES:
        answer = mesh.post(f"{base}/inference/image-to-text", **body)
        assert answer["result"]["caption"] == str(SCENES[0])
        assert answer["result"]["image_size"] == [64, 64]


def embeddings(mesh: TableMesh) -> None:
    texts = ["a river in the forest", "we bake bread"]
    with mesh.openai() as client:
        same = client.embeddings.create(model="tiny-embed", input=texts)
    for base in BASES:
        result = mesh.post(f"{base}/inference/embeddings", model="tiny-embed", text=texts)["result"]
        for row, other in zip(result["embeddings"], same.data, strict=True):
            assert len(row) == result["dimensions"]
            assert row == pytest.approx(other.embedding, abs=1e-5)
