"""Rows of pictures and videos: painted, changed, enlarged, filmed, and looked at."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import numpy
import openai
import pytest
from PIL import Image

from tests.mesh.table.mesh import TableMesh, run
from tests.models.make_toy_shapes import Scene, draw

HEART = "a large red heart on a white background"
CIRCLE = "a large blue circle on a yellow background"
QUICK: dict[str, Any] = {"steps": 12, "guidance_scale": 4.0, "seed": 3}

SCHEDULERS = (
    "ddim",
    "ddpm",
    "dpm++2m",
    "dpm++2s",
    "euler",
    "euler-a",
    "heun",
    "lms",
    "kdpm2",
    "kdpm2-a",
    "unipc",
    "dpm++2m-karras",
)

SCENES = (
    Scene("red", "white", "heart", "large"),
    Scene("blue", "yellow", "star", "large"),
    Scene("purple", "orange", "square", ""),
)


def drawn(scene: Scene) -> bytes:
    """Return a file that shows a scene."""
    values = (draw(scene, numpy.random.default_rng(3)) + 1) * 127.5
    file = io.BytesIO()
    Image.fromarray(values.round().clip(0, 255).astype("uint8")).save(file, "PNG")
    return file.getvalue()


DRAWN = drawn(SCENES[0])
URL = f"data:image/png;base64,{base64.b64encode(DRAWN).decode()}"


def pixels(file: bytes) -> Any:
    return numpy.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=float)


def files_of(answer: Any) -> list[bytes]:
    return [base64.b64decode(picture.b64_json) for picture in answer.data]


def apart(one: bytes, other: bytes) -> float:
    """Return how far apart two pictures are, in mean steps of a pixel's 255."""
    return float(abs(pixels(one) - pixels(other)).mean())


def paint(client: openai.OpenAI, prompt: str, **fields: Any) -> list[bytes]:
    n = fields.pop("n", 1)
    return files_of(
        client.images.generate(model="toy-shapes", prompt=prompt, n=n, extra_body=QUICK | fields)
    )


