#!/usr/bin/env bash
# Guess: NeMo Curator's RepeatingTopNGramsFilter (a rule of Gopher's) measures which share of a
# document's characters is its most frequent n-gram of words, and drops the document if it's more
# than 0.2. It does so for Chinese, too (lang="zh", where a library of its own finds the words), for
# words on lines of their own, and it's the same whenever it's computed.
#
# nemo-curator 1.4.0: none of the three. The words of the n-gram are joined by spaces, and this
# string is looked for in the text. (1) Chinese has no spaces, so it's never found: the share is 0,
# and one sentence twenty times over is kept, as is all text without spaces. The filter for
# duplicate n-grams, which adds up lengths, counts spaces that aren't there: a share of 1.46.
# (2) In English the same holds for an n-gram with a line's end in it: "yes" on each of 50 lines is
# kept, on one line it's dropped. (3) Of n-grams that are equally frequent it takes the first in
# the order of a set, which Python makes anew in each process. So documents that aren't very long
# are kept in one run and dropped in another.
#
# Seen (the share for n = 2, 3, 4, and what becomes of the document):
#   English, one sentence 20 times: 0.23 0.37 0.47 dropped dropped dropped
#   Chinese, one sentence 20 times: 0.00 0.00 0.00 kept kept kept
#   the same, its words with spaces between: 0.29 0.47 0.59 dropped dropped dropped
#   duplicate 2-grams of the two: 1.46 0.95
#   "yes" on 50 lines: 0.00 0.00 0.00 kept kept kept
#   "yes" on one line: 0.88 0.88 0.90 dropped dropped dropped
#   one text in ten processes: shares of 0.05 and 0.29, dropped in 6

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# without torch, transformers, datasets and others that these filters don't need
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps 'nemo-curator==1.4.0' \
    'cosmos-xenna==0.2.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'ray==2.57.0' 'jieba==0.42.1' 'loguru==0.7.3' \
    'pandas==3.1.1' 'pyarrow==26.0.1' 'regex==2026.11.19' \
    2>"$folder/log" || { cat "$folder/log"; exit 1; }
cd "$folder"
export PYTHONHASHSEED=0 TMPDIR="$folder"

cat >filters.py <<'END'
import logging

import jieba
import pandas as pd
from nemo_curator.stages.text.filters import ScoreFilter
from nemo_curator.stages.text.filters.heuristic.repetition import (
    RepeatingDuplicateNGramsFilter, RepeatingTopNGramsFilter)
from nemo_curator.tasks import DocumentBatch

jieba.setLogLevel(logging.ERROR)


def run(text, rule):
    """Return the score that a filter gives to a text, and whether it keeps it."""
    stage = ScoreFilter(rule, text_field="text", score_field="score")
    # a second document that all filters keep
    frame = pd.DataFrame({"text": [text, " ".join(f"word{i}" for i in range(500))]})
    left = stage.process(DocumentBatch(dataset_name="", data=frame)).to_pandas()["text"].tolist()
    return rule.score_document(text), text in left


def top(text, n, lang="en"):
    return run(text, RepeatingTopNGramsFilter(n=n, lang=lang))


fillers = [a + b + c for a in "bdfgk" for b in "aeiou" for c in "lmn"]
tied = ""
for i in range(4):
    a, b, c = (" ".join(fillers[15 * i + 5 * j:15 * i + 5 * j + 5]) for j in range(3))
    tied += f"{a} it is {b} international organisations {c} "
END
cat >check.py <<'END'
import subprocess
import sys
from collections import Counter

import jieba
from filters import RepeatingDuplicateNGramsFilter, run, tied, top


def by_hand(text, words, n, space):
    """Return the smallest and largest share of the n-grams that are most frequent."""
    counts = Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1))
    shares = [text.count(space.join(gram)) * len(space.join(gram)) / len(text)
              for gram, count in counts.items() if count == max(counts.values())]
    return min(shares), max(shares)


def show(label, text, words, space, lang="en", wrong=False):
    results = [top(text, n, lang) for n in (2, 3, 4)]
    print(f"{label}:", *(f"{score:.2f}" for score, _ in results),
          *("kept" if kept else "dropped" for _, kept in results))
    for n, (score, kept) in zip((2, 3, 4), results):
        low, high = by_hand(text, words, n, space)
        assert high > 0.2 and kept == wrong
        assert score == 0 if wrong else low - 1e-9 <= score <= high + 1e-9


english = "we all like to learn models . " * 20
show("English, one sentence 20 times", english, english.split(), " ")
chinese = "\u6211\u4eec\u559c\u6b22\u5b66\u4e60\u8bed\u8a00\u6a21\u578b\u3002" * 20
words = list(jieba.cut(chinese))
spaced = " ".join(words)
show("Chinese, one sentence 20 times", chinese, words, "", lang="zh", wrong=True)
show("the same, its words with spaces between", spaced, words, " ")
shares = [run(text, RepeatingDuplicateNGramsFilter(n=2, lang=lang))[0]
          for text, lang in ((chinese, "zh"), (spaced, "en"))]
print("duplicate 2-grams of the two:", *(f"{share:.2f}" for share in shares))
assert shares[0] > 1 > shares[1]
lines = "yes\n" * 50
show('"yes" on 50 lines', lines, lines.split(), "\n", wrong=True)
line = lines.replace("\n", " ")
show('"yes" on one line', line, line.split(), " ")

low, high = by_hand(tied, tied.split(), 2, " ")
seen = [eval(subprocess.run([sys.executable, "-c", "from filters import *; print(top(tied, 2))"],
                            env={"PYTHONHASHSEED": str(seed)}, check=True, capture_output=True,
                            text=True).stdout) for seed in range(10)]
scores = sorted({round(score, 9) for score, _ in seen})
print("one text in ten processes: shares of", " and ".join(f"{score:.2f}" for score in scores)
      + f", dropped in {sum(not kept for _, kept in seen)}")
assert scores == [round(low, 9), round(high, 9)] and low < 0.2 < high
assert all(kept == (score < 0.2) for score, kept in seen)
END
"$folder/venv/bin/python" check.py 2>"$folder/log" || { cat "$folder/log"; exit 1; }
