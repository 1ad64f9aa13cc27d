"""What the tests share: the repository on the path, small data, and scripts called in-process."""

import contextlib
import io
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
VOCABULARY = ROOT.parent / "shared" / "tiktoken"
if VOCABULARY.exists():
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(VOCABULARY))
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that downloads has a server of its own

import config  # noqa: E402
import prepare  # noqa: E402
import sample  # noqa: E402
import train  # noqa: E402

TINY = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16", "--batch_size=4",
        "--max_iters=12", "--log_interval=1", "--eval_interval=4", "--eval_iters=2",
        "--snapshot_interval=4", "--num_return_sequences=0", "--device=cpu", "--warmup_iters=2",
        "--dtype=float32"]


def call(script, *arguments):
    """Call a script's main as the command line does; return (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    main = {"prepare": prepare, "train": train, "sample": sample}[script].main
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = config.run(main, [str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


def succeed(script, *arguments):
    """Call a script that has to succeed; return its standard output."""
    code, out, err = call(script, *arguments)
    assert code == 0, err
    return out


@pytest.fixture(scope="session")
def text():
    return (ROOT / "input.txt").read_text(encoding="utf-8")[:30_000]


@pytest.fixture(scope="session")
def data_dir(text, tmp_path_factory):
    """A folder with the first 30,000 characters of input.txt as tokens of a BPE of 300."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(text, encoding="utf-8")
    succeed("prepare", f"--input={folder / 'text.txt'}", "--vocab_size=300", f"--out_dir={folder}")
    return folder


@pytest.fixture(scope="session")
def finished_run(data_dir, tmp_path_factory):
    """The out_dir of a tiny run that has come to its end."""
    out_dir = tmp_path_factory.mktemp("finished")
    succeed("train", *TINY, f"--data_dir={data_dir}", f"--out_dir={out_dir}")
    return out_dir
