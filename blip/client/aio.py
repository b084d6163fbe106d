"""The asyncio client."""

from __future__ import annotations

from blip.client.echo import EchoClient
from blip.client.hearing import HearingClient
from blip.client.images import ImageClient
from blip.client.kinds import KindsClient
from blip.client.mesh import MeshClient
from blip.client.operations import OperationsClient
from blip.client.pipelines import PipelineClient
from blip.client.safety import SafetyClient
from blip.client.speech import SpeechClient
from blip.client.text import TextClient
from blip.client.upscale import UpscaleClient
from blip.client.videos import VideoClient
from blip.client.vision import VisionClient


class AsyncBlip(
    MeshClient,
    TextClient,
    ImageClient,
    SpeechClient,
    HearingClient,
    VisionClient,
    PipelineClient,
    UpscaleClient,
    VideoClient,
    SafetyClient,
    KindsClient,
    EchoClient,
    OperationsClient,
):
    """A gateway's clients' side. Use it as a context manager, or ``close()`` it.

    ``url`` and ``api_key`` default to ``$BLIP_URL`` (else this machine's gateway) and
    ``$BLIP_API_KEY``. ``timeout`` is the longest wait in seconds for a whole answer, or for the
    next piece of a stream. Methods raise :class:`~blip.errors.BlipError`: the mesh's own errors
    under their own classes, and :class:`~blip.client.GatewayUnreachable`.

    Sampling options of ``chat``, ``complete`` and their streams are passed on under OpenAI's names
    (``max_tokens``, ``temperature``, ``top_p``, ``seed``, ``stop``, ...); None leaves one out.

    Whatever runs a task takes ``priority`` (1, the most urgent, to 10), ``deadline`` (seconds from
    now by which it must be done) and ``require``, which says what the device must be:
    ``{"vendor": "nvidia", "memory": "24GiB"}`` or ``"vendor=nvidia; memory>=24GiB"``.
    """
