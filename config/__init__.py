"""How settings are overridden: the same way for prepare.py, train.py and sample.py.

A script's settings are the plain assignments at its top, one a line, each with a comment:

    max_iters = 600  # updates of the weights

The command line changes them from left to right, by config files and by --key=value:

    python train.py config/shakespeare.py --max_iters=500 --optimizer=adamw --compile"""

import ast
import difflib
import re
import sys
from pathlib import Path
from types import ModuleType


def usage(message):
    """End the script with exit code 2: it was called in a way that can't be meant."""
    print("error:", *message.splitlines(), file=sys.stderr)
    raise SystemExit(2)


def read_settings(script):
    """Return {name: (default, comment)} of the script's source above its first function."""
    source = Path(script).read_text(encoding="utf-8").split("\ndef ")[0]
    lines = re.findall(r"^([a-z]\w*) = (.+?)  # (.+)$", source, re.MULTILINE)
    return {name: (ast.literal_eval(default), comment) for name, default, comment in lines}


def assign(settings, name, value, described):
    """Set settings[name], with value as the type of the setting's default."""
    if name not in described:
        near = difflib.get_close_matches(name, described, n=1, cutoff=0)
        usage(f"there is no setting {name!r}: did you mean {near[0]!r}? (--help lists them all)")
    default = described[name][0]
    expected = type(default)
    if type(value) is int and abs(value) >= 2**63:
        usage(f"{name}: the number is too large")
    if expected is float and type(value) is int:
        value = float(value)
    if expected is int and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not expected and not (default == "auto" and type(value) is bool):
        usage(f"{name}={value!r} is of type {type(value).__name__}, not {expected.__name__}")
    if expected in (int, float) and not 0 <= value < float("inf"):
        usage(f"{name}={value}: expected a number from 0")
    settings[name] = value


def assign_text(settings, argument, described):
    """Set what --key=value or --key says: a Python literal, else a text; --key alone is True."""
    name, equals, text = argument.removeprefix("--").partition("=")
    try:
        value = ast.literal_eval(text) if equals else True
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    default = described.get(name, (None,))[0]
    if equals and type(default) is str and (type(value) is not bool or default != "auto"):
        value = value if type(value) is str else text  # --start=1984 is a text
    assign(settings, name, value, described)


def run_config(path, settings, described):
    """Run a config file, which is Python and trusted, with the settings as its globals."""
    scope = dict(settings, __file__=path, __name__="config")
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"), path)
        exec(compile(tree, path, "exec"), scope)
    except FileNotFoundError:
        usage(f"{path}: there is no such config file")
    except Exception as error:
        usage(f"{path}: {type(error).__name__}: {error}")
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {alias.asname or alias.name for node in imports for alias in node.names}
    for name, value in scope.items():
        is_code = name in imported or callable(value) or isinstance(value, ModuleType)
        if not name.startswith("_") and not is_code:
            assign(settings, name, value, described)


def override(script, arguments):
    """Return the script's settings {name: value} after its command-line arguments.
    An unknown name, a wrong type or a broken config file ends with exit code 2 and one line."""
    described = read_settings(script)
    settings = {name: default for name, (default, _) in described.items()}
    for argument in arguments:
        if argument in ("--help", "-h"):
            print(f"usage: python {Path(script).name} [config.py] [--setting=value] ...\n")
            for name, (default, comment) in described.items():
                print(f"  --{name}={default!r}".ljust(40) + " " + comment)
            raise SystemExit(0)
        if argument.startswith("--"):
            assign_text(settings, argument, described)
        elif argument.endswith(".py"):
            run_config(argument, settings, described)
        else:
            usage(f"{argument!r} is neither --setting=value nor a config file ending in .py")
    return settings


def one_of(settings, name, *allowed):
    if settings[name] not in allowed:
        usage(f"{name}={settings[name]!r}: expected one of {', '.join(map(repr, allowed))}")


def at_least(settings, least, names):
    for name in names.split():
        if not least <= settings[name] < float("inf"):
            usage(f"{name}={settings[name]}: expected a number from {least}")


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
        if not re.search("out of memory|can't allocate memory|overflow|^$", str(error)):
            raise
        message = "out of memory: lower batch_size, block_size or the size of the model"
    print("error:", *message.splitlines(), file=sys.stderr)
    return 1
