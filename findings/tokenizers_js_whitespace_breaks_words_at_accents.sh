#!/usr/bin/env bash
# Guess: @huggingface/tokenizers (npm, the tokenizers of transformers.js) gives the ids of
# tokenizers in Python for a tokenizer.json whose pre_tokenizer is "Whitespace", the one of the
# guides for training a tokenizer, and in the package's list of what it supports: it splits a text
# into words (letters, digits and underscores) and runs of other signs, in any language.
#
# @huggingface/tokenizers 0.2.0, tokenizers 0.23.3: only in English. In Python letters are those of
# Unicode; here they are a to z, and any other letter counts as a sign. So a word is cut at each
# accent, and the pieces are tokenized by themselves. In Russian, Greek or Chinese there are no
# words at all: a word and the comma after it are one piece. The model has never seen these pieces:
# BPE gives more and other tokens for words with accents, WordPiece the unknown token for words
# before punctuation. No error, and decoding BPE's tokens shows nothing odd. Patterns that a file
# brings along ("Split") are translated with care: the same pattern given in that way is right.
#
# Seen (tokenizers trained on the texts; number of tokens; with WordPiece it varies by one or two):
#   BPE, English: Python 13 (0 unknown), JavaScript 13 (0 unknown)
#   BPE, German: Python 9 (0 unknown), JavaScript 20 (0 unknown)
#   BPE, French: Python 9 (0 unknown), JavaScript 16 (0 unknown)
#   BPE, Russian: Python 6 (0 unknown), JavaScript 6 (0 unknown)
#   WordPiece, English: Python 13 (0 unknown), JavaScript 13 (0 unknown)
#   WordPiece, German: Python 9 (0 unknown), JavaScript 24 (0 unknown)
#   WordPiece, French: Python 9 (0 unknown), JavaScript 19 (0 unknown)
#   WordPiece, Russian: Python 6 (0 unknown), JavaScript 4 (2 unknown)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'tokenizers==0.23.3' 2>"$folder/log" ||
    { cat "$folder/log"; exit 1; }
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts '@huggingface/tokenizers@0.2.0' \
    >log 2>&1 || { cat log; exit 1; }

export HF_HUB_OFFLINE=1
venv/bin/python - <<'END'
import json

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

TEXTS = {"English": "The dog sleeps, the cat eats; and the child plays.",
         "German": "Die V\u00f6gel fr\u00fchst\u00fccken, die M\u00e4use h\u00f6ren zu.",
         "French": "L'\u00e9t\u00e9 dernier, le gar\u00e7on r\u00eavait.",
         "Russian": "\u0421\u043e\u0431\u0430\u043a\u0430 \u0441\u043f\u0438\u0442, "
                    "\u043a\u043e\u0442 \u0435\u0441\u0442."}
UNKNOWN = "[UNK]"
whitespace = pre_tokenizers.Whitespace()
# The same, as a pattern in the file.
split = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), "removed", invert=True)
cases = []
for name, model, trainer in (
        ("BPE", models.BPE(unk_token=UNKNOWN), trainers.BpeTrainer),
        ("WordPiece", models.WordPiece(unk_token=UNKNOWN), trainers.WordPieceTrainer)):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = whitespace
    tokenizer.train_from_iterator(
        TEXTS.values(), trainer(special_tokens=[UNKNOWN], vocab_size=400, show_progress=False))
    for language, text in TEXTS.items():
        expected = tokenizer.encode(text)
        files = []
        for pre_tokenizer in (whitespace, split):
            tokenizer.pre_tokenizer = pre_tokenizer
            assert tokenizer.encode(text).ids == expected.ids
            files.append(json.loads(tokenizer.to_str()))
        tokenizer.pre_tokenizer = whitespace
        cases.append({"name": f"{name}, {language}", "text": text, "ids": expected.ids,
                      "file": files[0], "split": files[1]})
with open("cases.json", "w") as file:
    json.dump(cases, file)
END

cat >check.mjs <<'END'
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";

const count = (ids) => `${ids.length} (${ids.filter((id) => id === 0).length} unknown)`;
for (const { name, text, ids, tokens, file, split } of JSON.parse(readFileSync("cases.json"))) {
  const result = new Tokenizer(file, {}).encode(text);
  console.log(`${name}: Python ${count(ids)}, JavaScript ${count(result.ids)}`);
  assert.deepStrictEqual(new Tokenizer(split, {}).encode(text).ids, ids);
  if (name.endsWith("English") || name === "BPE, Russian") assert.deepStrictEqual(result.ids, ids);
  else assert.notDeepStrictEqual(result.ids, ids);
  assert(!ids.includes(0));
}
END
node check.mjs
