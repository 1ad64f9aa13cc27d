"""Random bad input: whatever settings, config files, data, snapshots and texts the scripts are
given, they succeed, or end with exit code 1 or 2 and one line that says why.

Each test tries many cases from a seeded random source, in this process, and names all that fail.
"""

import contextlib
import io
import json
import random
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import config
import prepare
import sample
import train
from model import read_snapshot

ROOT = Path(train.__file__).parent
SCRIPTS = {"prepare": prepare, "train": train, "sample": sample}
BASE = {
    "train": ("--n_layer=1 --n_embd=16 --n_head=2 --block_size=8 --batch_size=2 --device=cpu "
              "--max_iters=2 --eval_iters=1 --log_interval=1 --eval_interval=2 --max_length=4 "
              "--num_return_sequences=1 --optimizer=adamw").split(),
    "prepare": ["--vocab_size=262"],
    "sample": ["--device=cpu", "--max_new_tokens=4"],
}

# ---- what is tried ------------------------------------------------------------------------------

TEXTS = ["", "None", "nan", "inf", "1e999", "-1e999", "[]", "{}", "(1, 2)", "lambda: 0", "'", '"""',
         "((((", "(" * 300, "\\", "a b", "ünïcödé", "日本", "🙂\u200d", "\udcff", "True",
         "False", "0x10", "1_000", "1e3", "2.5", "1j", "-", "--", "=", "b'x'", "...", "9" * 400,
         "9" * 5000, "/dev/null", "/dev/null/x", "x" * 300, "%s%n", "{out_dir}", "\n", "\x1b[31m"]
INTEGERS = [-10**30, -2**63, -2**31, -1, 0, 1, 2, 3, 5, 7, 2**31, 2**63, 2**64, 10**18, 10**30]
FLOATS = [-1e308, -1.0, -1e-320, -0.0, 1e-320, 1e-45, 1e-9, 0.1, 0.5, 1.0, 1.5, 1e9, 1e38, 1e308]
DEVICES = ["auto", "cpu:0", "cpu:99", "cuda:77", "mps:1", "meta", "hpu", "xla", "mkldnn", "0", "cp"]
# Settings to which time or memory are proportional get small numbers only.
COSTLY = {"batch_size", "gradient_accumulation_steps", "max_iters", "max_epochs", "n_layer",
          "max_length", "num_return_sequences", "max_new_tokens", "num_samples"}


def random_value(name, default, folder, dice):
    """Return a value for --name=value: often of the right type, seldom a sensible one."""
    if name == "device":
        return dice.choice(DEVICES + TEXTS)
    if name in ("out_dir", "data_dir"):
        return dice.choice(["a b", "日本", "/dev/null", "file", "x" * 300, "/proc/nowhere", folder])
    if name == "init_from":  # another name would be looked for on the network
        return dice.choice(["auto", "scratch", "resume", "", "/nowhere/at/all", "file", folder])
    if name == "compile":
        return dice.choice(["auto", "False", "never", "1", "None"])
    if name == "tokenizer":
        return dice.choice(["bpe", "", "gpt3", "None"])
    if type(default) in (int, float) and dice.random() < 0.8:
        numbers = dice.choice([INTEGERS, FLOATS] if type(default) is float else [INTEGERS] * 5)
        number = dice.choice(numbers)
        return min(number, 3) if name in COSTLY else number
    return dice.choice(TEXTS)


def random_settings(script, folder, dice):
    defaults = config.override(SCRIPTS[script].__file__, [])
    arguments = []
    for _ in range(dice.choice([1, 1, 2, 3])):
        name = dice.choice(list(defaults))
        arguments.append(f"--{name}={random_value(name, defaults[name], folder, dice)}")
    if dice.random() < 0.1:
        arguments.append(dice.choice(["--nlayer=3", "--", "-h", "--=3", "nothing", "nothing.py", "",
                                      "--help", "--🙂=1", "--batch_size", "--seed", "--_x=1"]))
    return arguments


CONFIG_LINES = [
    "batch_size = 2", "import math\nlearning_rate = math.pi / 1000", "_hidden = object()", "",
    "def one():\n    return 1\nmax_iters = one()", "class Thing:\n    pass", "print('hello')",
    "from pathlib import Path", "min_lr = learning_rate / 10", "del max_iters", "max_iters = 1e0",
    "if device == 'cpu':\n    batch_size = 1", "import os.path as join, json", "compile = False",
    "max_iters =", "  n_layer = 1", "1 / 0", "undefined", "import a_module_that_is_not_there",
    "raise ValueError('no')", "raise ValueError('of two\\nlines')", "raise KeyError",
    "assert False", "max_iter = 3", "max_iters = 'three'", "max_iters = None", "x = 5",
    "learning_rate = [1]", "batch_size = 2.5", "for i in range(3):\n    pass", "\0", "é = 1",
    "def f():\n    return f()\nf()", "exec('(' * 500)", "open('nothing')", "'\\d'",
    "learning_rate = float('nan')", "learning_rate = 10 ** 400", "n_embd = 10 ** 400",
    "n_embd = -10 ** 5000", "out_dir = b'bytes'",
    "from math import *", "import numpy\nlearning_rate = numpy.zeros((3, 3))", "return", "yield",
    "import numpy\nlearning_rate = numpy.float64(3)", "globals().clear()", "settings = vars()",
    "lambda_ = lambda: 0", "optimizer = 'sgd'", "n_head = True", "overwrite = 1", "\ufeff",
    "raise Exception('\\udcff')", "async def f(): pass", "learning_rate: float = 0.1", "size = 'x'",
]
JUNK = [None, True, -1, 0, 7, 2.5, "", "x", "uint8", "float32", "object", "S3", "é日", [], [1],
        ["a"], {}, {"a": 1}, float("nan"), float("inf"), 2**70, "uint16,uint16"]


