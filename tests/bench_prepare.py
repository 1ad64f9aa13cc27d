"""How fast prepare.py is here, stage by stage, each beside the tokenizer alone in the same run.

    python tests/bench_prepare.py                  # 400 MB of text, and the times of learning a BPE
    python tests/bench_prepare.py --megabytes=2000 --input=corpus.txt

The text is a file whose lines are shuffled again and again until it is as long as asked for. The
tokenizer alone is tiktoken with a thread for each core, encoding the same pieces from memory, in
the best way we know: without looking for special tokens, and with another thread to encode first,
since the first one of all slows down the others (its scratch memory is kept apart, and they look at
it each time).
"""

import argparse
import collections
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

import config  # noqa: E402
import prepare  # noqa: E402

ROOT = Path(__file__).parent.parent


def timed(function):
    """Return the seconds of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def corpus(lines, megabytes, path):
    """Write so many megabytes; return the exact number."""
    dice = random.Random(1)
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            dice.shuffle(lines)
            file.writelines(lines)
    return path.stat().st_size / 1e6


def words_of(texts):
    words = collections.Counter()
    for text in texts:
        words.update(regex.findall(prepare.PATTERN, text))
    return words


def learning(lines, folder):
    print(f"{'learning a BPE':28}{'seconds':>9}")
    for vocab_size, megabytes in ((1024, 1), (2048, 1), (8192, 20)):
        path = folder / "bpe.txt"
        size = corpus(lines, megabytes, path)
        with open(path, "a", encoding="utf-8") as file:  # new words, as a large text has them
            dice = random.Random(2)
            letters = [chr(97 + i) for i in range(26)]
            file.writelines("".join(dice.choices(letters, range(26, 0, -1), k=dice.randint(4, 9)))
                            + " " for _ in range(megabytes * 5000))
        start = time.perf_counter()
        words = words_of(text for text, _ in prepare.document_pieces([str(path)]))
        counted = time.perf_counter()
        prepare.train_bpe(words, vocab_size)
        end = time.perf_counter()
        print(f"{f'{vocab_size:,} tokens on {size:.1f} MB':28}{end - start:9.2f}   (counting "
              f"{counted - start:.2f}, {len(words):,} words; learning {end - counted:.2f})")


def stages(lines, megabytes, folder):
    path, documents = folder / "text.txt", folder / "documents.jsonl"
    size = corpus(lines, megabytes, path)
    texts = [text for text, _ in prepare.document_pieces([str(path)])]
    with open(documents, "w") as file:  # of about 2,000 characters each
        for text in texts:
            file.writelines(json.dumps({"text": text[i:i + 2000]}) + "\n"
                            for i in range(0, len(text), 2000))
    description = {"name": "bpe", "tokens": prepare.train_bpe(words_of(texts[:16]), 2048)}
    encoding = prepare.load_tokenizer(description)

    def ids(text):
        return encoding.encode_to_numpy(text, disallowed_special=())

    def encode(threads):
        with ThreadPoolExecutor(threads) as pool:
            collections.deque(pool.map(ids, texts), maxlen=0)

    def read(path):
        collections.deque(prepare.document_pieces([str(path)]), maxlen=0)

    def whole(path, *arguments):
        with redirect_stdout(open(os.devnull, "w")):
            assert config.run(prepare.main, [f"--input={path}", f"--out_dir={folder}/data",
                                             *arguments]) == 0

    print(f"\n{f'{size:.0f} MB, {os.cpu_count()} cores':38}{'MB/s':>8}{'of the tokenizer':>18}")

    def row(name, seconds, tokenizer):
        print(f"{name:38}{size / seconds:8.1f}{tokenizer / seconds:17.0%}", flush=True)

    first = timed(lambda: encode(os.cpu_count()))
    ids("\na")
    before = timed(lambda: encode(os.cpu_count()))
    row("the tokenizer alone", before, before)
    row("the same, its first thread among them", first, before)
    row("reading text in pieces", timed(lambda: read(path)), before)
    row("reading documents from .jsonl", timed(lambda: read(documents)), before)
    row("sha256", timed(lambda: [hashlib.sha256(text.encode()) for text in texts]), before)
    for name, function in (
            ("the tokenizer with one thread", lambda: encode(1)),
            ("all of prepare.py, BPE included", lambda: whole(path)),
            ("all of prepare.py once more", lambda: whole(path)),
            ("the same with --workers=1", lambda: whole(path, "--workers=1")),
            ("the same, .jsonl", lambda: whole(documents))):
        seconds = timed(function)
        after = timed(lambda: encode(os.cpu_count()))  # again each time: the machine's speed varies
        row(name, seconds, (before + after) / 2)
        before = after


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", default=ROOT / "input.txt", type=Path)
    parser.add_argument("--megabytes", type=float, default=400)
    arguments = parser.parse_args()
    lines = arguments.input.read_text(encoding="utf-8").splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as folder:
        learning(lines, Path(folder))
        stages(lines, arguments.megabytes, Path(folder))


if __name__ == "__main__":
    main()
