"""The verbs and their options. Bodies import what they need, so that ``--help`` stays instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_OPTIONS: dict[str, Any] = {
    "no_args_is_help": True,
    # plain help: rich would cost as much again as everything else that --help imports
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

app = typer.Typer(
    **_OPTIONS,
    help="Idle GPU machines as one endpoint that speaks the OpenAI API.",
    epilog="Exit codes: 1 failure, 2 wrong usage or configuration, 3 no gateway reached, "
    "130 interrupted. --debug or BLIP_DEBUG=1 shows tracebacks.",
)
config_app = typer.Typer(**_OPTIONS, help="Show and check the settings.")
key_app = typer.Typer(**_OPTIONS, help="Make API keys.")
bench_app = typer.Typer(**_OPTIONS, help="Measure this machine's mesh.")
app.add_typer(config_app, name="config")
app.add_typer(key_app, name="key")
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


# --- roles ----------------------------------------------------------------------------------


@app.command()
def up(
    nodes: Annotated[int, typer.Option("--nodes", "-n", min=1, max=64, help="Nodes.")] = 1,
    port: Annotated[
        int | None, typer.Option("--port", "-p", min=0, max=65535, help="The gateway's port.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, max=64, help="Gateway processes.")
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what the roles log.")
    ] = False,
    json: Json = False,
) -> int:
    """Run a whole mesh on this machine."""
    from blip.cli import settings, up

    loaded = settings.read(config, set_, {"gateway.port": port, "gateway.processes": processes})
    return up.up(loaded.config, nodes, stream=verbose, as_json=json)


@app.command()
def gateway(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", "-p", min=0, max=65535, help="Port to listen on.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, max=64, help="Processes on that port.")
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    config_json: ConfigJson = None,
) -> int:
    """Run a gateway: the HTTP side of a mesh."""
    from blip.cli import roles

    flags = {"gateway.host": host, "gateway.port": port, "gateway.processes": processes}
    return roles.gateway(roles.settings_of(config_json, config, set_, flags))


@app.command()
def broker(config: ConfigFile = None, set_: Set = None, config_json: ConfigJson = None) -> int:
    """Run a broker: it knows the nodes and places tasks."""
    from blip.cli import roles

    return roles.broker(roles.settings_of(config_json, config, set_, {}))


@app.command()
def node(
    name: Annotated[str | None, typer.Option("--name", help="Display name.")] = None,
    config: ConfigFile = None,
    set_: Set = None,
    config_json: ConfigJson = None,
) -> int:
    """Run a node: it offers this machine to a mesh."""
    from blip.cli import roles

    return roles.node(roles.settings_of(config_json, config, set_, {"node.name": name}))


# --- use ------------------------------------------------------------------------------------


@app.command()
def run(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="What to say; without it: a conversation."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text itself: no chat, no template.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1)] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", min=0, max=2, help="0: no chance.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="Stop before this text; up to 4 times.")
    ] = None,
    priority: Priority = None,
    deadline: Deadline = None,
    require: Require = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Ask a model. Text that is piped in goes with the prompt."""
    from blip.cli import ask

    sampling = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": stop}
    request = ask.Request(
        model,
        system,
        raw,
        {name: value for name, value in sampling.items() if value is not None},
        {"priority": priority, "deadline": deadline, "require": require},
    )
    return ask.run(request, prompt, url, api_key, as_json=json)


@app.command()
def embed(
    model: Model,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="Texts; else lines of stdin.")
    ] = None,
    dimensions: Annotated[int | None, typer.Option("--dimensions", min=1)] = None,
    priority: Priority = None,
    deadline: Deadline = None,
    require: Require = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Embed texts and show how near they are to each other."""
    from blip.cli import ask

    task = {"priority": priority, "deadline": deadline, "require": require}
    return ask.embed(model, texts, dimensions, task, url, api_key, as_json=json)


@app.command()
def image(
    model: Model,
    prompt: Annotated[
        str, typer.Argument(metavar="[PROMPT]", help="What to paint; may be left out with --from.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Where to: .png, .jpg or .webp; - for stdout."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Such as 512x512.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1)] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same picture.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=10, help="Pictures.")] = 1,
    negative: Annotated[
        str | None, typer.Option("--negative", help="What to keep out of it.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", min=0, help="How closely to follow the prompt.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="NAME", help="Such as euler-karras.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="IMAGE", help="A picture to paint over.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="IMAGE", help="Where to: transparent, or else white."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option("--strength", min=0, max=1, help="How much of --from may change."),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Paint pictures and write them to files."""
    from blip.cli import paint

    options = {
        "negative_prompt": negative,
        "steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "scheduler": scheduler,
        "strength": strength,
    }
    request = paint.Request(model, prompt, n, size, source, mask, options)
    return paint.run(request, out, url, api_key, as_json=json)


