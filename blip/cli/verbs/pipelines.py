"""``rerank`` and ``pipeline``: what models of one pass are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import ApiKey, Deadline, Json, Model, Priority, Require, Url, app


@app.command()
def rerank(
    model: Model,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is looked for.")],
    documents: Annotated[
        list[str] | None,
        typer.Argument(metavar="DOCUMENT...", help="Texts; else lines of stdin."),
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", "-n", min=1, help="How many of the best.")
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut documents that are too long.")
    ] = False,
    priority: Priority = None,
    deadline: Deadline = None,
    require: Require = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Sort texts by how well they answer a query."""
    from blip.cli import pipelines

    task = {"priority": priority, "deadline": deadline, "require": require}
    options = {"top_n": top, "truncate": truncate or None, **task}
    return pipelines.rerank(model, query, documents, options, url, api_key, as_json=json)


@app.command()
def pipeline(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Such as text-classification; see GET /docs.")
    ],
    model: Model,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="Texts; else lines of stdin.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", help="A label of zero-shot-classification; several times."),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option("--question", "-q", help="What question-answering looks for in the texts."),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file", "-f", help="A picture or sound, for tasks that take one; several times."
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="NAME=VALUE", help="A parameter, such as top_k=3."),
    ] = None,
    priority: Priority = None,
    deadline: Deadline = None,
    require: Require = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Run one of transformers' tasks on texts or files: labels, names, answers, summaries."""
    from blip.cli import pipelines

    options = {"priority": priority, "deadline": deadline, "require": require}
    asked = pipelines.Asked(task, model, texts, label, question, parameter, options, file)
    return pipelines.run(asked, url, api_key, as_json=json)
