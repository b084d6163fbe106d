"""``blip bench text`` with real models and a real mesh. Nothing here looks at how fast it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blip.bench import text
from blip.bench.speed import Request
from blip.cli import FAILURE
from blip.config import load
from blip.errors import RuntimeFailed

TINY_CHAT = str(Path(__file__).parents[1] / "models" / "tiny-chat")


def short(company: int, vocabulary: int) -> list[Request]:
    return [([3 + number, 7, 9], 4 + number % 3) for number in range(max(3, 2 * company))]


@pytest.fixture(autouse=True)
def _short_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "requests_of", short)


@pytest.mark.timeout(120)
def test_all_three_ways(capsys: pytest.CaptureFixture[str]) -> None:
    code = text.main(
        model=TINY_CHAT, rounds=1, companies=[1, 4], as_json=True, config=load(search=False).config
    )
    out, err = capsys.readouterr()
    assert code == 0, err
    found = json.loads(out)
    assert found["model"]["batched"] is True
    assert found["model"]["vocabulary"] == 448
    for company, requests in (("1", short(1, 0)), ("4", short(4, 0))):
        case = found["cases"][company]
        assert case["differing"] == 0
        tokens = sum(tokens for _, tokens in requests)
        assert case["runtime"]["tokens"] == case["mesh"]["tokens"] == tokens
        assert case["alone"]["tokens"] == sum(tokens for _, tokens in requests[: text.ALONE])
        for way in ("alone", "runtime", "mesh"):
            # tokens that came in one piece are no time apart, as a busy machine delivers them
            assert 0 <= case[way]["gap"] <= case[way]["gap_p99"]
        assert case["alone"]["gap"] > 0
        assert case["speedup"][1] > 0
        assert case["mesh"]["cpu"] > 0
    assert [aim["unit"] for aim in found["aims"]] == ["ms"]


@pytest.mark.timeout(120)
def test_a_random_llama_without_a_mesh_and_a_wrong_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = text.Torch.visit

    async def lie(self: text.Torch, requests: list[Request], company: int) -> object:
        times, ids = await visit(self, requests, company)
        return times, [[0]] * len(ids) if company else ids

    config = load(search=False).config
    assert text.main(rounds=1, companies=[2], mesh=False, config=config) == 0
    out, _ = capsys.readouterr()
    for words in ("28 million parameters", "x generate", "2 at a time"):
        assert words in out
    assert "CPU" not in out
    monkeypatch.setattr(text.Torch, "visit", lie)
    assert text.main(rounds=1, companies=[2], mesh=False, config=config) == FAILURE
    assert "4 answers of the runtime were not those of generate" in capsys.readouterr().err


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match="the process with the model ended"):
        text.main(model=str(tmp_path / "nothing"), config=load(search=False).config)