@app.command()
def models(url: Url = None, api_key: ApiKey = None, json: Json = False) -> int:
    """List the models that the mesh serves."""
    from blip.cli import views

    return views.models(url, api_key, as_json=json)


@app.command()
def status(
    devices: Annotated[
        bool, typer.Option("--devices", "-v", help="All that is known of each device.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Show the nodes, their devices and what is loaded."""
    from blip.cli import views

    return views.status(url, api_key, devices=devices, as_json=json)


@app.command()
def ps(url: Url = None, api_key: ApiKey = None, json: Json = False) -> int:
    """List the loaded models, the tasks in flight, and those that have just ended."""
    from blip.cli import views

    return views.ps(url, api_key, as_json=json)


@app.command()
def why(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Its id, or the start or the end of it.")
    ],
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Explain why a task ran where it ran, what else was considered, and what came of it."""
    from blip.cli import why

    return why.why(task, url, api_key, as_json=json)


# --- operate --------------------------------------------------------------------------------

Where = Annotated[
    str | None,
    typer.Argument(metavar="[NODE[/DEVICE]]", help="A node of `blip status`, or its device."),
]
Standing = Annotated[
    str, typer.Argument(metavar="NODE[/DEVICE]", help="A node of `blip status`, or its device.")
]
Reason = Annotated[
    str | None, typer.Option("--reason", help="Why, for those who look at `blip status`.")
]


@app.command()
def load(
    model: Model,
    place: Where = None,
    pin: Annotated[
        bool | None, typer.Option("--pin/--no-pin", help="Never unload it to make room.")
    ] = None,
    keep_alive: Annotated[
        float | None,
        typer.Option(
            "--keep-alive",
            metavar="SECONDS",
            help="Unload it after that long without work; -1: when its room is needed.",
        ),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Load a model, on the fastest device that has room unless one is named."""
    from blip.cli import operations

    return operations.load(
        model, place, pin=pin, keep_alive=keep_alive, url=url, api_key=api_key, as_json=json
    )


@app.command()
def unload(
    model: Model,
    place: Where = None,
    force: Annotated[
        bool, typer.Option("--force", help="Do not wait for what it runs: that goes elsewhere.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Unload a model, from every node unless one is named."""
    from blip.cli import operations

    return operations.unload(model, place, force=force, url=url, api_key=api_key, as_json=json)


@app.command()
def cordon(
    place: Standing,
    reason: Reason = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Take a node or a device out of service: it takes no new tasks."""
    from blip.cli import operations

    return operations.cordon(place, reason, url, api_key, as_json=json)


@app.command()
def uncordon(place: Standing, url: Url = None, api_key: ApiKey = None, json: Json = False) -> int:
    """Put a node or a device back into service."""
    from blip.cli import operations

    return operations.uncordon(place, url, api_key, as_json=json)


@app.command()
def drain(
    place: Standing,
    reason: Reason = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Take a node or a device out of service, and wait until nothing runs on it any more."""
    from blip.cli import operations

    return operations.drain(place, reason, url, api_key, as_json=json)


# --- settings -------------------------------------------------------------------------------


@config_app.command("show")
def config_show(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="Only this section or key.")
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    json: Json = False,
) -> int:
    """Print every setting with its value and where that came from. Secrets are masked."""
    from blip.cli import settings

    return settings.show(settings.read(config, set_), key, as_json=json)


@config_app.command("path")
def config_path(config: ConfigFile = None, json: Json = False) -> int:
    """Print which configuration file is read, and where one is looked for."""
    from blip.cli import settings

    return settings.path(config, as_json=json)


@config_app.command("check")
def config_check(config: ConfigFile = None, set_: Set = None, json: Json = False) -> int:
    """Check all settings and list everything that is wrong."""
    from blip.cli import settings

    return settings.check(config, set_, as_json=json)


@key_app.command("new")
def key_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")],
    json: Json = False,
) -> int:
    """Make an API key. It is shown this once; only its hash goes into the configuration."""
    from blip.cli import settings

    return settings.new_key(name, as_json=json)


# --- help yourself --------------------------------------------------------------------------


@app.command()
def doctor(config: ConfigFile = None, set_: Set = None, json: Json = False) -> int:
    """Check what this machine can and cannot do."""
    from blip.cli import doctor

    return doctor.doctor(config, set_, as_json=json)


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Stay up at http://127.0.0.1:8001 afterwards.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option("--port", "-p", min=1, max=65535, help="That port instead.", metavar="PORT"),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what the roles log.")
    ] = False,
) -> int:
    """Try a mesh of two nodes and check its answers."""
    from blip.cli import demo

    return demo.demo(keep=keep, port=port, stream=verbose)


@app.command()
def sim(
    scenario: Annotated[
        str | None,
        typer.Argument(metavar="[SCENARIO]", help="A name or a TOML file; without: list them."),
    ] = None,
    variant: Annotated[
        str | None, typer.Option("--variant", metavar="NAME", help="Only this variant of it.")
    ] = None,
    tasks: Annotated[int | None, typer.Option("--tasks", min=1, help="So many tasks.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same run.")] = None,
    policies: Annotated[
        str, typer.Option("--policies", metavar="NAMES", help="Only these, such as broker,oracle.")
    ] = "",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Where the PNG goes.")
    ] = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Only the table.")] = False,
    json: Json = False,
) -> int:
    """Simulate a mesh: the broker's scheduler against other policies, in virtual time."""
    from blip.sim.main import main

    return main(
        scenario,
        variant=variant,
        tasks=tasks,
        seed=seed,
        policies=policies,
        plot=plot,
        no_plot=no_plot,
        as_json=json,
    )


@bench_app.command("overhead")
def bench_overhead(
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=100, help="Interleaved rounds.")
    ] = 5,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.2, max=60, help="Length of one visit.")
    ] = 1.0,
    cases: Annotated[
        str, typer.Option("--cases", metavar="NAMES", help="Only these, such as echo-64,idle.")
    ] = "",
    profile: Annotated[bool, typer.Option("--profile", help="CPU time of each thread.")] = False,
    json: Json = False,
) -> int:
    """Compare the whole path of an echo with a bare HTTP server."""
    from blip.bench import overhead

    return overhead.main(rounds=rounds, seconds=seconds, cases=cases, as_json=json, profile=profile)


