"""What holds for the project as a whole: imports, ignored files, versions, documented commands."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import blip

ROOT = Path(__file__).parents[2]
PACKAGES = {"blip": ROOT / "blip", "blip_node": ROOT / "nodes" / "blip_node"}

#: Lowest first; a module may import its own layer and lower ones. Rooms of one layer that may not
#: see each other are in APART.
LAYERS = (
    {"errors", "version", "config", "kinds"},
    {"lifecycle", "telemetry"},
    {"protocol", "store"},
    {"transport"},
    {"broker", "gateway", "client"},
    {"cli", "bench", "sim", "__main__"},
)
#: ``store`` sits beside transport: it sees errors, config, kinds and telemetry only.
APART = (
    ("broker", "gateway"),
    ("broker", "client"),
    ("gateway", "client"),
    ("store", "protocol"),
    ("protocol", "store"),
    ("protocol", "lifecycle"),
    ("protocol", "telemetry"),
)
#: Modules of the broker that do I/O; all others are pure.
BROKER_IO = {"server"}
IMPURE = {"zmq", "asyncio", "time", "random", "socket", "threading"}
HEAVY = {"torch", "transformers", "diffusers", "numpy", "accelerate", "safetensors", "PIL"}


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of both packages with its dotted name."""
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            yield name, path


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """The absolute names that a module imports; only those of its top level if asked."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = iter(_outside_functions(tree)) if top_level else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from blip import x` may be the module blip.x
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _outside_functions(child)


def rooms(path: Path) -> set[str]:
    """The rooms of ``blip`` that a module imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("blip.")} & {
        room for layer in LAYERS for room in layer
    }


ALL = dict(modules())


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else "version"


def test_every_room_has_a_layer() -> None:
    known = {room for layer in LAYERS for room in layer}
    assert {room_of(name) for name in ALL if name.startswith("blip.")} <= known


@pytest.mark.parametrize("name", [name for name in ALL if name.split(".")[0] == "blip"])
def test_imports_go_down_only(name: str) -> None:
    level = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    mine = room_of(name)
    for other in rooms(ALL[name]):
        assert level[other] <= level[mine], f"{name} imports blip.{other}, which lies above it"
        assert (mine, other) not in APART, f"{name} imports blip.{other}"
        assert (other, mine) not in APART or level[other] < level[mine], f"{name}: {other}"


@pytest.mark.parametrize("name", list(ALL))
def test_what_may_be_imported(name: str) -> None:
    roots = {imported.split(".")[0] for imported in imports(ALL[name])}
    if name.split(".")[0] == "blip":
        assert "blip_node" not in roots
        assert not HEAVY & roots
    else:
        assert not rooms(ALL[name]) & {"broker", "gateway", "cli", "client", "sim", "web"}
        top = {imported.split(".")[0] for imported in imports(ALL[name], top_level=True)}
        if "torch" in top:
            # runtimes are loaded in workers; nothing that an agent imports may bring torch along
            assert ".runtimes." in name or name.startswith("blip_node.models."), name


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in ALL
        if name.startswith(("blip.protocol", "blip.kinds"))
        or (name.startswith("blip.broker.") and name.split(".")[2] not in BROKER_IO)
    ],
)
def test_pure_modules_are_pure(name: str) -> None:
    roots = {imported.split(".")[0] for imported in imports(ALL[name])}
    assert not IMPURE & roots, f"{name} imports {IMPURE & roots}"


