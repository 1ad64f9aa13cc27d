#!/usr/bin/env bash
# Guess: SHAP's explanation of a text is of that text. With every token in its place the masker
# gives the model the text as it is, so the values of all tokens and the base value add up to what
# the model gives for it ("local accuracy"), and a function that counts newlines has its values at
# the newlines.
#
# shap 0.51.0, transformers 5.24.0, torch 2.13.0: the masker for texts (shap.maskers.Text, taken for
# any tokenizer) makes one space of all white space in a row, newlines and indentation included, and
# strips both ends: of every text that it hands out, also of the one in which nothing is masked. For
# a prompt of one line that changes nothing. A prompt with examples, a chat or a program is
# explained as if it were written on one line, though the tokens in the explanation's data and plots
# are those of the original, newlines too. So a function that counts newlines is 0 everywhere. With
# a language model it's odder: the continuation that is explained is the one that it writes after
# the prompt as given, but its log odds, which the values add up to, are those after the line
# without newlines, after which the model would have written something else. Nothing warns of it.
#
# Seen (a GPT-2 with random weights; a prompt of 4 lines and the same words on one line):
#   newlines: 4 in the prompt, 4 in the tokens shown; values and base value add up to 0
#   tokens explained: those that the model writes after 4 lines, not those after one line
#   their log odds after 4 lines: -1.82 0.14 -1.78
#   their log odds after one line: -6.26 -6.42 -6.21
#   values and base value add up to: -6.26 -6.42 -6.21
#   the same for a prompt of one line: right

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6' 'transformers==5.24.0' \
    'tokenizers==0.23.3' 'shap==0.51.0'
cd "$folder"

HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import numpy as np
import shap
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, decoders
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

PROMPT = "sea: fish\nsky: bird\nfield: cow\nwood:\n"
LINE = " ".join(PROMPT.split())
NEW = 3

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokens = Tokenizer(models.BPE({"<|endoftext|>": 0} | {x: i + 1 for i, x in enumerate(letters)}, []))
tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokens.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<|endoftext|>")

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(
    vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5,
    bos_token_id=0, eos_token_id=0)).eval()
model.config.task_specific_params = {
    "text-generation": {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}}


def ids(text):
    return torch.tensor([tokenizer(text)["input_ids"]])


def greedy(text):
    return model.generate(ids(text), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
                          pad_token_id=0)[0, -NEW:].tolist()


def log_odds(text, target):
    with torch.no_grad():
        logits = model(torch.cat([ids(text), torch.tensor([target])], 1)).logits[0, -NEW - 1:-1]
    probabilities = logits.double().softmax(-1)[range(NEW), target]
    return (probabilities.log() - (-probabilities).log1p()).numpy()


def total(explanation):
    return explanation.values[0].sum(0) + explanation.base_values[0]


def count(texts):
    return np.array([float(text.count("\n")) for text in texts])


def show(name, values):
    print(f"{name}:", *(f"{value:.2f}" for value in values))


explanation = shap.Explainer(count, shap.maskers.Text(tokenizer))([PROMPT], silent=True)
shown = "".join(explanation.data[0])
print(f"newlines: {PROMPT.count(chr(10))} in the prompt, {shown.count(chr(10))} in the tokens "
      f"shown; values and base value add up to {total(explanation):.0f}")
assert shown == PROMPT and count([PROMPT]) == 4 and not explanation.values[0].any()

explainer = shap.Explainer(model, tokenizer)
after_prompt, after_line = greedy(PROMPT), greedy(LINE)
explanation = explainer([PROMPT], silent=True)
names = [tokenizer.decode([token]).strip() for token in after_prompt]
assert [str(name) for name in explanation.output_names] == names and after_prompt != after_line
print("tokens explained: those that the model writes after 4 lines, not those after one line")
show("their log odds after 4 lines", log_odds(PROMPT, after_prompt))
show("their log odds after one line", log_odds(LINE, after_prompt))
show("values and base value add up to", total(explanation))
assert np.allclose(total(explanation), log_odds(LINE, after_prompt), atol=1e-2)
assert (np.abs(total(explanation) - log_odds(PROMPT, after_prompt)) > 1).all()

right = np.allclose(total(explainer([LINE], silent=True)), log_odds(LINE, after_line), atol=1e-2)
print("the same for a prompt of one line:", "right" if right else "wrong")
assert right
END
