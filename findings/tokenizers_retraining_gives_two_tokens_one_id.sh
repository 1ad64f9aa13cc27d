#!/usr/bin/env bash
# Guess: a tokenizer that was trained, and given <|endoftext|> as its last id
# as in GPT-2, is trained again for a larger vocabulary. Training starts from
# nothing, so the special token is either forgotten or given a free id.
#
# Versions: tokenizers 0.23.3.
#
# Seen: the special token stays, with the number it had, and a newly learned
# token gets the same number. Two tokens share one id. Decoding takes the id
# for the special token, which it leaves out by default, so the letters of
# the learned token are lost from text.
#
#   id of <|endoftext|> before: 279
#   id of <|endoftext|> after: 279
#   learned token with that id: '\u0120cat'
#   encoded: [258, 279, 290, 259, 291, 284, 278, 259, 287, 288, 259, ...]
#   decoded: 'the and the dog sat by the wall while the rain fell on all hills'
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

END = "<|endoftext|>"
TEXT = "the cat and the dog sat by the wall while the rain fell on all hills"


def train(tokenizer, size):
    trainer = BpeTrainer(
        vocab_size=size,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 10, trainer)


tokenizer = Tokenizer(BPE())
tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()

train(tokenizer, 279)
tokenizer.add_special_tokens([END])
before = tokenizer.token_to_id(END)
print("id of <|endoftext|> before:", before)

train(tokenizer, 300)
after = tokenizer.token_to_id(END)
print("id of <|endoftext|> after:", after)

vocab = tokenizer.get_vocab()
shared = [t for t, i in vocab.items() if i == after and t != END]
print("learned token with that id:", ascii(shared[0]))

ids = tokenizer.encode(TEXT).ids
decoded = tokenizer.decode(ids)
print("encoded:", ids)
print("decoded:", repr(decoded))

assert before == after == 279
assert len(shared) == 1
assert END not in TEXT
assert after in ids
assert decoded != TEXT
PY
