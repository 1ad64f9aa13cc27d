"""How fast prepare.py is here, stage by stage, each beside the tokenizer alone in the same run.

    python tests/bench_prepare.py                # 100 MB of text, and the BPE's own times
    python tests/bench_prepare.py --megabytes=400 --input=corpus.txt

The text is a file that is repeated to the size asked for. The tokenizer alone is tiktoken with as
many threads, encoding the same pieces out of memory.
"""

import argparse
import collections
import gzip
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import regex  # noqa: E402
import torch  # noqa: E402

import config  # noqa: E402
import prepare  # noqa: E402
import train  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

ROOT = Path(__file__).parent.parent


def timed(function, repeats=3):
    """Return the best seconds of a call, and its result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def corpus(text, megabytes, path):
    """Write a text of so many megabytes: the lines of one, shuffled anew each time, so that it
    doesn't repeat; return its size in MB."""
    lines = text.splitlines(keepends=True)
    dice = random.Random(1)
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            dice.shuffle(lines)
            file.writelines(lines)
    return path.stat().st_size / 1e6


def words_of(path):
    words = collections.Counter()
    for text, _ in prepare.documents([str(path)]):
        words.update(regex.findall(prepare.PATTERN, text))
    return words


def bpe(text, folder):
    print(f"\n{'training a BPE':28}{'limit':>8}{'seconds':>9}")
    for vocab_size, megabytes, limit in ((1024, 1, 1.5), (8192, 20, 60)):
        path = folder / "bpe.txt"
        corpus(text, megabytes, path)
        with open(path, "a", encoding="utf-8") as file:  # new words, as a large text has them
            dice = random.Random(2)
            letters = [chr(97 + i) for i in range(26)]
            file.writelines("".join(dice.choices(letters, range(26, 0, -1), k=dice.randint(4, 9)))
                            + " " for _ in range(megabytes * 5000))
        seconds, words = timed(lambda path=path: words_of(path), 1)
        learning, _ = timed(lambda words=words, size=vocab_size: prepare.train_bpe(words, size), 1)
        print(f"{f'{vocab_size:,} on {megabytes} MB':28}{limit:8}{seconds + learning:9.2f}   "
              f"(counting {seconds:.2f}, {len(words):,} words; learning {learning:.2f})")


def stages(text, megabytes, folder, threads):
    path = folder / "text.txt"
    size = corpus(text, megabytes, path)
    packed = folder / "text.jsonl.gz"
    with gzip.open(packed, "wt", 1, encoding="utf-8") as file:
        pieces = [text[i:i + 3000] for i in range(0, len(text), 3000)]
        for _ in range(int(size * 1e6 / len(text.encode()))):
            file.writelines(json.dumps({"text": piece}) + "\n" for piece in pieces)
    encoding = prepare.load_tokenizer(prepare.gpt2_tokenizer())
    texts = [piece for piece, _ in prepare.documents([str(path)])]

    def alone():
        with ThreadPoolExecutor(threads) as pool:
            collections.deque(pool.map(encoding.encode_to_numpy, texts), maxlen=0)

    def whole(source, count):
        with redirect_stdout(open(os.devnull, "w")):
            assert config.run(prepare.main, [f"--input={source}", "--tokenizer=gpt2",
                                             f"--workers={count}", f"--out_dir={folder}/data"]) == 0

    tokenizer, _ = timed(alone)
    rows = [("the tokenizer alone", lambda: None),
            ("reading, in pieces", lambda: sum(len(t) for t, _ in prepare.documents([str(path)]))),
            ("reading .jsonl.gz", lambda: sum(len(t) for t, _ in prepare.documents([str(packed)]))),
            ("sha256", lambda: [hashlib.sha256(t.encode()) for t in texts]),
            ("finding words, for a BPE", lambda: [regex.findall(prepare.PATTERN, t)
                                                  for t in texts[:len(texts) // 8]] * 8),
            ("all of prepare.py", lambda: whole(path, threads)),
            ("all of prepare.py, .jsonl.gz", lambda: whole(packed, threads)),
            ("the same with one worker", lambda: whole(path, 1))]
    print(f"{f'{size:.0f} MB, {threads} threads':28}{'MB/s':>8}{'of the tokenizer':>18}")
    for name, function in rows:
        seconds = timed(function, 2)[0] if name != rows[0][0] else tokenizer
        seconds *= 8 if name.startswith("finding") else 1
        print(f"{name:28}{size / seconds:8.1f}{tokenizer / seconds:17.0%}", flush=True)


def batches(folder):
    """Measure a batch out of ten billion tokens beside an iteration of the small model."""
    with open(folder / "train.bin", "wb") as file:
        file.truncate(20_000_000_000)
    (folder / "val.bin").write_bytes(bytes(2000))
    train.block_size, train.batch_size = 64, 32
    seconds, (_, data) = timed(lambda: train.load_data(folder), 1)
    model = GPT(GPTConfig(block_size=64, vocab_size=2048, n_layer=4, n_head=4, n_embd=192))
    place = iter(range(0, 10**9, 12_345))
    batch, ids = timed(lambda: train.get_batch(data["train"], 0, 2048), 30)
    fresh, _ = timed(lambda: train.get_batch(data["train"], next(place), 2048), 30)
    iteration, _ = timed(lambda: model(ids[:, :-1], ids[:, 1:])[1].backward(), 10)
    print(f"\n10 billion tokens (a sparse file): opened in {seconds:.3f} s; a batch takes "
          f"{batch * 1e3:.2f} ms ({fresh * 1e3:.2f} ms from pages not read before), "
          f"{batch / iteration:.2%} of an iteration without its optimizer ({iteration:.2f} s)")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", default=ROOT / "input.txt", type=Path)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    text = arguments.input.read_text(encoding="utf-8")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stages(text, arguments.megabytes, Path(folder), arguments.threads)
        bpe(text, Path(folder))
        batches(Path(folder))


if __name__ == "__main__":
    main()