@bench_app.command("placement")
def bench_placement(
    cases: Annotated[
        str, typer.Option("--cases", metavar="NAMES", help="Only these, such as 64-2,memory.")
    ] = "",
    decisions: Annotated[
        int, typer.Option("--decisions", min=10, max=1_000_000, help="Measured in each case.")
    ] = 2000,
    json: Json = False,
) -> int:
    """Measure how long placing a task takes, and the memory that nodes take."""
    from blip.bench import placement

    return placement.main(cases=cases, decisions=decisions, as_json=json)


@bench_app.command("text")
def bench_text(
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="NAME", help="A configured model, or a source; else: random."
        ),
    ] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=100, help="Rounds.")] = 3,
    at_a_time: Annotated[
        str, typer.Option("--at-a-time", metavar="NUMBERS", help="Requests, such as 1,8,32.")
    ] = "1,8,32",
    mesh: Annotated[bool, typer.Option(help="Ask over HTTP too.")] = True,
    config: ConfigFile = None,
    set_: Set = None,
    json: Json = False,
) -> int:
    """Compare batched decoding with transformers' own generate."""
    from blip.bench import speed, text
    from blip.cli import settings

    loaded = settings.read(config, set_)
    return text.main(
        model=model,
        rounds=rounds,
        companies=speed.companies_of(at_a_time),
        mesh=mesh,
        as_json=json,
        config=loaded.config,
    )


@bench_app.command("image")
def bench_image(
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FOLDER", help="A diffusers pipeline; toy-shapes if none."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Such as cpu or cuda:0.")] = "cpu",
    steps: Annotated[
        int, typer.Option("--steps", min=1, max=450, help="Steps that are compared.")
    ] = 40,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=1000, help="Interleaved rounds.")
    ] = 9,
    json: Json = False,
) -> int:
    """Compare painting in blip's runtime with bare diffusers."""
    from blip.bench import image

    return image.main(model=model, device=device, steps=steps, rounds=rounds, as_json=json)


@app.command()
def version(json: Json = False) -> int:
    """Print the version."""
    import platform

    from blip import __version__
    from blip.cli import render

    if json:
        render.print_json({"blip": __version__, "python": platform.python_version()})
    else:
        print(f"blip {__version__} (Python {platform.python_version()})")
    return 0
