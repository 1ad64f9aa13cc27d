"""Memory over time: a long run, and text after text, need no more than a short one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Run in a process of its own, whose peak memory no other test has raised. Writing 5 to clear_refs
# sets the peak, VmHWM, to the memory in use.
PEAK = """
import io
import sys
from pathlib import Path

def peak(function, *arguments):
    Path("/proc/self/clear_refs").write_text("5")
    function(*arguments)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

"""

LONG_RUNS = PEAK + """
import config, prepare, sample, train

folder = sys.argv[1]
tiny = ("--n_layer=1 --n_embd=32 --n_head=2 --block_size=8 --batch_size=2 --device=cpu "
        "--dropout=0.1 --log_interval=20 --eval_interval=100 --eval_iters=2 "
        "--snapshot_interval=100 --num_return_sequences=1 --sample_interval=100 "
        "--overwrite --init_from=scratch "
        f"--data_dir={folder}/data --out_dir={folder}/out").split()

def iterations(count):
    assert config.run(train.main, [*tiny, f"--max_iters={count}"]) == 0

def generations(count):
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"A prompt\\n" * count))
    assert config.run(sample.main, [f"--out_dir={folder}/out", "--interactive", "--device=cpu",
                                    "--max_new_tokens=20"]) == 0

def leak(count):
    global leaked
    leaked = [bytearray(10_000) for _ in range(count)]

Path(folder, "text.txt").write_text(Path("input.txt").read_text(encoding="utf-8")[:5000])
config.run(prepare.main, [f"--input={folder}/text.txt", f"--out_dir={folder}/data",
                          "--vocab_size=270"])
for function, few, many in ((iterations, 150, 1500), (generations, 10, 100), (leak, 0, 1500)):
    before = peak(function, few)
    print(function.__name__, peak(function, many) - before)
"""

SHORT_TEXTS = PEAK + """
import torch
from model import GPT, GPTConfig

model = GPT(GPTConfig(block_size=1024, vocab_size=65, n_layer=4, n_head=2, n_embd=128)).eval()
ids = torch.zeros(64, 8, dtype=torch.int64)
model.generate(ids, 8)
before = peak(int)
print(peak(model.generate, ids, 8) - before)
"""

needs_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(),
                                 reason="measured as Linux does it")


def run(code, *arguments):
    """Return what the code prints."""
    process = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, text=True,
                             env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


@needs_linux
def test_1500_iterations_and_100_generations_need_less_than_5_mb_more_than_a_few(tmp_path):
    output = run(LONG_RUNS, tmp_path)
    assert output.count("A prompt") == 110
    lines = [line.split() for line in output.splitlines()]
    grown = {words[0]: float(words[1]) for words in lines
             if words and words[0] in ("iterations", "generations", "leak")}
    assert grown["leak"] > 5  # 10 kB lost each time would be noticed
    assert grown["iterations"] < 5 and grown["generations"] < 5, grown


@needs_linux
def test_memory_for_generating_grows_with_the_text_and_not_with_block_size():
    assert float(run(SHORT_TEXTS)) < 50  # of 268 MB for the keys and values of 64 x 1024 positions
