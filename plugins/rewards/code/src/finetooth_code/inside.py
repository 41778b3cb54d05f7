"""How an answer is judged inside the sandbox: it runs in a process of its own, and the tests in another one.

Tests call functions of the answer through a pipe. Arguments and results are data and nothing else, written as JSON, so
an answer gets at neither the tests nor what they expect, and has no object to give that claims to equal everything.
"""

from __future__ import annotations

import builtins
import json
import os
import select
import signal
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

LINE = 1 << 22
"""Bytes that a call or its result has at most."""

READS, WRITES = 40, 41
"""Descriptors of an answer's process."""


class AnswerError(Exception):
    """The answer's code ended, or returned something other than data."""


# --- data as JSON -----------------------------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """Data as what JSON has; exact types only, so that no subclass brings a comparison of its own.

    Raises:
        TypeError: the value is not data.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple, set, frozenset):
        items = sorted(value, key=repr) if kind in (set, frozenset) else value
        return {kind.__name__: [encode(item) for item in items]}
    if kind is dict:
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind in (bytes, bytearray):
        return {kind.__name__: value.hex()}
    raise TypeError(f"a {kind.__name__} is not data")


def decode(value: Any) -> Any:
    """What `encode` made."""
    if not isinstance(value, dict):
        return value
    ((kind, items),) = value.items()
    if kind == "dict":
        return {decode(key): decode(item) for key, item in items}
    if kind == "complex":
        return complex(*items)
    if kind in ("bytes", "bytearray"):
        return bytes.fromhex(items) if kind == "bytes" else bytearray.fromhex(items)
    made: Callable[[Any], Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind]
    return made(decode(item) for item in items)


# --- the answer's side ------------------------------------------------------------------------------------------------


def serve_functions(source: str, calls: BinaryIO, replies: BinaryIO) -> None:
    """Run the answer's code, say what it defines, and call its functions until nobody asks."""
    names: dict[str, Any] = {"__name__": "answer"}
    try:
        exec(compile(source, "answer.py", "exec"), names)
    except BaseException as error:
        write(replies, {"raised": type(error).__name__, "text": str(error)[:200]})
        return
    modules = {name: each.__name__ for name, each in names.items() if isinstance(each, types.ModuleType)}
    functions = [name for name, each in names.items() if callable(each) and not name.startswith("__")]
    write(replies, {"functions": functions, "modules": modules})
    while line := calls.readline():
        call = json.loads(line)
        try:
            value = names[call["name"]](*decode(call["args"]), **decode(call["kwargs"]))
            reply = {"id": call["id"], "value": encode(value)}
            json.dumps(reply)
        except BaseException as error:
            reply = {"id": call["id"], "raised": type(error).__name__, "text": _text(error)}
        write(replies, reply)


def serve_program(source: str, most: int, calls: BinaryIO, replies: BinaryIO) -> None:
    """Run the answer as a program, with what it is asked to read, until nobody asks."""
    while line := calls.readline():
        request = json.loads(line)
        write(replies, {"id": request["id"], "output": run_program(source, request["input"], most)})


