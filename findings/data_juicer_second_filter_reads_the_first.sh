#!/usr/bin/env bash
# Guess: a recipe of Data-Juicer may have a filter twice, each with its own settings: for another
# field of the sample (text_key), for another length of the repeated n-grams (rep_len), or once more
# after a mapper has shortened the texts. Each decides by what it measures itself.
#
# py-data-juicer 1.6.1: only the first one measures. A filter writes its number under a name of its
# kind ("text_len", "char_rep_ratio") into the sample's stats, and any later filter of this kind
# finds it there, takes it for its own ("computed already") and compares that with its limits. The
# name holds neither the field nor the settings, and a mapper that changes the text leaves the stats
# as they are. So a question's length decides on the answer, the share of repeated 2-grams on
# the limit for 10-grams, and what was cleaned away still counts. 47 of its 58 filters have that
# check; dj-process with a recipe gives the same as load_ops here, and nothing is said. If the
# recipe is cut into two runs, all is right.
#
# Seen (200 samples; how many a second filter keeps, in one recipe and in a run of its own, which is
# what a plain computation gives):
#   answers of 50 letters or more, after questions of 50 or more: 95 in one recipe, 47 in two
#   of the 95 have a shorter answer: 48
#   repeated 10-grams below 0.2, after 2-grams below 0.9: 46 in one recipe, 200 in two
#   50 letters or more without links, after 50 or more with links: 200 in one recipe, 95 in two

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'py-data-juicer==1.6.1' 'aiohttp==3.14.5' \
    'datasets==5.2.0' 'numpy==2.4.6' 'pyarrow==26.0.1' 'pandas==3.1.1'
cd "$folder"

export HF_HUB_OFFLINE=1 HOME="$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import random
from collections import Counter

import datasets
from data_juicer.core.data import NestedDataset
from data_juicer.ops import load_ops

datasets.disable_caching()
random.seed(0)
words = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]


def text():
    return " ".join(random.choices(words, k=random.choice([5, 40])))


samples = [{"text": text(), "answer": text()} for _ in range(200)]
linked = [{"text": x["text"] + " https://example.org/" + "a" * 60, "answer": ""} for x in samples]


def process(samples, *recipe):
    """Return the samples that a recipe (a list of operators with their settings) leaves."""
    return NestedDataset.from_list(samples).process(load_ops(list(recipe))).select_columns(
        ["text", "answer"]).to_list()


def repeated(text, n):
    """Return what Data-Juicer documents as the share of repeated n-grams of characters."""
    counts = sorted(Counter(text[i:i + n] for i in range(len(text) - n + 1)).values())[::-1]
    number = min(int(len(counts) ** 0.5), len(counts) - counts.count(1))
    return sum(counts[:number]) / sum(counts) if counts else 0


def compare(label, samples, first, *rest, keep):
    one = process(samples, first, *rest)
    two = process(process(samples, first), *rest)
    print(f"{label}: {len(one)} in one recipe, {len(two)} in two")
    assert len(two) == sum(map(keep, samples)) != len(one)
    return one


def longer(key):
    return {"text_length_filter": {"text_key": key, "min_len": 50}}


kept = compare("answers of 50 letters or more, after questions of 50 or more", samples,
               longer("text"), longer("answer"),
               keep=lambda x: len(x["text"]) >= 50 and len(x["answer"]) >= 50)
short = sum(len(x["answer"]) < 50 for x in kept)
print(f"of the {len(kept)} have a shorter answer: {short}")
assert len(kept) == sum(len(x["text"]) >= 50 for x in samples) and short > 0

compare("repeated 10-grams below 0.2, after 2-grams below 0.9", samples,
        {"character_repetition_filter": {"rep_len": 2, "max_ratio": 0.9}},
        {"character_repetition_filter": {"rep_len": 10, "max_ratio": 0.2}},
        keep=lambda x: repeated(x["text"], 2) <= 0.9 and repeated(x["text"], 10) <= 0.2)
compare("50 letters or more without links, after 50 or more with links", linked,
        longer("text"), {"clean_links_mapper": {}}, longer("text"),
        keep=lambda x: len(x["text"].split("https:")[0]) >= 50)
END
