"""The command line `ft`.

Exit codes, of every command:

    0     done
    1     the run failed, or a bug
    2     bad input: a setting, a plugin, a file of data, an argument; nothing was changed
    130   interrupted (Ctrl-C); 143 ended by SIGTERM; what was trained is kept
    N     a plugin ended the run (`StopRun`) with an exit code of its own

This package imports little: `ft --help` must answer at once. A command's module is imported when it is called.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetooth_hooks.errors import FinetoothError
from finetooth_toolbox.text.controls import escape_controls

if TYPE_CHECKING:
    from finetooth_core.cli.start_options import StartOptions

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `ft`.

    Args:
        arguments: None takes those of the process, which ends afterwards.

    Returns:
        The exit code.
    """
    from finetooth_toolbox.cli.streams import accept_all
    from finetooth_toolbox.files.own_python import VARIABLE as TRUST

    from finetooth_core.cli.start_options import StartOptions, read_start_options

    accept_all()
    if arguments is None:
        # the process ends with it: looking for cycles among all that torch and transformers hold takes a second then
        atexit.register(gc.freeze)
    argv = list(sys.argv[1:] if arguments is None else arguments)
    options, as_json = StartOptions(debug="--debug" in argv), "--json" in argv
    try:
        options, rest = read_start_options(argv, os.environ)
        if options.trusted:
            os.environ[TRUST] = "1"  # also for child processes
        code = _call(options, rest, as_json)
        sys.stdout.flush()  # here, where a closed pipe is not an error
        return code
    except FinetoothError as error:
        return _report(error, options.debug, str(error), error.exit_code, as_json=as_json)
    except KeyboardInterrupt:
        return _report(None, False, "interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, SystemExit) as error:  # a plugin's exit() would look like success
        from finetooth_toolbox import blame

        # click's own, or rich's, which has seen a pipe close
        if isinstance(error, SystemExit) and (type(error.__context__) is BrokenPipeError or not blame.blamed(error)):
            raise
        return _report(error, options.debug, blame.line(error), 1 + blame.is_of_the_disk(error), as_json=as_json)


def _call(options: StartOptions, arguments: list[str], as_json: bool) -> int:
    """Parse the arguments and run the command.

    Args:
        as_json: the command prints JSON; one that fails prints its error so.
    """
    import click

    from finetooth_core.cli.group import make_group
    from finetooth_core.cli.state import State

    state = State(options)
    try:
        result = make_group().main(arguments, prog_name="ft", standalone_mode=False, obj=state)
    except click.Abort:
        return _report(None, False, "interrupted", INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path if context is not None else ' '.join(['ft', *arguments[:1]])} --help)"
        text = " ".join(error.format_message().split()).rstrip(".") + hint  # click puts choices in lines of their own
        if isinstance(error, click.NoSuchOption) and context is not None:
            from finetooth_recipes.names_elsewhere import option_meant

            from finetooth_core.settings.recipe import leaves

            text = option_meant(error.option_name, [param.name for param in context.command.params], leaves()) or text
        return _report(error, options.debug, text, 2, as_json=as_json)
    except FinetoothError as error:
        return _report(error, options.debug, str(error), error.exit_code, as_json=as_json and not state.said_json)
    except Exception as error:
        from finetooth_toolbox import blame

        if not state.said_json or isinstance(error, BrokenPipeError):
            raise
        return _report(error, options.debug, blame.line(error), 2 if blame.is_of_the_disk(error) else 1)
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _report(error: BaseException | None, debug: bool, text: str, exit_code: int, *, as_json: bool = False) -> int:
    """Print each line of an error to stderr; the traceback only with `--debug`.

    Args:
        as_json: print it to stdout too, `{"error": {"message": ..., "problem": ..., "action": ..., "exit_code": 2}}`.
    """
    if as_json:
        from finetooth_toolbox.cli.streams import json_text

        known = error if isinstance(error, FinetoothError) else None
        fields = {
            "message": text,
            "problem": text if known is None else known.problem,
            "action": "" if known is None else known.action,
            "exit_code": exit_code,
        }
        print(json_text({"error": fields}))
    if debug and error is not None:
        import traceback

        traceback.print_exception(error)
    for line in text.split("\n") if text else [""]:  # and at no other sign, which is shown
        print(f"error: {escape_controls(line)}", file=sys.stderr)
    return exit_code
