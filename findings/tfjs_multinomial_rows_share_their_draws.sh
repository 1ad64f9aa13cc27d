#!/usr/bin/env bash
# Guess: TensorFlow.js' tf.multinomial(logits, n), given a row of logits for each text of a batch,
# draws the next tokens of the texts independently of each other. So four samples of one prompt,
# generated together, are four texts, and two rows that differ only a little get the same token
# as often as two independent draws would.
#
# @tensorflow/tfjs 4.22.0, backend "cpu", the one that Node has without anything else: all rows are
# drawn with the same random numbers, because a generator is made for each row, and all with the
# seed of the call, which is one random number if none is given. Rows with the same logits always
# get the same token: four samples of a prompt are one text, four times, however high the
# temperature is, and whatever is taken from the four (their diversity, the best of them, a vote, a
# policy gradient's baseline) is that of one. Other rows hang together, too. Each row alone has the
# right frequencies, and from step to step the numbers are others, so that nothing is seen in one
# text. The backend "wasm" draws as guessed; with "cpu" one call for each row helps, without a seed.
#
# Seen (the logits come from a table, by the last token; frequencies differ a little between runs):
#   4 samples of a prompt in a batch, cpu: 1 different text in each of 20 runs
#   4 samples, a call for each row, cpu: 4 different texts in each of 20 runs
#   4 samples of a prompt in a batch, wasm: 4 different texts in each of 20 runs
#   two nearly equal rows, same token: cpu 0.95, independent draws by hand 0.28
#   frequencies of the tokens in one row off by at most 0.01, cpu

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts '@tensorflow/tfjs@4.22.0' \
    '@tensorflow/tfjs-backend-wasm@4.22.0' >log 2>&1 || { cat log; exit 1; }

cat >check.mjs <<'END'
import assert from "node:assert";
import * as tf from "@tensorflow/tfjs";
import "@tensorflow/tfjs-backend-wasm";

const VOCABULARY = 16, SAMPLES = 4, LENGTH = 24, RUNS = 20, DRAWS = 20000;

await tf.setBackend("cpu");
// The logits of the next token depend on the last one, as in a GPT with a context of one token.
const table = tf.randomNormal([VOCABULARY, VOCABULARY], 0, 1, "float32", 1).arraySync();

function together(rows) {
  return tf.tidy(() => Array.from(tf.multinomial(tf.tensor2d(rows), 1).dataSync()));
}

function oneByOne(rows) {
  return rows.map((row) => together([row])[0]);
}

function different(draw) {
  const counts = new Set();
  for (let run = 0; run < RUNS; ++run) {
    const texts = Array.from({ length: SAMPLES }, () => [0]);
    for (let step = 0; step < LENGTH; ++step) {
      const tokens = draw(texts.map((text) => table[text.at(-1)]));
      texts.forEach((text, i) => text.push(tokens[i]));
    }
    counts.add(new Set(texts.map(String)).size);
  }
  assert.strictEqual(counts.size, 1);
  return [...counts][0];
}

const say = (count) => `${count} different text${count > 1 ? "s" : ""} in each of ${RUNS} runs`;
const cpu = different(together), single = different(oneByOne);
await tf.setBackend("wasm");
const wasm = different(together);
console.log(`${SAMPLES} samples of a prompt in a batch, cpu: ${say(cpu)}`);
console.log(`${SAMPLES} samples, a call for each row, cpu: ${say(single)}`);
console.log(`${SAMPLES} samples of a prompt in a batch, wasm: ${say(wasm)}`);
assert.deepStrictEqual([cpu, single, wasm], [1, SAMPLES, SAMPLES]);

await tf.setBackend("cpu");
const rows = [[0, 0.1, 0.5, -0.5], [0.1, 0, 0.4, -0.4]];
const probabilities = rows.map((row) => {
  const powers = row.map(Math.exp), sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
});
const [first, second] = tf.multinomial(tf.tensor2d(rows), DRAWS).arraySync();
const same = first.filter((token, i) => token === second[i]).length / DRAWS;
const independent = probabilities[0].reduce((sum, p, i) => sum + p * probabilities[1][i], 0);
const off = Math.max(...[first, second].flatMap((tokens, row) => probabilities[row].map(
  (p, i) => Math.abs(tokens.filter((token) => token === i).length / DRAWS - p))));
console.log(`two nearly equal rows, same token: cpu ${same.toFixed(2)}, ` +
  `independent draws by hand ${independent.toFixed(2)}`);
console.log(`frequencies of the tokens in one row off by at most ${off.toFixed(3)}, cpu`);
assert(same > 0.8 && independent < 0.35 && off < 0.02);
END
node check.mjs 2>log || { cat log; exit 1; }