def run(code: str) -> str:
    # coverage, where it follows subprocesses, imports what it measures
    env = {key: text for key, text in os.environ.items() if not key.startswith("COVERAGE_")}
    env["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "nodes")))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    return done.stdout


def test_the_node_package_does_not_shadow_nodes() -> None:
    """ComfyUI owns ``import nodes``: ours must be a folder, not a package."""
    assert not (ROOT / "nodes" / "__init__.py").exists()
    loaded = run("import blip_node, sys; print(*sys.modules)").split()
    assert "blip_node" in loaded
    assert "nodes" not in loaded


def test_the_agent_starts_without_torch() -> None:
    loaded = set(run("import blip_node.main, sys; print(*sys.modules)").split())
    assert not {"torch", "transformers", "diffusers"} & loaded


# --- files ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources() -> list[str]:
    """Everything that people write, as it lies in the tree."""
    folders = ("blip", "nodes", "tests", "configs", "docs", "scripts", ".ci")
    found = [
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", ".pytest_cache"} & set(path.parts)
    ]
    names = ("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", ".gitignore")
    return found + [name for name in names if (ROOT / name).exists()]


def ignored(paths: list[str]) -> list[str]:
    # --no-index: a rule that matches a file is wrong even if git tracks that file already
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        input="\n".join(paths),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.split("\n")[:-1]


needs_git = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout"
)


@needs_git
def test_no_source_is_ignored(sources: list[str]) -> None:
    assert len(sources) > 50
    assert ignored(sources) == []


@needs_git
def test_what_tools_write_is_ignored() -> None:
    written = [".venv/bin/python", ".coverage", "blip/__pycache__/x.pyc", "dist/a.whl"]
    assert ignored(written) == written
    # the original project lost whole packages to a rule like `models/`
    future = ["blip/models/x.py", "nodes/blip_node/models/x.py", "blip/build/x.py", "data/x.toml"]
    assert ignored(future) == []


def test_nobodys_machine_is_in_the_files(sources: list[str]) -> None:
    for name in sources:
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights and other bytes
        if name != "tests/unit/test_project.py":
            for pattern in ("/home/[a-z]+/", "--index-url", "--find-links", "/opt/wheels"):
                assert not re.search(pattern, text), f"{name}: {pattern}"


# --- versions -------------------------------------------------------------------------------


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", text, re.MULTILINE)
    assert versions[0] == blip.__version__


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "configs" / name).read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            package, _, version = line.partition("==")
            assert re.fullmatch(r"[\w.]+", version), line
            found[normal(package)] = version
    return found


def normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_everything_that_is_asked_for_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = project["dependencies"] + extras["node"] + extras["dev"]
    names = {normal(re.match(r"[\w.-]+", line)[0]) for line in asked}  # type: ignore[index]
    assert names <= set(pins("constraints.txt"))
    assert pins("constraints.txt")["torch"] == "2.13.0"


def test_the_demos_packages_are_pinned() -> None:
    settings = tomllib.loads((ROOT / "configs" / "demo.toml").read_text(encoding="utf-8"))
    sources = [model["source"].partition(":") for model in settings["models"].values()]
    named = [rest.split("+") for scheme, _, rest in sources if scheme == "package"]
    packages = {normal(part) for parts in named for part in parts}
    assert packages == set(pins("demo-models.txt"))


# --- commands -------------------------------------------------------------------------------


def code_blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    for block in code_blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.split("#")[0].split()
            if words:
                yield words


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_in_the_documentation_exist(page: Path) -> None:
    for words in commands(page):
        if words[0].startswith("./"):
            script = ROOT / words[0]
            assert script.is_file(), f"{page.name}: {words[0]}"
            assert script.stat().st_mode & 0o111, f"{words[0]} is not executable"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_in_the_documentation_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from blip.cli import main

    for words in commands(page):
        if words[0] == "blip":
            verb = [word for word in words[1:3] if re.fullmatch("[a-z]+", word)]
            group = verb[:1] if verb[0] not in ("config", "key", "bench", "see") else verb
            assert main([*group, "--help"]) == 0, f"{page.name}: {' '.join(words)}"
            options = [word.split("=")[0] for word in words if word.startswith("--")]
            told = capsys.readouterr().out
            assert [option for option in options if option not in told] == [], f"{page.name}"


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_scripts_are_shell(tmp_path: Path) -> None:
    for script in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]:
        text = script.read_text(encoding="utf-8")
        assert text.startswith("#!/bin/sh\n"), script
        assert "\nset -eu\n" in text, script
        subprocess.run(["sh", "-n", str(script)], check=True)
