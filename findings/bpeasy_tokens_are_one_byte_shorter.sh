#!/usr/bin/env bash
# Guess: bpeasy's train_bpe(texts, pattern, 4, vocab_size), "max length of tokens" 4, returns the
# vocabulary of plain BPE in which no merge makes a token of more than 4 bytes, and so tokens of 4
# bytes among it. fill_to_nearest_multiple_of_eight of its BPEasyTokenizer, "pad vocab to multiple
# of 8", makes the vocabulary's size a multiple of 8.
#
# bpeasy 0.1.6: neither. The longest token has max_token_length - 1 bytes: the vocabulary is exactly
# that of plain BPE with a limit one lower, for every limit but 2, where it is right (pairs of bytes
# are never checked), so 2 and 3 are the same. A limit of 3, so that a character of Chinese or
# Devanagari may be one token, leaves all of them in two, and the text has more tokens; the default
# of 128 hides it. And the tokenizer pads a list that it has copied before: the size stays what it
# was, in the object, in len() and in the file that save() writes; save_vocab_to_tiktoken, with the
# same option, does pad its file.
#
# Seen (English and Hindi texts, 320 tokens; longest token in bytes, is it the vocabulary of plain
# BPE with the limit, and with one less, the tokens that all texts take, in brackets by hand):
#   limit 2: longest 2, with the limit True, with one less False, 587 tokens (587)
#   limit 3: longest 2, with the limit False, with one less True, 587 tokens (434)
#   limit 4: longest 3, with the limit False, with one less True, 434 tokens (377)
#   limit 5: longest 4, with the limit False, with one less True, 377 tokens (352)
#   limit 8: longest 7, with the limit False, with one less True, 331 tokens (324)
#   limit 128: longest 18, with the limit True, with one less True, 296 tokens (296)
#   padded: 295 in the tokenizer, 294 and a special one in its file, 296 in tiktoken's file

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'bpeasy==0.1.6' 'tiktoken==0.13.0'
cd "$folder"

"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import re
from collections import Counter

import bpeasy
from bpeasy.tokenizer import BPEasyTokenizer

SIZE, PATTERN = 320, r"\S+|\s+"
TEXTS = ["the cat and the bird and the dog near the house of the other bird"] * 9 + [
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0928\u092e\u0928 \u0938\u092e\u092f"] * 7


def plain_bpe(limit):
    """Return the vocabulary of BPE on bytes, and how many tokens the texts are at its end."""
    words = Counter(word.encode() for text in TEXTS for word in re.findall(PATTERN, text))
    split = {word: [bytes([byte]) for byte in word] for word in words}
    vocab = {bytes([byte]): byte for byte in range(256)}
    while len(vocab) < SIZE:
        pairs = Counter()
        for word, tokens in split.items():
            for pair in zip(tokens, tokens[1:]):
                if len(pair[0] + pair[1]) <= limit:
                    pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], vocab[pair[0]], vocab[pair[1]]))
        vocab.setdefault(best[0] + best[1], len(vocab))
        for word, tokens in split.items():
            place = 0
            while place + 1 < len(tokens):
                if (tokens[place], tokens[place + 1]) == best:
                    tokens[place:place + 2] = [best[0] + best[1]]
                place += 1
    return vocab, sum(len(split[word]) * count for word, count in words.items())


for limit in (2, 3, 4, 5, 8, 128):
    vocab = bpeasy.train_bpe(iter(TEXTS), PATTERN, limit, SIZE)
    wanted, count = plain_bpe(limit)
    lower, _ = plain_bpe(limit - 1)
    tokenizer = BPEasyTokenizer(vocab, PATTERN)
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS)
    longest = max(map(len, vocab))
    print(f"limit {limit}: longest {longest}, with the limit {set(vocab) == set(wanted)}, "
          f"with one less {set(vocab) == set(lower)}, {tokens} tokens ({count})")
    assert set(vocab) == set(wanted if limit == 2 else lower)
    assert limit > 5 or (max(map(len, wanted)) == limit and longest == max(limit - 1, 2))

padded = BPEasyTokenizer(vocab, PATTERN, ["<s>"], fill_to_nearest_multiple_of_eight=True)
padded.save("saved.json")
bpeasy.save_vocab_to_tiktoken(vocab, "saved.txt", ["<s>"], fill_to_nearest_multiple_of_eight=True)
sizes = (padded._encoder.n_vocab, len(BPEasyTokenizer.from_file("saved.json").vocab),
         len(open("saved.txt").readlines()))
print(f"padded: {sizes[0]} in the tokenizer, {sizes[1]} and a special one in its file, "
      f"{sizes[2]} in tiktoken's file")
assert sizes[0] == len(vocab) + 1 == sizes[1] + 1 and sizes[0] % 8 and sizes[2] % 8 == 0
END
grep -E '^(limit|padded)' "$folder/out"
