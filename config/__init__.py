"""A script's settings: assignments at its top, which the command line changes, left to right."""

import ast
import difflib
import re
import sys
from pathlib import Path


def usage(message):
    """End the script with exit code 2: it was called in a way that can't be meant."""
    print("error:", *message.splitlines(), file=sys.stderr)
    raise SystemExit(2)

def read_settings(script):
    """Return {name: (default, comment)} of the script's source above its first function."""
    source = Path(script).read_text(encoding="utf-8").split("\ndef ")[0]
    lines = re.findall(r"^([a-z]\w*) = (.+?)  # (.+)$", source, re.MULTILINE)
    return {name: (ast.literal_eval(default), comment) for name, default, comment in lines}

def one_of(settings, **allowed):
    for name, values in allowed.items():
        if settings[name] not in values:
            usage(f"{name}={settings[name]!r}: expected one of {', '.join(map(repr, values))}")

def at_least(settings, least, names):
    for name in names.split():
        if not least <= settings[name] < (2**63 if type(settings[name]) is int else float("inf")):
            usage(f"{name}={settings[name]}: expected a number from {least}, below 2**63")

def assign(settings, described, name, value, text):
    """Set settings[name] to a value of the type of its default; text is what it was read from."""
    if name not in described:
        near = difflib.get_close_matches(name, described, n=1, cutoff=0)
        usage(f"there is no setting {name!r}: did you mean {near[0]!r}? (--help lists them all)")
    default = described[name][0]
    expected = bool if default == "auto" and type(value) is bool else type(default)
    value = text if expected is str and type(value) is not str else value  # --start=1984
    if expected in (int, float) and type(value) in (int, float):
        at_least({name: value}, 0, name)
        value = expected(value) if expected is float or value % 1 == 0 and value < 2**63 else value
    if type(value) is not expected:
        usage(f"{name}={value!r}: expected {expected.__name__}, not {type(value).__name__}")
    settings[name] = value

def override(script, arguments, current=None):
    """Return {name: value}: the defaults, or the current settings, as the arguments change them."""
    described = read_settings(script)
    settings = current or {name: default for name, (default, _) in described.items()}
    for argument in arguments:
        if argument in ("--help", "-h"):
            print(f"usage: python {Path(script).name} [config.py] [--setting=value] ...\n")
            for name, (default, comment) in described.items():
                print(f"  --{name}={default!r}".ljust(40) + " " + comment)
            raise SystemExit(0)
        if argument.startswith("--"):
            name, equals, text = argument[2:].partition("=")
            try:
                value = ast.literal_eval(text) if equals else True
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                value = text
            assign(settings, described, name, value, text if equals else True)
        elif argument.endswith(".py"):  # Python, and trusted
            try:
                tree = ast.parse(Path(argument).read_text(encoding="utf-8"), argument)
                exec(compile(tree, argument, "exec"), scope := {**settings, "__file__": argument})
            except Exception as error:
                usage(f"{argument}: {type(error).__name__}: {error}")
            assigned = {node.id for node in ast.walk(tree)
                        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
            for name, value in scope.items():  # without imports, functions and helpers
                if name in described or name in assigned and name[0] != "_" and not callable(value):
                    assign(settings, described, name, value, value)
        else:
            usage(f"{argument!r} is neither --setting=value nor a config file ending in .py")
    return settings

def run(main, arguments=None):
    """Call main(arguments) and return the exit code; what a user can cause ends in one line."""
    try:
        return main(sys.argv[1:] if arguments is None else arguments) or 0
    except BrokenPipeError:  # the reader of our output has seen enough: python sample.py | head
        sys.stdout = None
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, OverflowError) as error:
        name = getattr(error, "filename", None)
        message = f"{name}: {error.strerror}" if name else str(error)
    except (RuntimeError, MemoryError) as error:
        if not re.search("out of memory|(can't|Unable to) allocate|overflow|^$", str(error)):
            raise
        message = "out of memory: lower batch_size, block_size or the size of the model"
    print("error:", *message.splitlines(), file=sys.stderr)
    return 1