def image(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        first, second = paint(client, CIRCLE, n=2)
        assert paint(client, CIRCLE, seed=4) == [second]  # the same seed, the same file
        assert apart(first, second) > 1
        for file in (first, second):
            seen = mesh.form("/v1/vision/caption", file, model="toy-caption")
            assert seen["text"] == CIRCLE
        assert Image.open(io.BytesIO(first)).text["prompt"] == CIRCLE  # type: ignore[attr-defined]
        stream = client.images.generate(
            model="toy-shapes", prompt=CIRCLE, stream=True, partial_images=2, extra_body=QUICK
        )
        events = list(stream)
        kinds = [event.type.rpartition(".")[2] for event in events]
        assert kinds == ["partial_image", "partial_image", "completed"]
        assert base64.b64decode(events[-1].b64_json) == first
        for format in ("jpeg", "webp"):
            (file,) = paint(client, CIRCLE, output_format=format)
            assert Image.open(io.BytesIO(file)).format == format.upper()
            assert apart(file, first) < 12
        linked = client.images.generate(
            model="toy-shapes", prompt=CIRCLE, response_format="url", extra_body=QUICK
        )
        assert linked.data is not None
        path = str(linked.data[0].url).removeprefix(mesh.origin)
        assert mesh.curl(path) == first


def schedulers(mesh: TableMesh) -> None:
    """All that are promised paint what is asked, each in its own way."""
    with mesh.openai() as client:
        painted = {}
        for name in SCHEDULERS:
            steps = 20 if name.endswith("-karras") else 12
            (painted[name],) = paint(client, CIRCLE, scheduler=name, steps=steps)
            made = Image.open(io.BytesIO(painted[name])).text  # type: ignore[attr-defined]
            assert made["scheduler"] == name
            seen = mesh.form("/v1/vision/caption", painted[name], model="toy-caption")
            assert seen["text"] == CIRCLE, name
        assert len(set(painted.values())) == len(painted)


def additions(mesh: TableMesh) -> None:
    """LoRAs, ControlNets and weights in prompts change a picture, and leave nothing behind."""
    with mesh.openai() as client:
        (plain,) = paint(client, HEART)
        ways: tuple[dict[str, Any], ...] = (
            {"loras": [{"name": "ink", "weight": 0.7}]},
            {"control": {"type": "canny", "image": base64.b64encode(plain).decode()}},
            {"prompt": HEART.replace("red", "(red:0.3)")},
        )
        for way in ways:
            asked = {"prompt": HEART, **way}
            (changed,) = paint(client, **asked)
            assert apart(changed, plain) > 1
            assert paint(client, HEART) == [plain]
            assert paint(client, **asked) == [changed]
        with pytest.raises(openai.BadRequestError, match="'oil'") as caught:
            paint(client, HEART, loras=[{"name": "oil", "weight": 1}])
        body: Any = caught.value.body
        assert body["hint"] == "It has ink."


def policy(mesh: TableMesh) -> None:
    """What nobody may have painted: what the model flags, and a word of the list."""
    with mesh.openai() as client:
        for prompt, says in (("a picture of a grumph", "violence"), ("a Teapot", "'teapot'")):
            with pytest.raises(openai.BadRequestError, match=says) as caught:
                paint(client, prompt)
            assert caught.value.code == "content_policy_violation"


def bad_requests(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        for field, fields, says in (
            ("scheduler", {"scheduler": "magic"}, "euler-a"),
            ("prompt", {"prompt": "a red heart " * 30}, "92"),
            ("size", {"size": "65x65"}, "64x64"),
        ):
            asked: dict[str, Any] = {"prompt": HEART, **fields}
            with pytest.raises(openai.BadRequestError) as caught:
                paint(client, **asked)
            body: Any = caught.value.body
            assert body["param"] == field
            assert says in body["message"] + str(body["hint"])
        cut: Any = ("cut.png", DRAWN[:-200])
        with pytest.raises(openai.BadRequestError, match="cannot be decoded"):
            client.images.edit(model="toy-shapes", image=cut, prompt=HEART)


def edits(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        (source,) = paint(client, HEART)
        (fresh,) = paint(client, CIRCLE)
        edit: dict[str, Any] = {
            "model": "toy-shapes",
            "image": ("heart.png", source),
            "prompt": CIRCLE,
        }
        (edited,) = files_of(client.images.edit(**edit, extra_body=QUICK | {"strength": 0.5}))
        assert 1 < apart(edited, source) < apart(fresh, source)
        mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
        mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
        clear = io.BytesIO()
        mask.save(clear, "PNG")
        painted = client.images.edit(**edit, mask=("mask.png", clear.getvalue()), extra_body=QUICK)
        (changed,) = map(pixels, files_of(painted))
        assert (changed[:, 32:] == pixels(source)[:, 32:]).all()
        assert abs(changed[:, :32] - pixels(source)[:, :32]).mean() > 30
        varied = client.images.create_variation(
            model="toy-shapes", image=("heart.png", source), extra_body=QUICK
        )
        (variation,) = files_of(varied)
        assert 1 < apart(variation, source) < apart(fresh, source)


def upscale(mesh: TableMesh) -> None:
    for route, side in (("upscale", 128), ("enhance", 64)):
        answer = mesh.form(f"/v1/images/{route}", DRAWN, model="doubler")
        (file,) = (base64.b64decode(each["b64_json"]) for each in answer["data"])
        assert pixels(file).shape == (side, side, 3)
        assert answer["size"] == f"{side}x{side}"
    with pytest.raises(AssertionError, match="2 times"):  # curl fails
        mesh.form("/v1/images/upscale", DRAWN, model="doubler", scale=4)
    with pytest.raises(AssertionError, match="model_not_found"):
        mesh.form("/v1/images/upscale", DRAWN, model="toy-shapes")


def caption(mesh: TableMesh) -> None:
    for scene in SCENES:
        seen = mesh.form("/v1/vision/caption", drawn(scene), model="toy-caption")
        assert seen["text"] == str(scene)
        assert seen["usage"]["completion_tokens"] == len(str(scene).split()) + 1


def see(mesh: TableMesh, file: bytes) -> Any:
    """Ask for a caption, whether there will be one or an error."""
    url = f"{mesh.origin}/v1/vision/caption"
    words = ["curl", "-sS", url, "-F", "model=toy-caption", "-F", "image=@-;filename=picture.png"]
    return json.loads(run(words, file))


def bad_pictures_harm_nobody(mesh: TableMesh) -> None:
    bomb = DRAWN[:16] + (2**15).to_bytes(4, "big") * 2 + DRAWN[24:]

    with ThreadPoolExecutor(3) as pool:
        good, cut, large = pool.map(functools.partial(see, mesh), (DRAWN, DRAWN[:-200], bomb))
    assert good["text"] == str(SCENES[0])
    assert "cannot be decoded" in cut["error"]["message"]
    assert (cut["error"]["param"], large["error"]["param"]) == ("image", "image")
    assert "32768 x 32768" in large["error"]["message"]


def question(text: str) -> Any:
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": URL}}]
    return [{"role": "user", "content": parts}]


def chat_with_a_picture(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        how: dict[str, Any] = {"model": "llava", "max_tokens": 12, "seed": 3, "temperature": 1.5}
        asked = question("What is it?")
        whole = client.chat.completions.create(messages=asked, **how)
        assert whole.usage is not None
        assert whole.usage.prompt_tokens > 16  # the picture's own
        stream = client.chat.completions.create(messages=asked, stream=True, **how)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        assert len(pieces) > 3
        with pytest.raises(openai.BadRequestError, match="tiny-chat reads text only") as caught:
            client.chat.completions.create(model="tiny-chat", messages=asked)
        body: Any = caught.value.body
        assert (body["code"], body["param"]) == ("unsupported_field", "messages.0.content")


def going_away(mesh: TableMesh) -> None:
    def chat(**fields: Any) -> Any:
        return client.chat.completions.create(model="llava", messages=question("x"), **fields)

    with mesh.openai() as client:
        stream = chat(stream=True, max_tokens=400, logit_bias={"2": -100})
        assert any(chunk.choices and chunk.choices[0].delta.content for chunk in stream)
        stream.close()
        mesh.ended()  # on a busy machine it may have come to its 400 tokens first
        # the slot, the only one, is free
        assert chat(max_tokens=2).choices[0].finish_reason in ("length", "stop")


def detection(mesh: TableMesh) -> None:
    found = mesh.form("/v1/vision/detect", DRAWN, model="yolos", threshold=0)
    assert (found["width"], found["height"]) == (64, 64)
    kinds = {row["id"]: row["kinds"] for row in mesh.get("/v1/models")["data"]}
    assert (kinds["llava"], kinds["yolos"]) == (["caption", "chat"], ["detection"])
    assert len(found["objects"]) == 5
    scores = [each["score"] for each in found["objects"]]
    assert scores == sorted(scores, reverse=True)
    for each in found["objects"]:
        assert each["box"]["xmin"] <= each["box"]["xmax"] <= 64


def image_classification(mesh: TableMesh) -> None:
    named = mesh.form("/v1/vision/classify", DRAWN, model="clip", labels="a heart,a star")
    assert {each["label"] for each in named["labels"]} == {"a heart", "a star"}
    assert sum(each["score"] for each in named["labels"]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(AssertionError, match="labels"):  # curl fails
        mesh.form("/v1/vision/classify", DRAWN, model="clip")


def depth(mesh: TableMesh) -> None:
    found = mesh.form("/v1/vision/depth", DRAWN, model="dpt")
    gray = numpy.asarray(Image.open(io.BytesIO(base64.b64decode(found["b64_json"]))))
    assert gray.shape == (64, 64)
    assert gray.dtype == numpy.uint16
    assert gray.min() == 0 < gray.max() == 65535
    assert found["min"] < found["max"]


def segmentation(mesh: TableMesh) -> None:
    cut = mesh.form("/v1/vision/segment", DRAWN, model="segformer")
    assert sum(part["area"] for part in cut["segments"]) == 64 * 64
    for part in cut["segments"]:
        mask = pixels(base64.b64decode(part["b64_json"]))
        assert (mask[..., 0] > 127).sum() == part["area"]


def video(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        made = client.videos.create_and_poll(
            model="ltx",
            prompt="a red circle",
            size="64x32",  # type: ignore[arg-type]
            input_reference=("first.png", DRAWN),
            poll_interval_ms=20,
            extra_body={"steps": 3, "seed": 3, "num_frames": 9},
        )
        assert made.error is None
        assert (made.seconds, made.seed) == ("0.36", 3)  # type: ignore[attr-defined]
        assert (made.status, made.progress, made.size) == ("completed", 100, "64x32")
        content = client.videos.download_content(made.id).content
        with av.open(io.BytesIO(content)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert [frame.shape for frame in frames] == [(32, 64, 3)] * 9
        assert all((one != other).any() for one, other in itertools.pairwise(frames))
        assert [each.id for each in client.videos.list()] == [made.id]
        client.videos.delete(made.id)
        assert [each.id for each in client.videos.list()] == []


def pipelines(mesh: TableMesh) -> None:
    picture = base64.b64encode(DRAWN).decode()

    def ask(task: str, model: str, **parameters: Any) -> Any:
        body = {"model": model, "inputs": picture, "parameters": parameters}
        (found,) = mesh.post(f"/v1/pipelines/{task}", **body)["results"]
        return found

    labels = {"candidate_labels": ["a heart", "a star"]}
    assert ask("image-to-text", "toy-caption")["generated_text"] == str(SCENES[0])
    for found in (
        ask("image-classification", "vit", top_k=1000),
        ask("zero-shot-image-classification", "clip", **labels),
    ):
        assert sum(each["score"] for each in found) == pytest.approx(1, abs=1e-4)
    for found in (
        ask("object-detection", "yolos", threshold=0.01),
        ask("zero-shot-object-detection", "owlvit", threshold=0.01, **labels),
    ):
        assert found
        assert {"xmin", "ymin", "xmax", "ymax"} == set(found[0]["box"])
    depth = Image.open(io.BytesIO(base64.b64decode(ask("depth-estimation", "dpt")["depth"])))
    assert depth.size == (64, 64)
    for part in ask("image-segmentation", "segformer"):
        mask = Image.open(io.BytesIO(base64.b64decode(part["mask"])))
        assert mask.size == (64, 64)
    features = numpy.array(ask("image-feature-extraction", "vit-eyes"))
    assert features.ndim == 2
    assert features.std() > 0