def damage(value, dice):
    """Return a copy of nested dicts and lists in which one thing is missing, changed or added."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        changed = {**value, key: damage(value[key], dice)}
        if dice.random() < 0.2:
            del changed[key]
        return changed
    if isinstance(value, list) and value and dice.random() < 0.7:
        place = dice.randrange(len(value))
        other = dice.choice([[], [dice.choice(JUNK)], [dice.choice(value)] * 2])
        return value[:place] + other + value[place + 1:]
    if isinstance(value, torch.Tensor) and dice.random() < 0.7:
        return dice.choice([value[:1], value.double(), value.to(torch.int8), value.flatten()])
    return dice.choice(JUNK)


def random_bytes(dice):
    size = dice.choice([0, 1, 2, 3, 100, 5000])
    return dice.choice([
        dice.randbytes(size), b"\0" * size, b"\n" * size, b" " * size, b"a" * size, b"\r\n" * size,
        "".join(chr(dice.choice([dice.randrange(128), dice.randrange(0xD800), 0x1F642]))
                for _ in range(size)).encode(),
        b"<|endoftext|>" * size, b"\xff\xfe" + b"a\0" * size, b"\xed\xa0\x80",
        b"ab " * size + b"\xe2",
    ])


# ---- trying it ----------------------------------------------------------------------------------

class Trial:
    """Runs scripts and collects failures: a traceback, or an error that is not one line."""

    def __init__(self):
        self.codes = []
        self.failures = []

    def __call__(self, script, arguments, stdin=""):
        arguments = [*BASE[script], *map(str, arguments)]
        out, err = io.StringIO(), io.StringIO()
        code, problem = None, None
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = config.run(SCRIPTS[script].main, arguments)
        except SystemExit as stop:
            code = stop.code
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # tiktoken's panics are not Exceptions
            problem = f"{type(error).__name__}: {error}"
        lines = err.getvalue().splitlines()
        if code in (1, 2):
            if len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) < 15:
                problem = f"exit code {code}, but not one line: {lines}"
        elif code != 0:
            problem = problem or f"exit code {code!r}"
        elif any(line.startswith("error") for line in lines):
            problem = f"exit code 0, but {lines}"
        if problem:
            self.failures.append(f"{script}.py {' '.join(arguments)[:300]!r}: {problem[:300]}")
        self.codes.append(code)

    def finish(self, *codes):
        assert not self.failures, f"{len(self.failures)}:\n" + "\n".join(self.failures)
        assert set(codes) <= set(self.codes), "the cases are not what they are meant to be"


@pytest.fixture
def trial(monkeypatch, tmp_path):
    """A Trial in an empty folder, without a network, that can't use up the machine's memory."""
    def no_network(*_):
        raise OSError("there is no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare.tiktoken, "get_encoding", no_network)
    lines = b"/temperature 1e-320\n/top_p x\n/\nA prompt\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    Path("file").write_text("a file")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), limits[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Trial()
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with text.txt, data/ and out/, all as they should be."""
    folder = tmp_path_factory.mktemp("good")
    text = (ROOT / "input.txt").read_text(encoding="utf-8")[:3000]
    (folder / "text.txt").write_text(text, encoding="utf-8")
    assert config.run(prepare.main, [*BASE["prepare"], f"--input={folder}/text.txt",
                                     f"--out_dir={folder}/data"]) == 0
    assert config.run(train.main, [*BASE["train"], f"--data_dir={folder}/data",
                                   f"--out_dir={folder}/out"]) == 0
    return folder


def test_random_settings_of_train_end_in_success_or_one_line(trial, good):
    dice = random.Random(1)
    for case in range(90):
        settings = random_settings("train", good / "data", dice)
        trial("train", [f"--data_dir={good}/data", f"--out_dir=out{case}", *settings])
    trial.finish(0, 1, 2)


def test_random_settings_of_prepare_end_in_success_or_one_line(trial, good):
    dice = random.Random(2)
    for case in range(35):
        settings = random_settings("prepare", "data0", dice)
        trial("prepare", [f"--input={good}/text.txt", f"--out_dir=data{case}", *settings])
    trial.finish(0, 1, 2)