class Child:
    """A process that holds the answer and nothing of the tests: it is forked before they are read."""

    def __init__(self, serve: Callable[[BinaryIO, BinaryIO], None]) -> None:
        calls, replies = os.pipe(), os.pipe()
        if os.fork() == 0:
            null = os.open("/dev/null", os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            os.dup2(calls[0], READS)
            os.dup2(replies[1], WRITES)
            os.closerange(3, READS)
            os.closerange(WRITES + 1, 256)
            try:
                serve(os.fdopen(READS, "rb"), os.fdopen(WRITES, "wb"))
            finally:
                os._exit(0)
        os.close(calls[0])
        os.close(replies[1])
        self._calls, self._replies = os.fdopen(calls[1], "wb"), os.fdopen(replies[0], "rb")

    def read(self) -> dict[str, Any]:
        """What it says next.

        Raises:
            AnswerError: it ended, or wrote something other than JSON.
        """
        line = self._replies.readline(LINE)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise AnswerError("the answer ended" if not line else "the answer wrote something other than a result")
        return message

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Its reply. A number that it cannot foresee says which question that is for.

        Raises:
            AnswerError: it ended, or says what it was not asked.
        """
        number = os.urandom(8).hex()
        try:
            write(self._calls, {**question, "id": number})
        except BrokenPipeError:
            raise AnswerError("the answer ended") from None
        reply = self.read()
        if reply.get("id") != number:
            raise AnswerError("the answer wrote what it was not asked for")
        return reply


def write(pipe: BinaryIO, what: Mapping[str, Any]) -> None:
    """One line of JSON."""
    pipe.write(json.dumps(what).encode() + b"\n")
    pipe.flush()


# --- the tests' side --------------------------------------------------------------------------------------------------


def judged(request: Mapping[str, Any], read: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Run the answer, then read the tests and judge by them.

    Args:
        read: what the answer is held against: `tests` that call its functions and the `entry_point`, or `cases` of a
            program.

    Returns:
        `passed` of `total`, and `why` the first that failed did.
    """
    sys.set_int_max_str_digits(0)
    source, most = request["answer"], request["limits"]["output"]
    if request["program"]:
        child = Child(lambda calls, replies: serve_program(source, most, calls, replies))
        judge = by_cases
    else:
        child = Child(lambda calls, replies: serve_functions(source, calls, replies))
        judge = by_tests
    tests = read()
    total = len(tests["cases"] if request["program"] else tests["tests"])
    try:
        passed, why = judge(child, tests)
    except BaseException as error:
        passed, why = 0, _error_line(error)
    return {"passed": passed, "total": total, "why": why}


def by_tests(child: Child, tests: Mapping[str, Any]) -> tuple[int, str]:
    """Tests that call functions of the answer: each is a text of Python. One that defines `check` has it called with
    the function `entry_point`."""
    defined, entry = child.read(), tests["entry_point"]
    if "raised" in defined:
        raise AnswerError(f"{defined['raised']}: {defined['text']}")
    functions = [str(name) for name in defined["functions"]]
    if entry and entry not in functions:
        return 0, f"the answer defines no {entry}"
    passed, why = 0, ""
    for test in tests["tests"]:
        names: dict[str, Any] = {"__name__": "tests"}
        names |= {name: _module(str(of)) for name, of in defined["modules"].items() if not own_of_tests(name)}
        theirs = {name: function_of(child, name) for name in functions_for(test, functions, entry)}
        names |= theirs
        try:
            exec(compile(test, "tests.py", "exec"), names)
            check = names.get("check")
            if entry and isinstance(check, types.FunctionType) and check is not theirs.get("check"):
                check(function_of(child, entry))
            passed += 1
        except BaseException as error:
            why = why or _error_line(error)
    return passed, why


def functions_for(test: str, functions: Sequence[str], entry: str) -> list[str]:
    """Which of the answer's functions a test gets. One that has the name of something built in would stand in the
    test's own way (an `abs` that is always 0), so only that is taken which the answer was asked for: the entry point,
    or without one what is the test's only function of the answer (`assert sum(1, 2) == 3`)."""
    try:
        used = _names(compile(test, "tests.py", "exec")) & set(functions)
    except (SyntaxError, ValueError):
        used = set()
    wanted = {entry} if entry else used if len(used) == 1 else set()
    return [name for name in functions if name in wanted or not own_of_tests(name)]


def own_of_tests(name: str) -> bool:
    """Whether a name means something to a test before the answer says anything."""
    return name.startswith("__") or hasattr(builtins, name)


def _names(code: types.CodeType) -> set[str]:
    """All names that code and what is defined in it look up."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)


def function_of(child: Child, name: str) -> Callable[..., Any]:
    """A function of the answer, called in its process."""

    def called(*args: Any, **kwargs: Any) -> Any:
        reply = child.ask({"name": name, "args": encode(args), "kwargs": encode(kwargs)})
        if "raised" in reply:
            kind = getattr(builtins, str(reply["raised"]), AnswerError)
            # the end of an iteration would end a loop of the test before it has compared all
            ordinary = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, StopIteration)
            raise (kind if ordinary else AnswerError)(str(reply["text"]))
        return decode(reply["value"])

    return called


def by_cases(child: Child, tests: Mapping[str, Any]) -> tuple[int, str]:
    """A program that reads standard input: each case is its `input` and the `output` expected."""
    passed, why = 0, ""
    for case in tests["cases"]:
        output = child.ask({"input": case["input"]})["output"]
        if isinstance(output, str) and _lines(output) == _lines(case["output"]):
            passed += 1
        else:
            why = why or ("other output" if isinstance(output, str) else "too much output")
    return passed, why


def run_program(source: str, typed: str, most: int) -> str | None:
    """What a program writes; None if that is more than `most` bytes."""
    stdin, stdout = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(stdin[0], 0)
        os.dup2(stdout[1], 1)
        os.dup2(null, 2)
        os.closerange(3, 256)
        _as_program(source)
    os.close(stdin[0])
    os.close(stdout[1])
    try:
        return _talk(stdin[1], stdout[0], typed.encode(), most)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _as_program(source: str) -> None:
    sys.stdin, sys.stdout = os.fdopen(0, "r"), os.fdopen(1, "w")
    try:
        exec(compile(source, "answer.py", "exec"), {"__name__": "__main__"})
    except BaseException:
        pass  # however it ends, what it has printed by then is judged, and what it raises is nobody's to read
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(0)


def _talk(stdin: int, stdout: int, unsent: bytes, most: int) -> str | None:
    """Write and read at the same time, until the program closes its output."""
    os.set_blocking(stdin, False)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    output, writing = b"", True
    while True:
        readable, writable, _ = select.select([stdout], [stdin] if writing else [], [])
        if writable:
            try:
                unsent = unsent[os.write(stdin, unsent) :] if unsent else b""
            except (BrokenPipeError, BlockingIOError):
                unsent = b""
            if not unsent:
                os.close(stdin)
                writing = False
        if readable:
            part = os.read(stdout, 65536)
            output += part
            if len(output) > most:
                return None
            if not part:
                return output.decode(errors="replace")


def _lines(text: str) -> list[str]:
    """Without white space at the ends of lines, and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _module(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        return None


def _text(error: BaseException) -> str:
    """What an error is made with, if that is one text; `str` of a KeyError would add quotes."""
    alone = len(error.args) == 1 and type(error.args[0]) is str
    return str(error.args[0] if alone else error)[:200]


def _error_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
