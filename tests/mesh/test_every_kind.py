"""Every kind of model through HTTP, by real clients, over one mesh; outputs checked for meaning."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from blip.kinds import KINDS
from blip.kinds.transcription import TRANSLATION
from tests.mesh.table import original, others, pictures, sounds, text
from tests.mesh.table.mesh import TableMesh, missing

pytestmark = [
    pytest.mark.timeout(180),  # whichever test is first waits for the mesh
    # OpenAI means to end these two, and its client says so at every call
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning"),
]

#: What is promised, and what asks for it. Rows that need packaged models name them.
ROWS: tuple[tuple[str, Callable[[TableMesh], None], tuple[str, ...]], ...] = (
    ("chat, OpenAI's client", text.chat, ()),
    ("chat, a model that people use", text.chat_of_a_larger_model, ("smollm2",)),
    ("chat: too long a prompt", text.chat_that_is_too_long, ()),
    ("chat: JSON by schema, tools", text.forms_and_tools, ()),
    ("chat with a picture", pictures.chat_with_a_picture, ()),
    ("completion", text.completion, ()),
    ("responses", text.responses, ()),
    ("messages, Anthropic's client", text.messages, ()),
    ("chat, generate, embed, tags: Ollama's client", text.ollamas, ()),
    ("going away", text.going_away, ()),
    ("embedding", text.embedding, ()),
    ("embedding, a model that fills masks", others.embedding_of_a_masked_model, ()),
    ("rerank", text.rerank, ()),
    ("image", pictures.image, ()),
    ("image: schedulers", pictures.schedulers, ()),
    ("image: LoRA, ControlNet, weights", pictures.additions, ()),
    ("image: bad requests", pictures.bad_requests, ()),
    ("image: edits, mask, variations", pictures.edits, ()),
    ("upscale, enhance", pictures.upscale, ()),
    ("transcription", sounds.transcription, ()),
    ("transcription: bad sounds", sounds.bad_sounds, ()),
    ("speech", sounds.speech, ()),
    ("speech: bad texts", sounds.bad_texts, ()),
    ("speech, transcription, translation", sounds.a_voice_is_heard, ("joe", "whisper")),
    ("caption", pictures.caption, ()),
    ("caption: bad pictures", pictures.bad_pictures_harm_nobody, ()),
    ("caption, chat: going away", pictures.going_away, ()),
    ("detection", pictures.detection, ()),
    ("image-classification", pictures.image_classification, ()),
    ("depth", pictures.depth, ()),
    ("segmentation", pictures.segmentation, ()),
    ("pipelines: text-classification", others.labels, ()),
    ("pipelines: zero-shot-classification", others.zero_shot, ()),
    ("pipelines: token-classification", others.named, ()),
    ("pipelines: fill-mask", others.fill_mask, ()),
    ("pipelines: question-answering", others.question_answering, ()),
    ("pipelines: summarization, translation, text2text", others.written, ()),
    ("pipelines: audio-classification", sounds.sorted_sounds, ()),
    ("pipelines: sounds, other names", sounds.pipelines, ()),
    ("pipelines: pictures, other names", pictures.pipelines, ()),
    ("pipelines: bad texts", others.bad_texts, ()),
    ("pipelines: feature-extraction", others.features, ()),
    ("safety: moderation", others.moderation, ()),
    ("safety: policy", pictures.policy, ()),
    ("video", pictures.video, ()),
    ("yours", others.your_kind, ()),
    ("echo", others.echo, ()),
    ("BitingLip's text-generation", original.text_generation, ()),
    ("BitingLip's image-generation", original.image_generation, ()),
    ("BitingLip's text-to-speech", original.text_to_speech, ()),
    ("BitingLip's image-to-text", original.image_to_text, ()),
    ("BitingLip's embeddings", original.embeddings, ()),
)

#: Rows that were asked and as promised.
passed: set[str] = set()


@pytest.fixture(scope="module")
def mesh() -> Iterator[TableMesh]:
    with tempfile.TemporaryDirectory(prefix="blip-table-") as folder:
        made = TableMesh(Path(folder))
        try:
            made.wait()
            yield made
        finally:
            made.close()


def packages_missing(name: str) -> list[str]:
    return [each for row in ROWS if row[0] == name for model in row[2] for each in missing(model)]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, id=name, marks=[pytest.mark.models] if needs else [])
        for name, check, needs in ROWS
    ],
)
def test_row(mesh: TableMesh, name: str, check: Callable[[TableMesh], None]) -> None:
    if absent := packages_missing(name):
        pytest.skip(f"not installed: {', '.join(absent)}")
    check(mesh)
    passed.add(name)


def runs_tasks(methods: Any) -> bool:
    headers = methods.get("post", {}).get("parameters", [])
    return any(header.get("name") == "X-Blip-Priority" for header in headers)


def test_nothing_was_left_out(mesh: TableMesh) -> None:
    """The gateway itself says which routes and kinds have been answered."""
    left = {name for name, _, _ in ROWS} - passed
    if not all(map(packages_missing, left)):
        pytest.skip("not every row was asked")
    routes, kinds = set(), set()
    if left:  # only a packaged model translates what it hears
        routes, kinds = {"/v1/audio/translations"}, {TRANSLATION.name}
    for family in text_string_to_metric_families(mesh.text("/metrics")):
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "blip_http_request_seconds_count" and labels["status"] == "200":
                routes.add(labels["route"])
            if sample.name == "blip_tasks_total" and labels["outcome"] == "succeeded":
                kinds.add(labels["kind"])
    assert set(KINDS) | {"wordcount"} <= kinds
    described = mesh.get("/openapi.json")["paths"]
    assert {path for path, methods in described.items() if runs_tasks(methods)} <= routes
