#!/usr/bin/env bash
# Guess: gpt-tokenizer (npm), which calls itself a port of tiktoken with additional features, gives
# tiktoken's ids for documents joined by <|endoftext|>: with allowedSpecial (a set, or 'all') each
# <|endoftext|> is one token, 50256.
#
# gpt-tokenizer 4.0.0 (the newest; 2.9.0, 3.0.1 and 3.4.0 are alike) beside tiktoken 1.0.22 (npm):
# only a special token with which the text begins is one. The search for the next one uses a regular
# expression that is sticky (flag y): it matches at the place where it's asked to start, and looks
# no further. All other <|endoftext|> become seven tokens of text, as if nothing had been allowed,
# without an error, in encode(), encodeGenerator(), countTokens() and isWithinTokenLimit(). Where
# one follows another directly it's worse: the place of the match, which counts from the beginning
# of the text, has the start of the search added to it once more. The second one is written twice,
# as text and as a token, and the first 13 letters of the document after it, as many as it has
# itself, are lost. What works is to split the text at <|endoftext|> and to encode the parts.
#
# Seen (r50k_base, allowedSpecial: 'all'; ids of <|endoftext|> / all ids, and the text they decode
# to, if another; {E} is <|endoftext|>):
#   one, between two documents:  0 / 19 (tiktoken: 1 / 14)
#   one, before a document:      1 / 7 (tiktoken: 1 / 7)
#   three, before each document: 1 / 32 (tiktoken: 3 / 22)
#   two in a row:                2 / 11 (tiktoken: 2 / 8); decodes to "{E}{E}{E}people."
#   split by hand: 1 / 14

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund gpt-tokenizer@4.0.0 tiktoken@1.0.22 >/dev/null

cat >run.mjs <<'END'
import assert from 'node:assert'
import * as gpt from 'gpt-tokenizer/encoding/r50k_base'
import { get_encoding } from 'tiktoken'

const tiktoken = get_encoding('r50k_base')
const end = '<|endoftext|>'
const first = 'Speak to the people.', second = 'We are resolved rather to die.'
const count = (ids) => `${ids.filter((id) => id === 50256).length} / ${ids.length}`
const text = (ids) => new TextDecoder().decode(tiktoken.decode(new Uint32Array(ids)))
const seen = []

for (const [label, joined] of [
  ['one, between two documents: ', first + end + second],
  ['one, before a document:     ', end + first],
  ['three, before each document:', end + first + end + second + end + first],
  ['two in a row:               ', end + end + 'Speak to the people.']]) {
  const ids = gpt.encode(joined, { allowedSpecial: 'all' })
  const expected = [...tiktoken.encode(joined, 'all')]
  assert.deepStrictEqual(ids, gpt.encode(joined, { allowedSpecial: new Set([end]) }))
  assert.deepStrictEqual(ids, [...gpt.encodeGenerator(joined, { allowedSpecial: 'all' })].flat())
  assert.strictEqual(ids.length, gpt.countTokens(joined, { allowedSpecial: 'all' }))
  assert.strictEqual(text(expected), joined)
  const other = text(ids) === joined ? '' : `; decodes to "${text(ids).replaceAll(end, '{E}')}"`
  console.log(`${label} ${count(ids)} (tiktoken: ${count(expected)})${other}`)
  seen.push(count(ids) === count(expected), other === '')
}
assert.deepStrictEqual(seen, [false, true, true, true, false, true, false, false])

const parts = [...gpt.encode(first), 50256, ...gpt.encode(second)]
assert.deepStrictEqual(parts, [...tiktoken.encode(first + end + second, 'all')])
console.log('split by hand:', count(parts))
END
node run.mjs
