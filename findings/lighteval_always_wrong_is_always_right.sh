#!/usr/bin/env bash
# Guess: lighteval's ProbabilityMetric for a question with several choices "returns the probability
# of the gold choice", as it says, and acc_golds_likelihood is 1 if the gold choice is what the
# model would write greedily. If several choices are gold, the likeliest, or any one of them,
# counts. So a model that answers all questions wrong has a low probability and an accuracy of 0.
#
# lighteval 0.13.0, transformers 5.24.0, torch 2.13.0: gold_index is not looked at by either. The
# maximum is taken over all choices, so that the "probability" is that of whatever choice is the
# likeliest, and the accuracy is 1 if any choice is what the model would write. Always right and
# always wrong have the same scores. Until 0.10 these metrics had a request of their own, for the
# gold choices only (TARGET_PERPLEXITY), so that all meant all gold ones. Since 0.11 there is one
# kind of request for log-probabilities, with all choices, and the two metrics, and
# target_perplexity, which adds up what it gets, stayed as they were. Metrics that always had all
# choices (LogLikelihoodAccMetric, NormalizedMultiChoiceProbMetric) pick the gold one. With a
# single choice, as in LAMBADA, nothing is wrong.
#
# Seen (a 2-layer GPT-2 with random weights, 8 questions; 4 choices of one token, the first of which
# is what the model would write; means over the questions):
#   always right: probability of gold 0.1904, ProbabilityMetric 0.1904; its share 0.9826,
#     NormalizedMultiChoiceProbMetric 0.9826; acc_golds_likelihood 1, LogLikelihoodAccMetric 1
#   always wrong: probability of gold 0.0003, ProbabilityMetric 0.1904; its share 0.0015,
#     NormalizedMultiChoiceProbMetric 0.0015; acc_golds_likelihood 1, LogLikelihoodAccMetric 0

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'lighteval==0.13.0' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'inspect_ai==0.3.285' 'datasets==5.2.0'

cd "$folder"
export HF_HUB_OFFLINE=1
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import numpy as np
import torch
from lighteval.metrics.dynamic_metrics import (LogLikelihoodAccMetric,
                                               NormalizedMultiChoiceProbMetric, ProbabilityMetric)
from lighteval.metrics.metrics import Metrics
from lighteval.models.transformers.transformers_model import (TransformersModel,
                                                              TransformersModelConfig)
from lighteval.tasks.requests import Doc
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

letters = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["<|endoftext|>"]
bytelevel = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
bytelevel.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytelevel.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytelevel, bos_token="<|endoftext|>",
                                    eos_token="<|endoftext|>", pad_token="<|endoftext|>")
tokenizer.save_pretrained("tiny")
torch.manual_seed(0)
gpt2 = GPT2LMHeadModel(GPT2Config(
    vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
    bos_token_id=256, eos_token_id=256)).eval()
gpt2.save_pretrained("tiny")
lighteval = TransformersModel(TransformersModelConfig(
    model_name="tiny", batch_size=1, device="cpu", dtype="float32", cache_dir="cache"))


def by_hand(question):
    with torch.no_grad():
        return gpt2(torch.tensor([tokenizer(question)["input_ids"]])).logits[0, -1].softmax(-1)


docs, hand = [], []
for i in range(200):
    question = f"Question {i}:"
    probabilities = by_hand(question)
    best = tokenizer.decode(probabilities.argmax())
    if len(docs) < 8 and best.isascii() and best.isalnum():
        choices = [best] + [letter for letter in "ABCD" if letter != best][:3]
        docs.append(Doc(query=question, choices=choices, gold_index=0, task_name="task|0",
                        id=str(i)))
        hand.append([probabilities[tokenizer(x)["input_ids"][0]].item() for x in choices])
hand = np.array(hand)
answers = lighteval.loglikelihood(docs)
assert len(docs) == 8 and np.allclose(np.exp([x.logprobs for x in answers]), hand, rtol=1e-3)


def measure(metric):
    return np.mean([metric.sample_level_fn.compute(doc=doc, model_response=answer)
                    for doc, answer in zip(docs, answers)])


for gold, name in ((0, "always right"), (1, "always wrong")):
    for doc in docs:
        doc.gold_index = gold
    probability, share = measure(ProbabilityMetric()), measure(NormalizedMultiChoiceProbMetric())
    greedy, best = measure(Metrics.acc_golds_likelihood.value), measure(LogLikelihoodAccMetric())
    true, true_share = hand[:, gold].mean(), (hand[:, gold] / hand.sum(1)).mean()
    print(f"{name}: probability of gold {true:.4f}, ProbabilityMetric {probability:.4f}; its share "
          f"{true_share:.4f}, NormalizedMultiChoiceProbMetric {share:.4f}; acc_golds_likelihood "
          f"{greedy:.0f}, LogLikelihoodAccMetric {best:.0f}")
    assert abs(probability / hand[:, 0].mean() - 1) < 1e-3 and greedy == 1
    assert abs(share / true_share - 1) < 1e-3 and best == 1 - gold
assert true < hand[:, 0].mean() / 2
END
