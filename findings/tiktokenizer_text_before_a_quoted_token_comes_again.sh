#!/usr/bin/env bash
# Guess: @microsoft/tiktokenizer (npm; Microsoft's tokenizer for OpenAI's models in TypeScript)
# gives the ids of tiktoken, also for a text in which only some of the special tokens are allowed:
# those that aren't are text, like any other.
#
# @microsoft/tiktokenizer 1.0.10: if a special token that isn't allowed stands before one that is,
# a part of the text is encoded twice. The search for the next special token skips over the one
# that isn't allowed and goes on behind its first character; where the allowed one is found, is
# counted from there, but used as if counted from where the search began. The rest of the text then
# starts too early, by as many characters as stand before the token that isn't allowed, and one
# more. If that's more than the length of the allowed token, that token is found again, and comes
# twice, too. A document that quotes <|fim_prefix|> somewhere and ends in <|endoftext|> is followed
# by a piece of itself and another <|endoftext|>, in the training data or in the count of a
# prompt's tokens. encodeTrimPrefix() and encodeTrimSuffix() have the same fault. Nothing is said;
# with no special tokens, or all, allowed the ids are right. tiktoken (npm, a build of the
# original) is right.
#
# Seen (cl100k_base; the ids decoded; in the last two only <|endoftext|> is allowed):
#   6 ids (tiktoken 6): One.<|endoftext|>Two.<|endoftext|>
#   6 ids (tiktoken 6): A <|fim_prefix|> B<|endoftext|>C
#   16 ids (tiktoken 16): A <|fim_prefix|> B<|endoftext|>C
#   13 ids (tiktoken 10): A <|fim_prefix|> B<|endoftext|>t|>C
#   26 ids (tiktoken 23): To fill in, put <|fim_prefix|> first. It is a token.<|endoftext|>ken.
#     <|endoftext|>Next text.<|endoftext|> (all in one line)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts '@microsoft/tiktokenizer@1.0.10' \
    'js-tiktoken@1.0.21' 'tiktoken@1.0.22' >log 2>&1 || { cat log; exit 1; }

cat >check.cjs <<'END'
const assert = require("assert");
const microsoft = require("@microsoft/tiktokenizer");
const ranks = require("js-tiktoken/ranks/cl100k_base");
const tiktoken = require("tiktoken").get_encoding("cl100k_base");

const vocabulary = new Map();
for (const line of ranks.bpe_ranks.split("\n").filter(Boolean)) {
  const [, first, ...tokens] = line.split(" ");
  tokens.forEach((token, i) => vocabulary.set(
    new Uint8Array(Buffer.from(token, "base64")), Number(first) + i));
}
const special = microsoft.getSpecialTokensByEncoder("cl100k_base");
const tokenizer = microsoft.createTokenizer(
  vocabulary, special, microsoft.getRegexByEncoder("cl100k_base"));

const END = "<|endoftext|>";
const QUOTE = "<|fim_prefix|>";
const texts = [
  [`One.${END}Two.${END}`, [END]],
  [`A ${QUOTE} B${END}C`, [END, QUOTE]],
  [`A ${QUOTE} B${END}C`, []],
  [`A ${QUOTE} B${END}C`, [END]],
  [`To fill in, put ${QUOTE} first. It is a token.${END}Next text.${END}`, [END]],
];
for (const [text, allowed] of texts) {
  const ids = tokenizer.encode(text, allowed);
  const right = [...tiktoken.encode(text, allowed, [])];
  console.log(`${ids.length} ids (tiktoken ${right.length}): ${tokenizer.decode(ids)}`);
  const quoted = text.indexOf(QUOTE);
  if (allowed.length !== 1 || quoted < 0) {
    assert.deepStrictEqual(ids, right);
    assert.strictEqual(tokenizer.decode(ids), text);
    continue;
  }
  const after = text.indexOf(END) + END.length;
  const again = text.slice(0, after) + text.slice(after - quoted - 1);
  assert.strictEqual(tokenizer.decode(ids), again);
  assert.notDeepStrictEqual(ids, right);
  assert.strictEqual(ids.filter((id) => id === special.get(END)).length,
                     again.split(END).length - 1);
}
END
node check.cjs
