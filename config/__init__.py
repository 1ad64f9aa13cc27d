"""Settings: the assignments at the top of a script, overridden by config files and --key=value.

    python train.py config/shakespeare.py --max_iters=500 --compile

Config files (trusted Python) run from left to right. They see the values of --key=value, which win.
"""

import ast
import difflib
import os
import re
import sys
from contextlib import suppress
from pathlib import Path


def override(script, arguments, current=None, **allowed):
    """Return {name: value}: the script's defaults (or current settings) with the arguments applied.
    allowed[name] is a tuple of the valid values or the smallest valid number (0 if absent)."""
    # A script's settings are its lower-case assignments above the first function.
    above = Path(script).read_text(encoding="utf-8").partition("\ndef ")[0]
    found = re.findall(r"^([a-z]\w*) = (.*?)(?:  # (.*))?$", above, re.MULTILINE)
    described = {name: (ast.literal_eval(default), comment) for name, default, comment in found}
    if "--help" in arguments or "-h" in arguments:
        print(f"usage: python {Path(script).name} [config.py] [--setting=value] ...\n")
        for name, (default, comment) in described.items():
            print(f"  --{name}={default!r}".ljust(40) + " " + comment)
        raise SystemExit(0)
    given = {}
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, text = argument[2:].partition("=")
            value = text if equals else True
            with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                value = ast.literal_eval(text)  # a number, True or 'text'; other text stays
            given[name] = checked(described, allowed, name, value, text if equals else value)
        elif not argument.endswith(".py"):
            usage(f"{argument!r} is neither --setting=value nor a config file ending in .py")
    settings = (current or {name: default for name, (default, _) in described.items()}) | given
    for path in (argument for argument in arguments if not argument.startswith("--")):
        settings = run_config_file(path, settings, described, allowed, given)
    return settings


def run_config_file(path, settings, described, allowed, given):
    """Run a config file with the settings as its globals; return the settings it leaves."""
    class Scope(dict):  # in which settings of the command line keep their values
        def __setitem__(self, name, value):
            super().__setitem__(name, given.get(name, value))

    scope = Scope(settings, __file__=path)
    try:
        tree = ast.parse(Path(path).read_bytes(), path)
        exec(compile(tree, path, "exec"), scope)
    except Exception as error:
        usage(f"{path}: {type(error).__name__}: {error}")
    assigned = {n.id for n in ast.walk(tree) if type(n) is ast.Name and type(n.ctx) is ast.Store}
    found = {name: checked(described, allowed, name, value, value) for name, value in scope.items()
             if name in described or (name in assigned and name[0] != "_" and not callable(value))}
    return settings | found | given  # (a function in it may have assigned to a given name)


def checked(described, allowed, name, value, text):
    """Return the value as the type of the setting's default; one that isn't valid ends the script.
    An int is accepted for a float, 1e3 for an int, anything for a string (text is its source)."""
    if name not in described:
        near = difflib.get_close_matches(name, described, n=1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        usage(f"there is no setting {name!r}{hint} (--help lists all settings)")
    default = described[name][0]
    expected = bool if name == "compile" and type(value) is bool else type(default)  # or 'auto'
    if expected is str and type(value) is not str:
        value = text  # --start=1984
    with suppress(OverflowError, ValueError):  # 10**400 is no valid float, inf and nan no int
        if {type(value), expected} == {int, float} and expected(value) == value:
            value = expected(value)
    if type(value) is not expected:
        usage(f"{name}={value!r}: expected {expected.__name__}, as in --{name}={default!r}")
    valid = allowed.get(name, 0)
    if name.endswith("_dir") and not value:
        usage(f"{name}='': expected a folder, '.' for this one")
    if type(valid) is tuple and value not in valid:
        usage(f"{name}={value!r}: expected one of {', '.join(map(repr, valid))}")
    limit = 1 if name.startswith(("beta", "dropout")) else 2**63  # (those are fractions)
    if type(value) in (int, float) and not valid <= value < limit:
        usage(f"{name}={value}: expected a number of at least {valid} and below {limit:g}")
    return value


def usage(message):
    """End the script with exit code 2 and one line: it was called with an invalid setting."""
    print("error:", *str(message).splitlines(), file=sys.stderr)
    raise SystemExit(2)


def run(main, arguments=None):
    """Call main(arguments) and return the exit code; errors a user can cause become one line."""
    sys.stdin = sys.stdin or open(os.devnull)  # it was closed: python sample.py <&-
    if hasattr(sys.stdout, "reconfigure"):  # a file on Windows can't hold every character
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return main(sys.argv[1:] if arguments is None else arguments) or 0
    except BrokenPipeError:  # the reader closed the pipe: python sample.py | head
        sys.stdout = None
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
        if "TRACEBACK" in os.environ:  # TRACEBACK=1 shows where errors come from
            raise
        name, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
        text = f"{name}: {reason}" if name and reason else str(error)
        if isinstance(error, (RuntimeError, MemoryError)):
            text = "out of memory: lower batch_size (num_samples), block_size or the model's size"
            if re.search(r"C(\+\+)? compile|Triton", str(error)):
                text = "torch.compile needs a C++ compiler (on a GPU, Triton): add --compile=False"
            elif not re.search("(of|allocate) memory|to alloc|_ALLOC_|overflowed|^$", str(error)):
                raise
    print("error:", *text.splitlines(), file=sys.stderr)
    return 1
