#!/usr/bin/env bash
# Guess: all threads encode alike. tiktoken keeps 128 copies of its regular expression and gives
# each thread one of them, so that threads do not share the scratch memory of a search.
#
# tiktoken 0.14.0: with GPT-2's pattern, the thread that encodes first with an Encoding is faster
# than every other one, at any time, also when the others rest: the 128 copies share one pool of
# scratch memory, whose owner is the first thread that asked. Without a look-ahead in the pattern
# (GPT-2's has one, `\s+(?!\S)`), fancy-regex hands the whole of it to regex, whose copies have a
# pool each, and threads are alike. The text is one of short pieces, where looking for the next
# piece is most of the work; ordinary English shows less of it alone, but with two threads at a
# time and cores far apart, 11 to 20 MB/s were seen where two threads beside an idle first one
# encoded 26. So a program with a pool of threads does well to encode something in the main thread
# before they start.
#
# Seen (time of a thread divided by that of the first one):
#   GPT-2's pattern: the second 1.30, the third 1.29
#   without the look-ahead: the second 1.00, the third 1.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'tiktoken==0.14.0'

"$folder/venv/bin/python" - <<'END'
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import tiktoken

words = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
text = "a1" * 50_000


def slowdown(pattern):
    """Return how much longer the second and the third thread take than the first."""
    bytes_only = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding(
        "bytes", pat_str=pattern, mergeable_ranks=bytes_only, special_tokens={}
    )

    def seconds():
        start = time.perf_counter()
        encoding.encode_ordinary(text)
        return time.perf_counter() - start

    # Each pool is one thread. They take turns, so that only one works at a time.
    threads = [ThreadPoolExecutor(1) for _ in range(3)]
    times = [[thread.submit(seconds).result() for thread in threads] for _ in range(31)]
    first, second, third = (median(column) for column in zip(*times))
    return second / first, third / first


gpt2 = slowdown(words + r"|\s+(?!\S)|\s+")
plain = slowdown(words + r"|\s+")
print(f"GPT-2's pattern: the second {gpt2[0]:.2f}, the third {gpt2[1]:.2f}")
print(f"without the look-ahead: the second {plain[0]:.2f}, the third {plain[1]:.2f}")
assert min(gpt2) > 1.12
assert max(plain) < 1.12
END
