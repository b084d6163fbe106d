"""Video routes with the real ``openai`` client, and the jobs behind them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.errors import NodeLost, NotFound, Overloaded, RuntimeFailed
from blip.gateway.jobs import ENDED, HISTORY, TRANSITIONS, Event, Job, Jobs, Status
from blip.gateway.mesh import Answer
from blip.gateway.settings import GatewaySettings
from blip.kinds import input_from_wire, input_to_wire
from blip.kinds.image import Step, step_to_wire
from blip.kinds.video import VIDEO, VideoInput
from tests.unit.gateway_mesh import MemoryMesh, Work, failing, mesh, mp4, png, served

# OpenAI means to switch its own Videos API off, and its client says so at every call
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

HEART = "a red heart that beats"


@contextlib.asynccontextmanager
async def client_of(
    backend: MemoryMesh, settings: GatewaySettings | None = None, key: str = "none"
) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        served(backend, settings) as origin,
        openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


@pytest.fixture
def backend() -> MemoryMesh:
    return mesh()


@pytest.fixture
async def client(backend: MemoryMesh) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(backend) as made:
        yield made


async def polled(client: openai.AsyncOpenAI, **fields: Any) -> Any:
    asked: dict[str, Any] = {"model": "wan", "prompt": HEART, "poll_interval_ms": 10, **fields}
    return await client.videos.create_and_poll(**asked)


# --- with OpenAI's client -------------------------------------------------------------------


async def test_create_poll_and_download(client: openai.AsyncOpenAI, backend: MemoryMesh) -> None:
    ours = {
        "negative_prompt": "blue",
        "steps": 4,
        "guidance_scale": 2.5,
        "seed": 7,
        "scheduler": "unipc",
        "fps": 12,
        "output_format": "mp4",
    }
    video = await polled(
        client,
        seconds="4",
        size="1280x720",
        input_reference=("first.png", png(8, 8)),
        extra_body=ours,
    )
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert (video.seconds, video.size, video.prompt) == ("4", "1280x720", HEART)
    assert (video.seed, video.fps, video.num_frames) == (7, 12, 48)
    assert video.content_type == "video/mp4"
    assert video.created_at <= video.completed_at < video.expires_at
    content = await client.videos.download_content(video.id)
    assert content.content == mp4(7)
    assert content.response.headers["Content-Type"] == "video/mp4"
    assert f'filename="{video.id}.mp4"' in content.response.headers["Content-Disposition"]
    sent = input_from_wire(VIDEO, input_to_wire(backend.inputs[0]))
    assert sent == VideoInput(
        prompt=HEART,
        negative_prompt="blue",
        width=1280,
        height=720,
        seconds=4.0,
        fps=12,
        steps=4,
        guidance_scale=2.5,
        seed=7,
        scheduler="unipc",
        image=png(8, 8),
        progress=True,
        format="mp4",
    )
    # anyone who has the address may fetch it
    async with (
        aiohttp.ClientSession() as http,
        http.get(video.url, headers={"Range": "bytes=4-11"}) as response,
    ):
        assert (response.status, await response.read()) == (206, b"ftypisom")


async def test_deleting(client: openai.AsyncOpenAI, backend: MemoryMesh) -> None:
    video = await polled(client)
    gone = await client.videos.delete(video.id)
    assert (gone.id, gone.deleted, gone.object) == (video.id, True, "video.deleted")
    for call in (client.videos.retrieve, client.videos.download_content, client.videos.delete):
        with pytest.raises(openai.NotFoundError):
            await call(video.id)
    async with aiohttp.ClientSession() as http, http.get(video.url) as response:
        assert response.status == 404


async def test_deleting_stops_what_is_under_way(
    client: openai.AsyncOpenAI, backend: MemoryMesh
) -> None:
    video = await client.videos.create(model="silent", prompt=HEART)
    assert (video.status, video.progress, video.seconds) == ("queued", 0, "auto")
    assert not backend.calls[0].cancelled
    await client.videos.delete(video.id)
    await asyncio.wait_for(backend.calls[0].ended.wait(), 10)
    assert backend.calls[0].cancelled


async def test_progress(client: openai.AsyncOpenAI, backend: MemoryMesh) -> None:
    go = asyncio.Event()

    async def halfway(value: Any) -> Work:
        yield step_to_wire(Step(2, 4))
        await go.wait()
        yield step_to_wire(Step(1, 4))  # another node began again
        go.clear()
        await go.wait()
        yield Answer(mp4(0), {"frames": 9, "fps": 8, "width": 32, "height": 32}, 1.0)

    backend.nodes_by_model["halfway"] = halfway
    video = await client.videos.create(model="halfway", prompt=HEART)

    async def until(progress: int) -> Any:
        while True:
            found = await client.videos.retrieve(video.id)
            if found.progress == progress:
                return found
            await asyncio.sleep(0.005)

    assert (await until(50)).status == "in_progress"
    with pytest.raises(openai.BadRequestError, match="nothing to fetch"):
        await client.videos.download_content(video.id)
    go.set()
    assert (await until(25)).status == "in_progress"
    go.set()
    done = await until(100)
    assert (done.status, done.seconds, done.size) == ("completed", "1.12", "32x32")


async def test_failures(client: openai.AsyncOpenAI, backend: MemoryMesh) -> None:
    backend.nodes_by_model["nan"] = failing(RuntimeFailed("NaN", hint="Use bfloat16."))
    video = await polled(client, model="nan")
    assert video.status == "failed"
    assert video.error.code == "runtime_failed"
    assert video.error.message == "NaN"
    assert video.error.hint == "Use bfloat16."
    with pytest.raises(openai.BadRequestError, match="failed"):
        await client.videos.download_content(video.id)

    async def nonsense(value: Any) -> Work:
        yield Answer(b"%PDF", {}, 1.0)

    async def no_step(value: Any) -> Work:
        yield b"\xc1"

    backend.nodes_by_model |= {"nonsense": nonsense, "no-step": no_step}
    assert "no video" in (await polled(client, model="nonsense")).error.message
    assert (await polled(client, model="no-step")).error.code == "internal_error"
    with pytest.raises(openai.NotFoundError, match="nobody"):
        await polled(client, model="nobody")


async def test_a_gateway_of_several_processes_takes_none(backend: MemoryMesh) -> None:
    async with client_of(backend, GatewaySettings(processes=2)) as client:
        with pytest.raises(openai.InternalServerError, match="this gateway has 2") as caught:
            await polled(client)
    assert caught.value.code == "unavailable"
    assert backend.calls == []


async def test_a_video_too_large_to_keep(backend: MemoryMesh) -> None:
    async with client_of(backend, GatewaySettings(results_bytes=1000)) as client:
        video = await polled(client)
    assert video.error.code == "payload_too_large"


async def test_a_video_that_went_is_told(backend: MemoryMesh) -> None:
    async with client_of(backend, GatewaySettings(results_count=1)) as client:
        first, second = await polled(client), await polled(client)
        assert (await client.videos.retrieve(first.id)).url is None  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError, match="not kept"):
            await client.videos.download_content(first.id)
        assert (await client.videos.download_content(second.id)).content


async def test_lists_in_pages(client: openai.AsyncOpenAI) -> None:
    made = [(await client.videos.create(model="wan", prompt=str(n))).id for n in range(5)]
    assert [video.id async for video in client.videos.list(limit=2)] == made[::-1]
    assert [video.id async for video in client.videos.list(limit=2, order="asc")] == made
    page = await client.videos.list(after=made[1])
    assert [video.prompt for video in page.data] == ["0"]
    assert page.has_more is False
    for wrong in ({"limit": 101}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError, match=next(iter(wrong))):
            await client.videos.list(extra_query=wrong)
    with pytest.raises(openai.NotFoundError):
        await client.videos.list(after="video_1")


async def test_everyone_sees_his_own_and_has_his_own_limit(backend: MemoryMesh) -> None:
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("anna", "bert")}
    settings = GatewaySettings(api_keys=keys, video_jobs=2)
    async with client_of(backend, settings, "anna") as anna:
        bert = anna.with_options(api_key="bert")
        videos = [await anna.videos.create(model="silent", prompt="x") for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="one key may have 2"):
            await anna.videos.create(model="silent", prompt="x")
        assert [video async for video in bert.videos.list()] == []
        with pytest.raises(openai.NotFoundError):
            await bert.videos.retrieve(videos[0].id)
        with pytest.raises(openai.NotFoundError):
            await bert.videos.delete(videos[0].id)
        await bert.videos.create(model="silent", prompt="x")
        await anna.videos.delete(videos[0].id)
        await anna.videos.create(model="silent", prompt="x")
    assert {options.tenant for options in backend.options} == {"anna", "bert"}
    assert all(options.timeout == 3600 for options in backend.options)
    # the gateway has ended, and everything with it
    assert all(call.cancelled for call in backend.calls)


# --- bodies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"seconds": "soon"}, "seconds", "number"),
        ({"seconds": "0"}, "seconds", "above 0"),
        ({"seconds": 121}, "seconds", "120"),
        ({"seconds": "4", "num_frames": 9}, "num_frames", "both"),
        ({"size": "1x1"}, "size", "512x512"),
        ({"size": "4096x4096", "num_frames": 900}, "size", "pixels"),
        ({"input_reference": {"image_url": "http://x/y.png"}}, "input_reference", "data"),
        ({"input_reference": {"image_url": "data:image/png;base64,!"}}, None, "not base64"),
        ({"input_reference": {"file_id": "file-1"}}, "input_reference", "base64"),
        (
            {"input_reference": {"image_url": "data:image/png;base64,AAAA"}},
            "input_reference",
            "not a PNG",
        ),
        ({"output_format": "avi"}, "output_format", "mp4"),
        ({"step": 4}, "step", "steps"),
    ],
)
async def test_bad_bodies(
    backend: MemoryMesh, fields: dict[str, Any], param: Any, says: str
) -> None:
    async with (
        served(backend) as origin,
        aiohttp.ClientSession(origin) as http,
        http.post("/v1/videos", json={"model": "wan", "prompt": "x", **fields}) as response,
    ):
        error = (await response.json())["error"]
        assert response.status == 400
    assert param in (error["param"], None)
    assert says in error["message"] + str(error["hint"])
    assert backend.calls == []


async def test_json_bodies(backend: MemoryMesh) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png(8, 8)).decode()}"
    body = {"model": "wan", "prompt": "x", "seconds": 1.5, "input_reference": {"image_url": url}}
    async with (
        served(backend) as origin,
        aiohttp.ClientSession(origin) as http,
        http.post("/v1/videos", json=body, headers={"X-Blip-Priority": "2"}) as response,
    ):
        assert response.status == 200
        assert (await response.json())["seconds"] == "1.5"
        assert response.headers["X-Blip-Task"] == backend.calls[0].task_id
    assert backend.inputs[0].image == png(8, 8)
    assert backend.inputs[0].seed is not None
    assert backend.options[0].priority == 2


async def test_variants(client: openai.AsyncOpenAI) -> None:
    video = await polled(client)
    with pytest.raises(openai.BadRequestError, match="thumbnail"):
        await client.videos.download_content(video.id, variant="thumbnail")


# --- jobs, pure ------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(Event), max_size=8))
def test_a_job_ends_once(events: list[Event]) -> None:
    job = Job("video_1", "", "m", 0)
    for event in events:
        before, was = job.ended, job.status
        if event is Event.STEP:
            moved = job.step(3, 4)
        elif event is Event.DONE:
            moved = job.done(1.0, 2)
        else:
            moved = job.fail(NodeLost("gone"))
        assert moved is not before
        assert job.status is (TRANSITIONS[was, event] if moved else was)
        assert (job.progress == 100) is (job.status is Status.COMPLETED)
        assert (job.error is not None) is (job.status is Status.FAILED)


def test_the_table_leads_somewhere_and_never_out_of_an_end() -> None:
    assert {state for state, _ in TRANSITIONS} == set(Status) - ENDED
    assert set(TRANSITIONS.values()) == set(Status) - {Status.QUEUED}


def test_a_gateway_forgets_the_oldest_that_have_ended() -> None:
    jobs = Jobs(2)
    for number in range(HISTORY + 5):
        jobs.check("anna")
        job = Job(f"video_{number}", "anna", "m", number)
        jobs.add(job)
        job.done(0, 0)
    jobs.add(Job("other", "bert", "m", 0))
    jobs.add(Job("last", "anna", "m", 0))
    assert len(jobs) == HISTORY + 2
    with pytest.raises(NotFound):
        jobs.get("video_4", "anna")
    assert jobs.get("video_5", "anna")
    jobs.add(Job("more", "anna", "m", 0))
    with pytest.raises(Overloaded):
        jobs.check("anna")
    jobs.remove("more")
    jobs.check("anna")
