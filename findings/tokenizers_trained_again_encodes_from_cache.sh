#!/usr/bin/env bash
# Guess: a tokenizer that has encoded some text and is then trained on other
# text encodes by what it learned last, just as a copy of it, made by to_str
# and from_str, does.
#
# Versions: tokenizers 0.23.3.
#
# Seen: words that were encoded before the second training keep the ids of
# the first. The model remembers how it split a word, and training replaces
# vocabulary and merges but not that memory. In the new vocabulary the ids
# mean something else, so decoding gives other text, and nothing is raised.
#
#   before the second training: [257, 269, 273, 259, 274]
#   after it: [257, 269, 273, 259, 274]
#   after it, by a copy: [260, 281, 276, 265, 283]
#   decoded: 'hees nono do'
#   decoded, from the copy: 'the cat and the dog'
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile 'tokenizers==0.23.3'

"$work/venv/bin/python" - <<'PY'
from tokenizers import Tokenizer
from tokenizers import decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

FIRST = "the cat and the dog sat by the wall"
SECOND = "no wind, no waves: so calm a bay, by the cat and the dog"
TEXT = "the cat and the dog"


def train(tokenizer, text):
    trainer = BpeTrainer(
        vocab_size=290,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text] * 10, trainer)


tokenizer = Tokenizer(BPE())
tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()

train(tokenizer, FIRST)
before = tokenizer.encode(TEXT).ids
train(tokenizer, SECOND)
after = tokenizer.encode(TEXT).ids
decoded = tokenizer.decode(after)
copy = Tokenizer.from_str(tokenizer.to_str())
right = copy.encode(TEXT).ids

print("before the second training:", before)
print("after it:", after)
print("after it, by a copy:", right)
print("decoded:", repr(decoded))
print("decoded, from the copy:", repr(tokenizer.decode(right)))

assert after == before
assert after != right
assert decoded != TEXT
assert tokenizer.decode(right) == TEXT
PY
