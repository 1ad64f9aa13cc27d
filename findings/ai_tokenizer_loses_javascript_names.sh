#!/usr/bin/env bash
# Guess: ai-tokenizer (npm) gives the tokens of tiktoken and of Anthropic's tokenizer for any text.
# All ids are numbers, and decoding them gives the text back.
#
# ai-tokenizer 1.0.6, tiktoken 1.0.22, @anthropic-ai/tokenizer 0.0.4: not for a program with names
# that every JavaScript object has: hasOwnProperty, isPrototypeOf, propertyIsEnumerable,
# toLocaleString, with its encoding "p50k_base" toString too. It looks a word up in an object that
# was made with braces, without asking whether the word is a key of its own. So it finds
# Object.prototype's function of this name, takes that for the id of a token, and puts it among the
# ids, as one token for what are two or three. Nothing fails: count() is smaller, JSON writes the
# function as null, and decode() leaves it out, so that x.hasOwnProperty(k) comes back as x.(k), and
# a text that is cut to a number of tokens has lost the name. A name is hit where it's a piece of
# its own for the encoding: also after a point for "claude" (which stands for 19 of its models) and
# "p50k_base" (13), not for "cl100k_base" (28), where the point belongs to the piece. "o200k_base"
# (40) parts hasOwnProperty at the capitals and is right. So are all other words.
#
# Seen (tokens by ai-tokenizer and the right number, ids as JSON, the text decoded from them):
#   claude, if (x.hasOwnProperty(k)): 8 of 10, [390,344,92,18,null,12,79,456], "if (x.(k))"
#   claude, a.isPrototypeOf(b): 6 of 8, [69,18,null,12,70,13], "a.(b)"
#   claude, if (x.hasOwn(k)): right
#   p50k_base, return x.toString(): 5 of 6, [7783,2124,13,null,3419], "return x.()"
#   p50k_base, return x.toFixed(): right
#   cl100k_base, hasOwnProperty in x: 3 of 4, [null,304,865], " in x"
#   cl100k_base, if (x.hasOwnProperty(k)): right
#   o200k_base, hasOwnProperty in x: right

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund --ignore-scripts 'ai-tokenizer@1.0.6' 'tiktoken@1.0.22' \
    '@anthropic-ai/tokenizer@0.0.4'

cat >compare.cjs <<'END'
const assert = require('assert')

const anthropic = require('@anthropic-ai/tokenizer').getTokenizer()
const encodings = require('ai-tokenizer/encoding')
const { default: Tokenizer, models } = require('ai-tokenizer')
const { get_encoding: getEncoding } = require('tiktoken')

const cases = [
  ['claude', 'if (x.hasOwnProperty(k))', 'if (x.(k))'],
  ['claude', 'a.isPrototypeOf(b)', 'a.(b)'],
  ['claude', 'if (x.hasOwn(k))'],
  ['p50k_base', 'return x.toString()', 'return x.()'],
  ['p50k_base', 'return x.toFixed()'],
  ['cl100k_base', 'hasOwnProperty in x', ' in x'],
  ['cl100k_base', 'if (x.hasOwnProperty(k))'],
  ['o200k_base', 'hasOwnProperty in x']
]
for (const [name, text, without] of cases) {
  const tokenizer = new Tokenizer(encodings[name])
  const reference = name === 'claude' ? anthropic : getEncoding(name)
  const right = Array.from(reference.encode(text))
  assert.strictEqual(new TextDecoder().decode(reference.decode(right)), text)

  const ids = tokenizer.encode(text)
  const decoded = tokenizer.decode(ids)
  assert.strictEqual(tokenizer.count(text), ids.length)
  if (without === undefined) {
    console.log(`${name}, ${text}: right`)
    assert.deepStrictEqual(ids, right)
    assert.strictEqual(decoded, text)
  } else {
    console.log(`${name}, ${text}: ${ids.length} of ${right.length}, ${JSON.stringify(ids)}, ` +
      JSON.stringify(decoded))
    const [wrong] = ids.filter(id => typeof id !== 'number')
    assert(wrong === Object.prototype[wrong.name] && text.includes(wrong.name))
    assert.strictEqual(decoded, without)
    assert.strictEqual(decoded, text.replace(wrong.name, ''))
    assert(ids.length < right.length)
  }
}
const number = name => Object.values(models).filter(model => model.encoding === name).length
assert.deepStrictEqual(['claude', 'p50k_base', 'cl100k_base', 'o200k_base'].map(number),
  [19, 13, 28, 40])
END
node compare.cjs
