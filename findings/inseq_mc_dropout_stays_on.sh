#!/usr/bin/env bash
# Guess: inseq step score "mc_dropout_prob_avg" leaves the model in eval mode afterwards: later
# attributions are the same as before.
#
# inseq 0.7.1, transformers 5.24.0: it puts the model into training mode, for its noisy passes, and
# nothing puts it back. In the call that asks for it, only the first token is attributed without
# dropout; from the second on, the gradients and all other step scores are those of one draw of
# dropout, also the "probability" beside it, which is asked for as the model's. After the call it
# stays like that: every later attribution with this model differs from run to run, and so does
# whatever else is done with the model that was passed in. Nothing is said. model.model.eval() after
# the call helps what follows, but not that call. (The score isn't an average, either, as its name
# and description say, but a z-score: how many standard deviations the probability lies above it.)
#
# Seen (a 2-layer GPT-2 with random weights and GPT-2's dropout of 0.1, 4 tokens; the largest
# relative error of a step score "probability" for each token, and of the attributions):
#   before: probabilities 0.00 0.00 0.00 0.00, attributions 0.00, model in training False
#   with mc_dropout_prob_avg: probabilities 0.00 0.40 0.13 0.46, attributions 1.46, ... True
#   after: probabilities 0.45 0.42 0.26 3.01, attributions 2.41, model in training True
#   after eval(): probabilities 0.00 0.00 0.00 0.00, attributions 0.00, model in training False

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'captum==0.9.0' 'inseq==0.7.1'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import inseq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

letters = [chr(i) for i in range(33, 127)] + ["\u0120"]  # all printable ones, and the space
bytelevel = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
bytelevel.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytelevel.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytelevel, bos_token="<|endoftext|>",
                                    eos_token="<|endoftext|>")
torch.manual_seed(0)
gpt2 = GPT2LMHeadModel(GPT2Config(
    vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2,
    bos_token_id=95, eos_token_id=95)).eval()
model = inseq.load_model(gpt2, "saliency", tokenizer=tokenizer)
prompt, text = "The cat sat on ", "The cat sat on mats"
row = torch.tensor([tokenizer(text).input_ids])
with torch.no_grad():
    true = gpt2(row).logits[0, -5:-1].softmax(-1).gather(1, row[0, -4:, None])[:, 0]


def attribute(*scores):
    """Return the attributions and the probabilities of the last 4 tokens."""
    result = model.attribute(prompt, text, step_scores=list(scores), show_progress=False,
                             pretty_progress=False)[0]
    return result.target_attributions.nan_to_num(), result.step_scores["probability"]


def compare(label, seen):
    """Print by how much attributions and probabilities differ from the model's, in shares."""
    of_probabilities = ((seen[1] - true) / true).abs()
    of_attributions = ((seen[0] - first[0]).norm() / first[0].norm()).item()
    print(f"{label}: probabilities {' '.join(f'{error:.2f}' for error in of_probabilities)}, "
          f"attributions {of_attributions:.2f}, model in training {gpt2.training}")
    return of_probabilities, of_attributions


first = attribute("probability")
errors, error = compare("before", first)
assert errors.max() < 1e-4 and not gpt2.training
errors, error = compare("with mc_dropout_prob_avg", attribute("mc_dropout_prob_avg", "probability"))
assert errors[1:].max() > 0.1 and error > 0.1 and gpt2.training
errors, error = compare("after", attribute("probability"))
assert errors.max() > 0.1 and error > 0.1 and gpt2.training
gpt2.eval()
errors, error = compare("after eval()", attribute("probability"))
assert errors.max() < 1e-4 and error < 1e-4
END
