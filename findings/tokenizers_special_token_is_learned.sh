#!/usr/bin/env bash
# Guess: a text whose documents are joined by <|endoftext|> is given to
# BpeTrainer, and <|endoftext|> is one of its special_tokens. A special token
# is never split when text is encoded, so while training it is taken out of
# the text too, and the vocabulary is the one that the documents alone give.
#
# Versions: tokenizers 0.23.3.
#
# Seen: training looks at no special tokens. The separator is split like any
# other text, its pieces are counted, and as there is one in every document
# they are among the first merges. Encoding then never produces them from a
# separator, since it is one token there: the entries are wasted.
#
#   merges that only the separator brings: ['<|', 'en', 'ex', 'ft', '|>',
#   'doft', 'endoft', 'ext', 'endoftext', '.<|', '?<|']
#   encoding the same text uses '<|', '|>', 'endoftext': 0 times
#   tokens of the documents with separators in training: 9600
#   tokens of the documents without: 8500
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile 'tokenizers==0.23.3'

"$work/venv/bin/python" - <<'PY'
from collections import Counter

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

END = "<|endoftext|>"
DOCUMENTS = [
    "A small cat sat by a wall.",
    "That dog ran along this road at night.",
    "Rain was falling on all our hills.",
    "How many birds sing in a city?",
    "No wind, no waves: a calm bay.",
] * 100


def train(texts):
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=256 + 1 + 40,
        special_tokens=[END],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def learned(tokenizer):
    ids = range(257, tokenizer.get_vocab_size())
    return [tokenizer.id_to_token(i) for i in ids]


joined = train(document + END for document in DOCUMENTS)
alone = train(DOCUMENTS)

extra = [t for t in learned(joined) if t not in learned(alone)]
print("merges that only the separator brings:", extra)

used = Counter()
for document in DOCUMENTS:
    used.update(joined.encode(document + END).tokens)
wasted = ("<|", "|>", "endoftext")
count = sum(used[t] for t in wasted)
print("encoding the same text uses '<|', '|>', 'endoftext':", count, "times")

with_separator = sum(len(joined.encode(d)) for d in DOCUMENTS)
without = sum(len(alone.encode(d)) for d in DOCUMENTS)
print("tokens of the documents with separators in training:", with_separator)
print("tokens of the documents without:", without)

assert used[END] == len(DOCUMENTS)
assert all(t in learned(joined) for t in wasted)
assert not any(t in learned(alone) for t in wasted)
assert count == 0
assert with_separator > without
PY
