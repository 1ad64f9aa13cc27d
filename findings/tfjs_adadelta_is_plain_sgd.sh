#!/usr/bin/env bash
# Guess: TensorFlow.js' tf.train.adadelta steps as in the Adadelta paper, which its documentation
# names, times the learning rate: the gradient is divided by the root of its running mean square,
# in which it is counted itself, and multiplied by the root of the mean square of the steps so far.
# So a loss multiplied by 100 gives nearly the same weights, and rho matters.
#
# @tensorflow/tfjs 4.22.0: it is tf.train.sgd with the same learning rate, to the last bit, whatever
# rho is. It divides by the mean square from before the gradient was added to it. At first both
# means are 0, so that the two roots are equal and the step is the gradient itself; then its square
# is added to both means in the same way, so that they stay equal for ever. Nothing is adapted to
# anything: a loss 100 times as large gives steps 100 times as long, rare tokens get no longer steps
# than frequent ones, and the two accumulators for each weight are kept for nothing. With the
# learning rate of 1 that Adadelta is made for, one takes SGD with 1, and with the default of 0.001
# one that hardly moves. Nothing is said. Adagrad, Adam and RMSprop do depend on the past.
#
# Seen (a bigram model of a text of 200 characters, 60 steps; the loss was 2.08 at the start):
#   adadelta and sgd, learning rate 1: largest difference of a weight 0, of 64
#   adadelta with rho=0.95 and rho=0.5: largest difference 0
#   first step if the loss is multiplied by 100, times as long: adadelta 100.00, by the paper 1.00
#   loss after the steps: adadelta 0.3503, sgd 0.3503, by the paper 1.9307
#   largest first step: adadelta 0.1451, by the paper 0.0014

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts '@tensorflow/tfjs@4.22.0' \
    >log 2>&1 || { cat log; exit 1; }

cat >check.mjs <<'END'
import assert from "node:assert";
import * as tf from "@tensorflow/tfjs";

await tf.setBackend("cpu");
const SIZE = 8, STEPS = 60, EPSILON = 1e-7;

// A text in which each letter is followed by one of three others, and some letters are rare.
const text = [0];
for (let i = 1; i < 200; ++i) text.push((text[i - 1] * text[i - 1] + i % 3) % SIZE);
const inputs = tf.oneHot(tf.tensor1d(text.slice(0, -1), "int32"), SIZE).toFloat();
const targets = tf.oneHot(tf.tensor1d(text.slice(1), "int32"), SIZE).toFloat();
const loss = (weights) => tf.losses.softmaxCrossEntropy(targets, inputs.matMul(weights));

function train(optimizer, steps, factor = 1) {
  const weights = tf.variable(tf.zeros([SIZE, SIZE]));
  for (let step = 0; step < steps; ++step) {
    optimizer.minimize(() => loss(weights).mul(factor).asScalar(), false, [weights]);
  }
  return weights;
}

function byThePaper(steps, factor = 1, rho = 0.95) {
  const gradient = tf.grad((weights) => loss(weights).mul(factor));
  const weights = new Float32Array(SIZE * SIZE);
  const squares = new Float64Array(SIZE * SIZE), moved = new Float64Array(SIZE * SIZE);
  for (let step = 0; step < steps; ++step) {
    gradient(tf.tensor2d(weights, [SIZE, SIZE])).dataSync().forEach((g, i) => {
      squares[i] = rho * squares[i] + (1 - rho) * g * g;
      const change = g * Math.sqrt((moved[i] + EPSILON) / (squares[i] + EPSILON));
      moved[i] = rho * moved[i] + (1 - rho) * change * change;
      weights[i] -= change;
    });
  }
  return tf.tensor2d(weights, [SIZE, SIZE]);
}

const largest = (tensor) => tensor.abs().max().dataSync()[0];
const value = (weights) => loss(weights).dataSync()[0];
const adadelta = train(tf.train.adadelta(1, 0.95, EPSILON), STEPS);
const sgd = train(tf.train.sgd(1), STEPS);
const paper = byThePaper(STEPS);
const difference = largest(adadelta.sub(sgd));
const rho = largest(adadelta.sub(train(tf.train.adadelta(1, 0.5, EPSILON), STEPS)));
const first = largest(train(tf.train.adadelta(1, 0.95, EPSILON), 1));
const scaled = largest(train(tf.train.adadelta(1, 0.95, EPSILON), 1, 100)) / first;
const firstByPaper = largest(byThePaper(1));
const scaledByPaper = largest(byThePaper(1, 100)) / firstByPaper;
console.log(`adadelta and sgd, learning rate 1: largest difference of a weight ${difference}, ` +
  `of ${sgd.size}`);
console.log(`adadelta with rho=0.95 and rho=0.5: largest difference ${rho}`);
console.log("first step if the loss is multiplied by 100, times as long: " +
  `adadelta ${scaled.toFixed(2)}, by the paper ${scaledByPaper.toFixed(2)}`);
console.log(`loss after the steps: adadelta ${value(adadelta).toFixed(4)}, ` +
  `sgd ${value(sgd).toFixed(4)}, by the paper ${value(paper).toFixed(4)}`);
console.log(`largest first step: adadelta ${first.toFixed(4)}, ` +
  `by the paper ${firstByPaper.toFixed(4)}`);
assert(difference < 1e-5 && rho < 1e-5 && largest(sgd) > 0.5);
assert(Math.abs(scaled - 100) < 0.1 && scaledByPaper < 1.1);
assert(first > 20 * firstByPaper && Math.abs(value(paper) - value(sgd)) > 0.01);
END
node check.mjs 2>log || { cat log; exit 1; }
