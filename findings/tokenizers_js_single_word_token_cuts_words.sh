#!/usr/bin/env bash
# Guess: @huggingface/tokenizers (npm, the tokenizers of transformers.js) gives the ids of
# tokenizers in Python for a tokenizer.json with an added token that has single_word, "whether this
# token must be a single word or can break words", as its type declarations say, too: "AI" added in
# this way is found in "AI is", but not in "MAIN" or "AIM".
#
# @huggingface/tokenizers 0.2.0, tokenizers 0.23.3: the setting is read from the file, kept, and
# never looked at. The token is cut out of any word that has these letters in a row, and what is
# left on both sides is tokenized by itself. Words that have nothing to do with it get other ids
# than the model was trained with, and more of them, without a word. Decoding gives the text back,
# so that it isn't seen there. lstrip and rstrip, which stand next to it in the file, are kept.
# Without single_word the token cuts words in Python, too, and both agree.
#
# Seen (byte-level BPE as GPT-2's, trained on a few lines; "AI" added; _ is a space):
#   single_word, "use AI now": both u s e _ AI _ n o w
#   single_word, "the MAIN AIM": Python the _MAIN _AIM | JavaScript the _ M AI N _ AI M
#   single_word, "THE TRAIN WAITS AGAIN": Python THE _TRAIN _WAITS _AGAIN
#     JavaScript THE _ T R AI N _ W AI TS _AG AI N
#   single_word, "RAIN IN SPAIN": Python RAIN _IN _SPAIN | JavaScript R AI N _IN _ S P AI N
#   any word, "use AI now": both u s e _ AI _ n o w
#   any word, "the MAIN AIM": both the _ M AI N _ AI M
#   any word, "THE TRAIN WAITS AGAIN": both THE _ T R AI N _ W AI TS _AG AI N
#   any word, "RAIN IN SPAIN": both R AI N _IN _ S P AI N

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

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = ("the MAIN AIM", "THE TRAIN WAITS AGAIN", "RAIN IN SPAIN")
cases = []
for name, single in (("single_word", True), ("any word", False)):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=400, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_tokens([AddedToken("AI", single_word=single)])
    for text in ("use AI now", *TEXTS):
        encoding = tokenizer.encode(text)
        cases.append({"name": name, "text": text, "ids": encoding.ids, "tokens": encoding.tokens,
                      "file": json.loads(tokenizer.to_str())})
with open("cases.json", "w") as file:
    json.dump(cases, file)
END

cat >check.mjs <<'END'
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";

const show = (tokens) => tokens.join(" ").replaceAll("\u0120", "_");
for (const { name, text, ids, tokens, file } of JSON.parse(readFileSync("cases.json"))) {
  const tokenizer = new Tokenizer(file, {}), result = tokenizer.encode(text);
  const same = JSON.stringify(result.ids) === JSON.stringify(ids);
  console.log(`${name}, "${text}": ` + (same ? `both ${show(tokens)}` :
    `Python ${show(tokens)}${tokens.length > 3 ? "\n " : " |"} JavaScript ${show(result.tokens)}`));
  assert.strictEqual(same, name !== "single_word" || text === "use AI now");
  if (!same) assert(result.ids.length > ids.length && result.tokens.includes("AI"));
  if (name === "single_word") assert.strictEqual(tokenizer.decode(result.ids), text);
}
END
node check.mjs
