"""The command line app itself, and the options that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_EVERY_APP: dict[str, Any] = {
    "no_args_is_help": True,
    # plain help: rich would cost as much again as everything else that --help imports
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

app = typer.Typer(
    **_EVERY_APP,
    help="Idle GPU machines as one endpoint that speaks the OpenAI API.",
    epilog="Exit codes: 1 failure, 2 wrong usage or configuration, 3 no gateway reached, "
    "130 interrupted. --debug or BLIP_DEBUG=1 shows tracebacks.",
)
config_app = typer.Typer(**_EVERY_APP, help="Show and check the settings.")
key_app = typer.Typer(**_EVERY_APP, help="Make API keys.")
see_app = typer.Typer(**_EVERY_APP, help="Say what is in pictures.")
bench_app = typer.Typer(**_EVERY_APP, help="Measure this machine's mesh.")
app.add_typer(config_app, name="config")
app.add_typer(key_app, name="key")
app.add_typer(see_app, name="see")
app.add_typer(bench_app, name="bench")

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Configuration file (TOML)."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Set one setting, such as gateway.port=8002."
    ),
]
#: How one blip process hands its settings to another; not for people.
ConfigJson = Annotated[Path | None, typer.Option("--config-json", hidden=True)]
Url = Annotated[
    str | None, typer.Option("--url", envvar="BLIP_URL", metavar="URL", help="The gateway.")
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar="BLIP_API_KEY", metavar="KEY", help="API key, if it asks."),
]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model of `blip models`.")]
Priority = Annotated[
    int | None, typer.Option("--priority", min=1, max=10, help="1, the most urgent, to 10.")
]
Deadline = Annotated[
    float | None,
    typer.Option("--deadline", metavar="SECONDS", help="Done by then, or refused at once."),
]
Require = Annotated[
    str | None,
    typer.Option(
        "--require", metavar="TERMS", help="What the device must be, such as 'memory>=24GiB'."
    ),
]


@app.callback()
def _everywhere(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    # main() has taken --debug out of the arguments already; it stands here for --help
    pass
