"""The ``blip`` command. Importing this imports nothing else: every verb loads what it needs.

Exit codes: 0 fine, 1 failure, 2 wrong usage or configuration, 3 no gateway reached,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

FAILURE = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code.

    Errors become one ``error:`` line and, where there is a way out, one ``hint:`` line on stderr.
    With ``--debug`` anywhere, or ``BLIP_DEBUG`` set, their tracebacks are shown as well.
    """
    from blip.cli.app import app

    args = list(sys.argv[1:] if argv is None else argv)
    debug = _take_debug(args) or bool(os.environ.get("BLIP_DEBUG"))
    try:
        result = app(args=args, prog_name="blip", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # `blip models | head`: the reader has seen enough. Python's own flush at exit must not
        # complain about it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:
        return _report(error, debug)


def _take_debug(args: list[str]) -> bool:
    """Remove ``--debug`` wherever it stands, so that it need not stand before the verb."""
    options = args[: args.index("--")] if "--" in args else args
    if "--debug" not in options:
        return False
    args.remove("--debug")
    return True


def _report(error: Exception, debug: bool) -> int:
    from blip.errors import BlipError, ConfigError

    if type(error).__name__ == "Abort":
        return INTERRUPTED  # typer's word for Ctrl-C and Ctrl-D
    if hasattr(error, "format_message"):
        # typer's own errors; their classes have moved between its versions, this has not
        command = getattr(getattr(error, "ctx", None), "command_path", "blip")
        _print_error(error.format_message(), f"`{command} --help` shows what there is.")
        return USAGE
    if debug:
        import traceback

        traceback.print_exception(error)
    if not isinstance(error, BlipError):
        what = f"{type(error).__name__}: {error}"
        _print_error(what, "This may be a bug in blip; --debug shows where it happened.")
        return FAILURE
    _print_error(error.message, error.hint)
    if isinstance(error, ConfigError):
        return USAGE
    return UNREACHABLE if error.code == "gateway_unreachable" else FAILURE


def _print_error(message: str, hint: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if hint:
        print(f"hint: {' '.join(hint.split())}", file=sys.stderr)