def test_random_settings_of_sample_end_in_success_or_one_line(trial, good):
    dice = random.Random(3)
    for _ in range(60):
        settings = random_settings("sample", good / "out", dice)
        prompt = dice.choice([[], [], ["--start=FILE:file"], ["--start=FILE:"], ["--start=-"],
                              ["--interactive"], ["--score=file"], ["--score=."], ["--beams=2"],
                              ["--start=" + random_bytes(dice).decode("utf-8", "surrogateescape")]])
        trial("sample", [f"--out_dir={good}/out", *prompt, *settings])
    trial.finish(0, 1, 2)


def test_random_config_files_end_in_success_or_one_line(trial, good):
    dice = random.Random(4)
    path = Path("settings.py")
    for case in range(45):
        lines = dice.sample(CONFIG_LINES, dice.choice([1, 1, 2]))
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        if case % 15 == 0:
            path.write_bytes(random_bytes(dice))
        trial("train", [f"--data_dir={good}/data", f"--out_dir=out{case}", path])
    Path("folder.py").mkdir()
    trial("sample", ["folder.py"])
    trial.finish(0, 2)


def test_random_data_ends_in_success_or_one_line(trial, good):
    dice = random.Random(5)
    for case in range(60):
        folder = Path(f"data{case}")
        shutil.copytree(good / "data", folder)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        split = dice.choice(prepare.SPLITS)
        path = folder / f"{split}.bin"
        kind = dice.choice(["meta", "meta", "meta", "bin", "bin", "no meta", "no bin", "not json"])
        if kind in ("bin", "no meta"):
            whole = path.read_bytes()
            path.write_bytes(dice.choice([whole[:-1], whole[:40], b"", dice.randbytes(999), whole]))
            if dice.random() < 0.7:  # the damage is hidden from the comparison with meta.json
                meta["splits"][split]["fingerprint"] = prepare.fingerprint(path)
        elif kind == "no bin":
            path.unlink()
        elif kind == "meta":
            meta = damage(meta, dice)
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        if kind == "no meta":
            (folder / "meta.json").unlink()
        elif kind == "not json":
            (folder / "meta.json").write_bytes(dice.choice([
                b"[" * 100_000, b"{}", b"[]", b"null", b"3", b'"x"', b'{"splits": {}}',
                json.dumps(meta).encode()[:dice.randrange(2000)], random_bytes(dice)]))
        script, arguments = "train", [f"--data_dir={folder}", f"--out_dir=out{case}"]
        if dice.random() < 0.2:  # prepare.py replaces data, whatever is there
            script, arguments = "prepare", [f"--input={good}/text.txt", f"--out_dir={folder}"]
        trial(script, arguments)
        if script == "prepare" and trial.codes[-1] != 0:
            trial.failures.append(f"{script}.py {arguments}: broken data was not replaced")
    trial.finish(0, 1)


def test_random_snapshots_end_in_success_or_one_line(trial, good):
    dice = random.Random(6)
    rest = read_snapshot(good / "out" / "final_model.pt")
    del rest["model"]  # or weights_only would refuse every file
    optimizer = {"optimizer_state_dict": rest.pop("optimizer_state_dict")}
    for case in range(50):
        shutil.copytree(good / "out", f"out{case}")
        path = Path(f"out{case}", "snapshots", "snapshot_step_2.pt")
        if dice.random() < 0.2:
            path.write_bytes(random_bytes(dice))
        else:
            damaged = damage(rest, dice)
            torch.save(optimizer | damaged if isinstance(damaged, dict) else damaged, path)
        if dice.random() < 0.5:
            trial("sample", [f"--out_dir=out{case}", "--snapshot=latest"])
        else:
            trial("train", [f"--data_dir={good}/data", f"--out_dir=out{case}", "--max_iters=3"])
    trial.finish(0, 1)


def test_random_texts_end_in_success_or_one_line(trial):
    dice = random.Random(7)
    for _ in range(25):
        Path("text.txt").write_bytes(random_bytes(dice))
        trial("prepare", ["--input=text.txt", f"--vocab_size={dice.choice([257, 300, 10**30])}"])
        if trial.codes[-1] == 0:
            trial("train", ["--out_dir=out", "--overwrite", "--init_from=scratch"])
    trial.finish(0, 1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_from_the_command_line_it_is_one_line_too(script, tmp_path):
    command = [sys.executable, ROOT / f"{script}.py", b"--seed=\xff", "--out_dir=out"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 2 and process.stdout == "" and not list(tmp_path.iterdir())
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1, process.stderr


def test_compiling_without_a_compiler_is_one_line(data_dir, tmp_path):
    command = [sys.executable, ROOT / "train.py", *BASE["train"], f"--data_dir={data_dir}",
               f"--out_dir={tmp_path / 'out'}", "--compile"]
    environment = {"PATH": "/nowhere", "CXX": "none", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == ("error: torch.compile needs a C++ compiler (on a GPU, Triton): add "
                              "--compile=False\n")
