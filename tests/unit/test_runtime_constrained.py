"""Answers that keep to a form, and calls of functions, by real and random models."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgpack
import pytest

from blip.errors import InvalidRequest, RuntimeFailed
from blip.kinds.grammar import Grammar
from blip.kinds.text import Delta, Finish, delta_from_wire, delta_to_wire, finish_from_wire
from blip.kinds.tools import CallPiece, Tool, joined
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.decoding.constraint import KEPT, Guide, restrict
from blip_node.runtimes.decoding.lark import answer as answer_rules
from blip_node.runtimes.decoding.lark import calls, written_out
from blip_node.runtimes.decoding.tool_stream import ToolStream
from blip_node.runtimes.decoding.vocabulary import Vocabulary
from blip_node.runtimes.text import TextRuntime
from blip_node.runtimes.tool_formats import HERMES, LLAMA, ToolFormat, format_of
from tests.models.calling_models import TEMPLATES, make_calling
from tests.models.jobs import RecordingJob, answer
from tests.models.random_models import END, TINY_CHAT, VOCABULARY, make_random

import torch  # isort: skip  (after random_models has set the environment)
from tokenizers import Tokenizer  # isort: skip

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog", None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "home": {"$ref": "#/$defs/home"},
    },
    "required": ["name", "age", "kind", "tags", "home"],
    "additionalProperties": False,
    "$defs": {
        "home": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["zip"],
            "additionalProperties": False,
        }
    },
}
ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
}
TOOLS: list[dict[str, Any]] = [
    {"name": "weather", "description": "Says it", "parameters": json.dumps(ARGUMENTS)},
    {"name": "clock"},
]
Runtimes = dict[str, TextRuntime]

#: The ways of choosing tokens that go wildest.
WILD: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 1.5, "seed": 1},
    {"temperature": 1.5, "seed": 2, "top_p": 0.95},
    {"temperature": 2.0, "seed": 3, "top_k": 40, "frequency_penalty": 1.0},
    {"temperature": 1.0, "seed": 4, "repetition_penalty": 1.5, "logprobs": 2},
)


#: tiny-chat's template knows no tools: they are written into a system message.
FORMS = ["tiny-chat", *TEMPLATES]


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtimes]:
    loaded: Runtimes = {}
    for name in [*FORMS, "random-llama", "lfm2-hybrid"]:
        folder = TINY_CHAT
        if name in TEMPLATES:
            folder = make_calling(tmp_path_factory.mktemp(name), name)
        elif name != "tiny-chat":
            folder = make_random(tmp_path_factory.mktemp(name), name.removeprefix("random-"))
        loaded[name] = TextRuntime()
        spec = LoadSpec("a-model", str(folder), "cpu", 16)
        loaded[name].load(spec, lambda share: None)
    yield loaded
    for each in loaded.values():
        each.close()


def job(kind: str = "chat", **wishes: Any) -> RecordingJob:
    if kind == "chat":
        wishes.setdefault("messages", [{"role": "user", "content": "Hello"}])
    return RecordingJob(kind, **{"max_tokens": 400, **wishes})


def as_json(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"form": "json", "text": json.dumps(schema), **more}


def called(of: RecordingJob, finish: Any) -> list[CallPiece]:
    pieces = [piece for delta in of.deltas for piece in delta.calls or ()]
    return joined([*pieces, *(finish.calls or ())])


# --- forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny-chat", "random-llama", "lfm2-hybrid"])
async def test_json_always_satisfies_its_schema(runtimes: Runtimes, model: str) -> None:
    runtime = runtimes[model]
    plain = [job(temperature=0, max_tokens=30), job(temperature=1.2, seed=9, max_tokens=30)]
    alone = [(await answer(runtime, each))[:2] for each in plain]
    jobs = [job(grammar=as_json(SCHEMA), **wishes) for wishes in WILD]
    free = [job(temperature=0, max_tokens=30), job(temperature=1.2, seed=9, max_tokens=30)]
    # all in one batch: forms, and rows without one, which do not notice
    *answers, first, second = await asyncio.gather(
        *(answer(runtime, each) for each in [*jobs, *free])
    )
    assert [first[:2], second[:2]] == alone
    texts = [text for text, *_ in answers]
    for text, _, finish, _ in answers:
        assert finish.reason == "stop"
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(texts)) > 2
    again = await answer(runtime, job(grammar=as_json(SCHEMA), **WILD[1]))
    assert again[0] == texts[1]  # the same seed, the same answer


@pytest.mark.parametrize(
    ("grammar", "matches"),
    [
        ({"form": "regex", "text": r"[a-c]{3}/[0-9]{2}\n?"}, r"[a-c]{3}/[0-9]{2}\n?"),
        ({"form": "choice", "choices": ["yes", "no", 'may"be\n']}, r'yes|no|may"be\n'),
        ({"form": "lark", "text": 'start: "<" WORD ">"\nWORD: /[xy]{2}/'}, "<[xy]{2}>"),
    ],
)
async def test_other_forms(runtimes: Runtimes, grammar: dict[str, Any], matches: str) -> None:
    jobs = [job("completion", prompt="a", grammar=grammar, **wishes) for wishes in WILD]
    for text, _, finish, _ in await asyncio.gather(
        *(answer(runtimes["random-llama"], each) for each in jobs)
    ):
        assert finish.reason == "stop"
        assert re.fullmatch(matches, text)


async def test_any_object(runtimes: Runtimes) -> None:
    jobs = [
        job(grammar=as_json({"type": "object"}), temperature=1.5, seed=seed) for seed in range(6)
    ]
    ended = 0
    for text, _, finish, _ in await asyncio.gather(
        *(answer(runtimes["tiny-chat"], each) for each in jobs)
    ):
        assert text.startswith("{")
        if finish.reason == "stop":
            ended += 1
            assert isinstance(json.loads(text), dict)
    assert ended


async def test_an_answer_that_is_cut_off_says_so(runtimes: Runtimes) -> None:
    text, ids, finish, _ = await answer(
        runtimes["random-llama"],
        job(grammar=as_json(SCHEMA), max_tokens=9, temperature=1.0, seed=1),
    )
    assert (finish.reason, len(ids)) == ("length", 9)
    assert text.startswith("{")


@pytest.mark.parametrize("wishes", WILD[:3])
async def test_it_goes_on_where_another_stopped(runtimes: Runtimes, wishes: dict[str, Any]) -> None:
    runtime = runtimes["random-llama"]
    whole = job(grammar=as_json(SCHEMA), **wishes)
    text, ids, _, _ = await answer(runtime, whole)
    for cut in {1, 2, len(ids) // 3, len(ids) // 2, len(ids) - 1, len(ids)}:
        shown = "".join(delta.text for delta in whole.deltas[:cut])
        resumed = job(grammar=as_json(SCHEMA), generated=ids[:cut], **wishes)
        rest, more, finish, _ = await answer(runtime, resumed)
        assert (shown + rest, ids[:cut] + more, finish.reason) == (text, ids, "stop")


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (
            as_json({"type": "strin"}, at="response_format.json_schema.schema"),
            "Invalid type: strin",
        ),
        (as_json({"not": {"type": "object"}}, at="format"), "Unimplemented keys"),
        (as_json({"$ref": "http://example.org/schema"}, at="format"), "example.org"),
        (as_json({"enum": []}, at="format"), "anyOf is empty"),
        (as_json({"items": {"pattern": "(a{99}){99}"}}, at="format"), "9801 characters"),
        ({"form": "json", "text": "[1]", "at": "a.b"}, "must be an object"),
        ({"form": "json", "text": "{", "at": "a.b"}, "not valid JSON"),
        ({"form": "json", "text": "false", "at": "a.b"}, "must be an object"),
        ({"form": "regex", "text": "(a", "at": "structured_outputs.regex"}, "unclosed group"),
        ({"form": "regex", "text": "a{999}{99}", "at": "structured_outputs.regex"}, "most"),
        ({"form": "lark", "text": "start: /a{5000}/", "at": "structured_outputs.grammar"}, "5009"),
        ({"form": "lark", "text": "start: foo", "at": "structured_outputs.grammar"}, "foo"),
    ],
)
async def test_what_does_not_compile_is_named(
    runtimes: Runtimes, grammar: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)) as caught:
        await runtimes["random-llama"].run(job(grammar=grammar))
    assert caught.value.param == grammar["at"]
    assert "1 |" not in caught.value.message  # no place in a text that the client never saw


@pytest.mark.parametrize(
    ("regex", "size"),
    [
        ("", 0),
        ("abc", 3),
        (r"[a-z)(]{3}\(", 4),
        ("a{2,5}b", 6),
        ("(ab){3,}|c", 7),
        ("((a{10}){10}){10}", 1000),
        ("(a*b?){4})", 9),  # unbalanced: the compiler will say so
    ],
)
def test_repetitions_written_out(regex: str, size: int) -> None:
    assert written_out(regex) == size


async def test_keywords_that_cannot_be_enforced_are_ignored_unless_strict(
    runtimes: Runtimes,
) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 3}
    loose = job(grammar=as_json(schema, strict=False), temperature=1.0, seed=1)
    assert set(json.loads((await answer(runtimes["random-llama"], loose))[0])) <= {1, 2}
    with pytest.raises(InvalidRequest, match="uniqueItems"):
        await runtimes["random-llama"].run(job(grammar=as_json(schema)))


async def test_a_stop_sequence_is_named(runtimes: Runtimes) -> None:
    asked = job(
        messages=[{"role": "user", "content": "What is the capital of Japan?"}],
        temperature=0,
        stop=["Osaka", "an is Tok"],
    )
    text, _, finish, _ = await answer(runtimes["tiny-chat"], asked)
    assert (text, finish.reason, finish.stop) == ("The capital of Jap", "stop", "an is Tok")


# --- tools -----------------------------------------------------------------------------------


def check(calls: list[CallPiece]) -> None:
    """Each call is one of the tools, with arguments as its schema has them."""
    for number, call in enumerate(calls):
        assert call.number == number
        arguments = json.loads(call.arguments)
        if call.name == "clock":
            assert arguments == {}
        else:
            assert call.name == "weather"
            jsonschema.validate(arguments, {**ARGUMENTS, "additionalProperties": False})


@pytest.mark.parametrize("form", FORMS)
async def test_required_and_named_tools(runtimes: Runtimes, form: str) -> None:
    once: dict[str, Any] = {"tools": TOOLS, "parallel_tool_calls": False}
    jobs = [
        *(job(**once, tool_choice="required", **wishes) for wishes in WILD),
        *(job(**once, tool="clock", **wishes) for wishes in WILD[:2]),
        *(job(tools=TOOLS, tool_choice="required", max_tokens=90, **wishes) for wishes in WILD[:3]),
    ]
    answers = await asyncio.gather(*(answer(runtimes[form], each) for each in jobs))
    for number, (asked, (text, _, finish, _)) in enumerate(zip(jobs, answers, strict=True)):
        calls = called(asked, finish)
        assert text == ""
        assert calls
        if finish.reason == "length":  # of several calls the last may be cut off
            assert number >= 7
            calls = calls[:-1]
        elif number < 7:
            assert len(calls) == 1
            assert finish.reason == "tool_calls"
        check(calls)
    assert {
        called(each, got[2])[0].name for each, got in zip(jobs[5:7], answers[5:7], strict=True)
    } == {"clock"}


#: How a call begins after some text, and a call that has just ended, by form.
BEGINS = {
    "tiny-chat": ("Sure.\n\n<tool_call>", '\n{"name": "clock", "arguments": {}}\n</tool_call>'),
    "hermes": ("Sure.\n\n<tool_call>", '\n{"name": "clock", "arguments": {}}\n</tool_call>'),
    "llama": ('{"name": "', 'clock", "parameters": {}}'),
    "mistral": ("Sure. [TOOL_CALLS]", '[{"name": "clock", "arguments": {}}]'),
    "mistral-args": ("Sure. [TOOL_CALLS]", "clock[ARGS]{}"),
}


@pytest.mark.parametrize("form", FORMS)
async def test_a_call_that_has_begun_keeps_to_its_form(runtimes: Runtimes, form: str) -> None:
    runtime = runtimes[form]
    vocabulary = runtime._engine._vocabulary  # type: ignore[union-attr]
    begin, rest = BEGINS[form]
    ids = vocabulary.encode(begin, special=False)
    for wishes in WILD:
        # what an earlier attempt has delivered: text, and the beginning of a call
        asked = job(tools=TOOLS, parallel_tool_calls=False, generated=ids, **wishes)
        text, _, finish, _ = await answer(runtime, asked)
        calls = called(asked, finish)
        assert (text, finish.reason, len(calls)) == ("", "tool_calls", 1)
        check(calls)
    # nothing may follow the only call: it has ended before a token is made
    whole = ids + vocabulary.encode(rest, special=False)
    asked = job(tools=TOOLS, parallel_tool_calls=False, generated=whole)
    text, more, finish, _ = await answer(runtime, asked)
    assert (text, more, finish.reason) == ("", [], "tool_calls")


@pytest.mark.parametrize("form", FORMS)
async def test_text_stays_text(runtimes: Runtimes, form: str) -> None:
    """Where nothing is called the answer is what it would be, but for what the prompt says."""
    runtime = runtimes[form]
    seen = []
    for wishes in WILD[:3]:
        asked = job(tools=TOOLS, max_tokens=40, logit_bias={448: -100, 450: -100}, **wishes)
        if form == "tiny-chat":
            asked = job(tools=TOOLS, max_tokens=40, **wishes)
        text, ids, finish, _ = await answer(runtime, asked)
        assert not called(asked, finish)
        assert text.rstrip("�") == _text(runtime, ids).rstrip("�")
        seen.append(len(ids))
    assert max(seen) > 5


def _text(runtime: TextRuntime, ids: list[int]) -> str:
    return runtime._engine._vocabulary.decode([each for each in ids if each != END])  # type: ignore[union-attr]


async def test_a_form_or_a_call(runtimes: Runtimes) -> None:
    kinds = set()
    jobs = [
        job(
            tools=TOOLS, grammar=as_json(SCHEMA), parallel_tool_calls=False, temperature=2.0, seed=n
        )
        for n in range(16)
    ]
    for asked, (text, _, finish, _) in zip(
        jobs,
        await asyncio.gather(*(answer(runtimes["hermes"], each) for each in jobs)),
        strict=True,
    ):
        calls = called(asked, finish)
        kinds.add(bool(calls))
        if calls:
            assert (text, finish.reason) == ("", "tool_calls")
            check(calls)
        else:
            assert finish.reason == "stop"
            jsonschema.validate(json.loads(text), SCHEMA)
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        (
            {"tools": [{"name": "f", "parameters": '{"type": "strin"}', "at": "tools.0.x"}]},
            "tools.0.x",
            "must have the type object",
        ),
        (
            {
                "tools": [
                    *TOOLS,
                    {
                        "name": "f",
                        "parameters": '{"properties": {"a": {"type": "strin"}}}',
                        "at": "tools.2.function.parameters",
                    },
                ]
            },
            "tools.2.function.parameters",
            "Invalid type: strin",
        ),
        ({"tools": [{"name": "f", "parameters": "{", "at": "t"}]}, "t", "not valid JSON"),
        (
            {"tools": TOOLS, "grammar": {"form": "lark", "text": "start: /a/", "at": "g"}},
            "g",
            "do not go together",
        ),
        ({"tools": TOOLS, "tool": "g"}, "tool_choice", "no tool 'g'"),
    ],
)
async def test_tools_that_are_wrong_are_named(
    runtimes: Runtimes, fields: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        await runtimes["random-llama"].run(job(**fields))
    assert caught.value.param == param


# --- prompts ---------------------------------------------------------------------------------

TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "And?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "call_1", "name": "weather", "arguments": '{"city": "Rom"}'},
            {"id": "call_2", "name": "clock", "arguments": ""},
        ],
    },
    {"role": "tool", "content": "sun", "tool_call_id": "call_1"},
    {"role": "tool", "content": "noon", "tool_call_id": "call_2"},
]


def prompt_of(runtime: TextRuntime, **fields: Any) -> str:
    engine: Any = runtime._engine
    ids = engine._prompt(job(**fields).input).ids
    text: str = engine._vocabulary.backend.decode(ids, skip_special_tokens=False)
    return text


@pytest.mark.parametrize("form", FORMS)
def test_the_model_is_told(runtimes: Runtimes, form: str) -> None:
    text = prompt_of(runtimes[form], messages=TALK, tools=TOOLS)
    assert '"name": "weather", "description": "Says it"' in text
    assert '"parameters": {"type": "object", "properties": {}}' in text  # a clock needs nothing
    assert "sun" in text
    assert "noon" in text
    assert re.search(r'\{"city": ?"Rom"\}', text)


def test_tools_in_words(runtimes: Runtimes) -> None:
    """For templates that know none, in the form of Hermes."""
    system = {"role": "system", "content": "Be brief."}
    text = prompt_of(runtimes["tiny-chat"], messages=[system, *TALK], tools=TOOLS)
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert text.endswith(
        "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rom"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsun\n</tool_response>\n"
        "<tool_response>\nnoon\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    bare = prompt_of(runtimes["tiny-chat"], messages=[system, TALK[0]])
    assert "# Tools" not in bare


def test_mistral_gets_ids_as_it_likes_them(runtimes: Runtimes) -> None:
    text = prompt_of(runtimes["mistral"], messages=TALK, tools=TOOLS)
    ids = re.findall(r"\]([0-9a-f]{9})", text)
    assert len(set(ids)) == 2


# --- the pieces ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    backend = Tokenizer.from_file(str(TINY_CHAT / "tokenizer.json"))
    return Vocabulary(backend, VOCABULARY)


def stream_of(vocabulary: Vocabulary, form: ToolFormat) -> ToolStream:
    tools = [Tool(**tool) for tool in TOOLS]
    rules = calls(form, tools, vocabulary.marker, many=True, inside=True)
    return ToolStream(form, Guide(vocabulary, [END]).constraint(rules, active=False))


def push(stream: ToolStream, vocabulary: Vocabulary, text: str) -> tuple[str, list[CallPiece]]:
    """Push a text token by token; return what came out of it."""
    shown, pieces = "", []
    for token in vocabulary.encode(text, special=False):
        more, new = stream.push(token, vocabulary.raw(token).decode())
        shown += more
        pieces += new
    return shown, joined(pieces)


CALLS = (
    'Sure. \n<tool_call>\n{"name": "weather", "arguments": {"city": "a}\\"{", "days": 1}}\n'
    '</tool_call>\n<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
)


def test_a_stream_of_text_and_calls(vocabulary: Vocabulary) -> None:
    stream = stream_of(vocabulary, HERMES)
    text, found = push(stream, vocabulary, CALLS)
    assert text == "Sure."
    assert found == [(0, "weather", '{"city": "a}\\"{", "days": 1}'), (1, "clock", "{}")]
    assert (stream.calls, stream.flush()) == (2, "")


@pytest.mark.parametrize("text", ["a <tool_", "<tool_cal <tool_cal", " \n", "a < b <t", ""])
def test_what_only_looks_like_a_call(vocabulary: Vocabulary, text: str) -> None:
    for form in (HERMES, LLAMA):
        stream = stream_of(vocabulary, form)
        shown, found = push(stream, vocabulary, text)
        assert (shown + stream.flush(), found) == (text, [])


def test_an_answer_that_begins_like_a_call(vocabulary: Vocabulary) -> None:
    stream = stream_of(vocabulary, LLAMA)
    assert push(stream, vocabulary, ' {"nam')[0] == ""  # it may become one
    shown = push(stream, vocabulary, 'es": 1} {"name": "clock", "parameters": {}}')
    assert shown == (' {"names": 1} {"name": "clock", "parameters": {}}', [])


def test_a_marker_that_goes_on_otherwise_is_text(vocabulary: Vocabulary) -> None:
    stream = stream_of(vocabulary, HERMES)
    assert push(stream, vocabulary, "x <tool_call") == ("x", [])
    # a token that ends with the marker as text does, but that the grammar does not take
    assert stream.push(END, ">") == (" <tool_call>", [])
    assert push(stream, vocabulary, CALLS)[1][1].name == "clock"  # a real one is found after it


def test_a_token_that_is_not_allowed_fails_the_row(vocabulary: Vocabulary) -> None:
    rules = answer_rules(Grammar(form="regex", text="a"))
    guide = Guide(vocabulary, [END])
    held = guide.constraint(rules, active=True)
    scores = torch.zeros(2, VOCABULARY)
    (a,) = vocabulary.encode("a", special=False)
    limited = restrict(scores, [None, held])
    assert torch.equal(limited[0], scores[0])
    assert limited[1].isfinite().nonzero().flatten().tolist() == [a]
    assert restrict(scores, [None, None]) is scores
    with pytest.raises(RuntimeFailed, match="grammar"):
        held.advance(END)
    with pytest.raises(RuntimeFailed, match="grammar"):
        restrict(scores, [None, held])
    # another that was made from the same is unharmed
    again = guide.constraint(rules, active=True)
    again.advance(a)
    assert again.complete


def test_only_some_grammars_are_kept(vocabulary: Vocabulary) -> None:
    guide = Guide(vocabulary, [END])
    for number in range(KEPT + 5):
        guide.constraint(answer_rules(Grammar(form="regex", text=f"a{number}")), active=True)
    assert len(guide._compiled) == KEPT


def test_deltas_without_calls_travel_as_they_always_did() -> None:
    delta, finish = Delta("a", [1]), Finish("stop", "b", [2])
    assert msgpack.unpackb(delta_to_wire(delta)) == ["a", [1], None]
    assert msgpack.unpackb(delta_to_wire(finish)) == ["stop", "b", [2], None]
    called = Delta("", [1], None, [CallPiece(0, "f", "{}")])
    ended = Finish("stop", "", [3], None, None, "END")
    for each in (delta, called):
        assert delta_from_wire(delta_to_wire(each)) == each
    for last in (finish, ended, Finish("tool_calls", "", [1], None, [CallPiece(0, "", "}")])):
        assert finish_from_wire(delta_to_wire(last)) == last


def test_forms_by_template() -> None:
    found = {name: format_of(template) for name, template in TEMPLATES.items()}
    assert {name: form.name for name, form in found.items() if form} == {
        name: name for name in TEMPLATES
    }
    for unknown in ("{{ messages }}", "{{ tools }}<tool_call><function=x>", "{{ tools }}"):
        assert format_of(unknown) is None
