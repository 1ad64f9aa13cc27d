#!/usr/bin/env bash
# Guess: @huggingface/tokenizers (npm, the tokenizers of transformers.js) gives the ids of
# tokenizers in Python for the same tokenizer.json, also for a pair of texts: encode(a, {text_pair:
# b}), where GPT-2, which has no special tokens between them, gets the ids of a and then those of
# b.
#
# @huggingface/tokenizers 0.2.0, tokenizers 0.23.3: with GPT-2's tokenizer.json the second text is
# left out: the ids are those of the first one alone, and so is the attention mask, without a word.
# It depends on the post_processor of the file. GPT-2's is "ByteLevel", which is there for the
# offsets; in JavaScript it hands on both texts next to each other, while the others join them, and
# encode() takes only the first. Without a post_processor, with "TemplateProcessing", and with both
# in a "Sequence" (Llama 3's) the second text is there. A prompt and its continuation, or a
# question and its context, given as a pair are scored or counted without the latter.
#
# Seen (a byte-level BPE trained on two lines; the same for another pair):
#   post_processor none: 11 ids in Python, 11 in JavaScript:
#     "What is the capital of France? It is Paris."
#   post_processor ByteLevel: 11 ids in Python, 7 in JavaScript: "What is the capital of France?"
#   post_processor template: 12 ids in Python, 12 in JavaScript:
#     "<|endoftext|>What is the capital of France? It is Paris."
#   post_processor sequence: 12 ids in Python, 12 in JavaScript:
#     "<|endoftext|>What is the capital of France? It is Paris."

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

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PAIRS = (("What is the capital of France?", " It is Paris."), ("The cat sat", " on the mat"))
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.train_from_iterator(["".join(pair) for pair in PAIRS], trainers.BpeTrainer(
    vocab_size=300, show_progress=False, special_tokens=["<|endoftext|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
byte_level = processors.ByteLevel(trim_offsets=False)
template = processors.TemplateProcessing(
    single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[("<|endoftext|>", 0)])
cases = []
for name, processor in (("none", None), ("ByteLevel", byte_level), ("template", template),
                        ("sequence", processors.Sequence([byte_level, template]))):
    if processor is not None:
        tokenizer.post_processor = processor
    for pair in PAIRS:
        cases.append({"name": name, "file": json.loads(tokenizer.to_str()), "pair": pair,
                      "first": tokenizer.encode(pair[0]).ids, "both": tokenizer.encode(*pair).ids})
with open("cases.json", "w") as file:
    json.dump(cases, file)
END

cat >check.mjs <<'END'
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";

for (const { name, file, pair, first, both } of JSON.parse(readFileSync("cases.json"))) {
  const tokenizer = new Tokenizer(file, {});
  const { ids, attention_mask } = tokenizer.encode(pair[0], { text_pair: pair[1] });
  console.log(`post_processor ${name}: ${both.length} ids in Python, ${ids.length} in ` +
    `JavaScript: ${JSON.stringify(tokenizer.decode(ids))}`);
  assert.deepStrictEqual(tokenizer.encode(pair[0]).ids, first);
  assert.strictEqual(attention_mask.length, ids.length);
  assert.deepStrictEqual(ids, name === "ByteLevel" ? first : both);
  assert(first.length < both.length);
}
END
node check.mjs
