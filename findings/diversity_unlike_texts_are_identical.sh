#!/usr/bin/env bash
# Guess: the scores of the package diversity for a model's outputs: homogenization_score (the mean
# ROUGE-L of all pairs; "higher = more homogeneous") is 1 for identical texts and 0 for texts
# without a word in common. compression_ratio with gzip (or xz) is the size of the joined texts over
# their size in gzip (or xz).
#
# diversity 0.3.1, rouge-score 0.1.2, torch 2.13.0: (1) texts without a word in common get 1, as
# identical ones do; if a single pair shares a word, it's near 0 again. A sum of 0 is taken to mean
# that all texts are the same, by a comment in its code, and replaced by their number. But identical
# texts get 1 in any case; a sum of 0 means the opposite. So the most diverse outputs are
# reported as the least diverse; it's most likely for few and short ones, such as names or titles,
# three or five to a prompt, and then a mean over prompts is made of 1 where 0 should be. (2) With
# gzip, the texts are compressed twice: gzip.compress() makes the bytes that are written through a
# GzipFile. For common text that costs some 40 bytes, which is more than a title has. Where a model
# goes round in circles, which is what the ratio is there to find, the output of gzip is itself
# repetitive and shrinks a second time. The ratio is then far above what gzip has, which can't
# exceed 1,032, and can't be compared with one from anywhere else. With xz it's compressed once.
# README and docstrings say nothing of either. (Import needs spacy and openai, not installed by it.)
#
# Seen (gzip's header has the time in it, so that its ratio for the circles varies by a few units):
#   unlike titles: homogenization 1.0 (mean of the pairs 0.000)
#   one title, three times: homogenization 1.0 (mean of the pairs 1.000)
#   unlike titles and one more: homogenization 0.067 (mean of the pairs 0.067)
#   titles: gzip 0.46 (by hand 0.70, gzip of gzip 0.46), xz 0.44 (by hand 0.44)
#   random words: gzip 3.08 (by hand 3.09, gzip of gzip 3.08), xz 3.32 (by hand 3.32)
#   circles: gzip 1290.43 (by hand 226.80, gzip of gzip 1290.43), xz 1714.91 (by hand 1714.91)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==4.57.6' 'sentence-transformers==5.7.0' 'evaluate==0.4.6' 'nltk==3.10.4' \
    'rouge-score==0.1.2' 'spacy==3.8.18' 'openai==3.57.0' 'diversity==0.3.1'
cd "$folder"

export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END_OF_PYTHON' || { cat "$folder/log"; exit 1; }
import gzip
import itertools
import lzma
import random

from diversity import compression_ratio, homogenization_score
from rouge_score.rouge_scorer import RougeScorer

scorer = RougeScorer(["rougeL"])


def homogenization(name, texts):
    """Return the score of the package and the mean ROUGE-L of all pairs."""
    score = homogenization_score(texts, verbose=False)
    pairs = [scorer.score(a, b)["rougeL"].fmeasure for a, b in itertools.permutations(texts, 2)]
    mean = sum(pairs) / len(pairs)
    print(f"{name}: homogenization {score} (mean of the pairs {mean:.3f})")
    return score, mean


def compression(name, texts):
    """Return the ratio for gzip and xz, those by hand, and gzip's of what gzip has made."""
    data = " ".join(texts).encode()
    once = gzip.compress(data)
    ratios = [compression_ratio(texts, "gzip"), compression_ratio(texts, "xz")]
    twice = gzip.compress(once) + b"compressed\0"  # the file's name is in its header
    by_hand = [len(data) / len(part) for part in (once, lzma.compress(data), twice)]
    print(f"{name}: gzip {ratios[0]:.2f} (by hand {by_hand[0]:.2f}, gzip of gzip "
          f"{by_hand[2]:.2f}), xz {ratios[1]:.2f} (by hand {by_hand[1]:.2f})")
    return ratios, by_hand


titles = ["Winter Light", "The Last Harbour", "Songs for Nobody"]
assert homogenization("unlike titles", titles) == (1, 0)
assert homogenization("one title, three times", titles[:1] * 3) == (1, 1)
score, mean = homogenization("unlike titles and one more", titles + ["Light of Ashes"])
assert abs(score - mean) < 6e-4 and 0 < mean < 0.1

random.seed(0)
words = [f"w{i}" for i in range(300)]
for name, texts, circles in (
        ("titles", titles, False),
        ("random words", [" ".join(random.choices(words, k=60)) for _ in range(100)], False),
        ("circles", ["The best way to do this is to do this. " * 10] * 1000, True)):
    (with_gzip, with_xz), (once, xz, twice) = compression(name, texts)
    assert abs(with_xz - xz) < 6e-4 and abs(with_gzip - twice) < 0.03 * twice
    assert with_gzip > 5 * once and with_gzip > 1032 if circles else with_gzip < once
END_OF_PYTHON
