#!/usr/bin/env bash
# Guess: lighteval's standard error of a metric that is computed over the whole corpus (perplexity,
# bits per byte, BLEU, F1, ...) is the bootstrap's: by how much the metric varies when the texts are
# drawn again with replacement. More draws (bootstrap_iters) make it more exact, not smaller.
#
# lighteval 0.13.0: it's smaller by the square root of the number of draws, a factor of 32 with the
# default of 1,000. bootstrap_stderr() draws and computes the metric as it should. The standard
# deviation of the results is the standard error sought; but they are handed to mean_stderr(),
# which is for the values of single texts and divides once more by the root of how many there are.
# What comes out says how well the bootstrap's own mean is known; with enough draws it is as small
# as one likes. So "29.09 +- 0.03" looks like a result that tells two checkpoints apart where the
# true error is 0.9. Metrics averaged over texts (accuracy, anything whose aggregation is called
# "mean") have a formula of their own and are right, so that one table holds both kinds.
#
# Seen (200 texts with known lengths and losses; word_perplexity 29.09, and the mean of the same 200
# losses as a metric averaged over texts):
#   perplexity, by hand:   drawn again 0.87, new texts 0.91
#   perplexity, lighteval: 0.089 with 100 draws
#   perplexity, lighteval: 0.028 with 1000 draws
#   perplexity, lighteval: 0.014 with 4000 draws
#   mean loss: by hand 0.0300, lighteval 0.0295

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'lighteval==0.13.0' \
    'transformers==5.24.0' 'scipy==1.17.1' 'inspect_ai==0.3.285' 'datasets==5.2.0'

cd "$folder"
export HF_HUB_OFFLINE=1 LIGHTEVAL_DISABLE_TQDM=1
cat >check.py <<'END'
from types import SimpleNamespace

import numpy as np
from lighteval.logging.info_loggers import MetricsLogger
from lighteval.metrics.metrics import Metrics
from lighteval.metrics.sample_preparator import PerplexityCorpusMetricInput

metric = Metrics.word_perplexity.value
rng = np.random.default_rng(0)


def corpus():
    words = rng.integers(50, 400, 200)
    losses = words * rng.normal(3.4, 0.4, 200)
    return [PerplexityCorpusMetricInput(-float(a), int(b)) for a, b in zip(losses, words)]


def evaluate(texts, draws):
    logger = MetricsLogger()
    for text in texts:
        logger.log("task|0", {"word_perplexity": text, "loss": -text.logprobs / text.weights})
    functions = metric.get_corpus_aggregations() | {"loss": np.mean}
    logger.aggregate({"task|0": SimpleNamespace(aggregation=lambda: functions)}, draws)
    return logger.metric_aggregated["task|0"]


def by_hand(function):
    return np.std([function(rng.choice(200, 200)) for _ in range(1000)])


def perplexity(texts):
    return np.exp(-sum(x.logprobs for x in texts) / sum(x.weights for x in texts))


if __name__ == "__main__":
    texts = corpus()
    values = np.array([-text.logprobs / text.weights for text in texts])
    true = by_hand(lambda chosen: perplexity([texts[i] for i in chosen]))
    fresh = np.std([perplexity(corpus()) for _ in range(1000)])
    loss = by_hand(lambda chosen: values[chosen].mean())
    print(f"perplexity, by hand:   drawn again {true:.2f}, new texts {fresh:.2f}")
    for draws in (100, 1000, 4000):
        result = evaluate(texts, draws)
        error = result["word_perplexity_stderr"]
        print(f"perplexity, lighteval: {error:.3f} with {draws} draws")
        assert abs(result["word_perplexity"] - perplexity(texts)) < 1e-9
        assert abs(error * draws ** 0.5 / true - 1) < 0.25 and abs(fresh / true - 1) < 0.25
        assert abs(result["loss_stderr"] / loss - 1) < 0.1
    print(f"mean loss: by hand {loss:.4f}, lighteval {result['loss_stderr']:.4f}")
END
venv/bin/python check.py 2>log || { cat log; exit 1; }
