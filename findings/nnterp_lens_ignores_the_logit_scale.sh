#!/usr/bin/env bash
# Guess: logit_lens of nnterp, "a unified interface" for all models, reads each layer by the model's
# own head. What it says of the last layer is thus what the model itself says of the next token, as
# compute_next_token_probs, of the same library, returns it.
#
# nnterp 1.3.0, nnsight 0.7.0, transformers 5.24.0: not for models that scale their logits after the
# head. project_on_vocab, which is behind logit_lens and get_topk_closest_tokens and a method of a
# StandardizedTransformer too, calls the last norm and lm_head, and leaves out what the model's code
# does with the product: it is multiplied by logit_scale in Cohere and Cohere 2 (1/16 by default),
# and divided by logits_scaling in Granite (8 in some of its models). So the lens is 8 or 16 times
# too sure of itself, in logits, on every layer: a layer that hardly knows anything seems to have
# decided. The likeliest token is the same, and no check when a model is loaded looks at it. Gemma
# 2's cap on its logits is left out as well; that is known, the documentation of a coming version
# says that it is applied, and also that the last layer is then the model's own answer for every
# family. It says nothing of a scale.
#
# Seen (tiny random models, two texts; the probability of the likeliest token on the last layer by
# the lens, by the model, and by hand; the largest difference of any token, the same likeliest one):
#   GPT2: lens 0.310 and 0.299, model 0.310 and 0.299, by hand 0.310 and 0.299; 0.000, True
#   Llama: lens 0.283 and 0.155, model 0.283 and 0.155, by hand 0.283 and 0.155; 0.000, True
#   Granite: lens 0.318 and 0.222, model 0.028 and 0.026, by hand 0.028 and 0.026; 0.290, True
#   Cohere: lens 0.193 and 0.105, model 0.021 and 0.020, by hand 0.021 and 0.020; 0.172, True
#   Cohere2: lens 0.194 and 0.112, model 0.021 and 0.020, by hand 0.021 and 0.020; 0.173, True

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'nnsight==0.7.0' 'nnterp==1.3.0'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import torch
import transformers
from nnterp import StandardizedTransformer
from nnterp.interventions import logit_lens
from nnterp.nnsight_utils import compute_next_token_probs
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCAB = 60
# How a model's own code treats the product of the head, and the setting that says so.
SCALES = {"GPT2": (None, 1), "Llama": (None, 1), "Granite": ("logits_scaling", 1 / 8),
          "Cohere": ("logit_scale", 1 / 16), "Cohere2": ("logit_scale", 1 / 16)}
TEXTS = ["w3 w4 w5 w6 w7", "w9 w8 w2 w5 w1"]


def build(name):
    """Return a tiny random model."""
    torch.manual_seed(0)
    sizes = dict(n_embd=32, n_layer=3, n_head=4) if name == "GPT2" else dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2)
    if name == "Granite":
        sizes["logits_scaling"] = 8.0
    config = getattr(transformers, name + "Config")(
        vocab_size=VOCAB, initializer_range=0.3, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        **sizes)
    kind = "GPT2LMHeadModel" if name == "GPT2" else name + "ForCausalLM"
    return getattr(transformers, kind)(config).eval()


words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w1"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="w0", eos_token="w0", padding_side="left")
for name, (setting, scale) in SCALES.items():
    model = build(name)
    if setting is not None:
        assert getattr(model.config, setting) in (scale, 1 / scale)
    standard = StandardizedTransformer(model, tokenizer=tokenizer)
    lens = logit_lens(standard, TEXTS)[:, -1]
    wanted = compute_next_token_probs(standard, TEXTS).detach()
    with torch.no_grad():
        ids = torch.tensor([tokenizer(text).input_ids for text in TEXTS])
        own = model(ids).logits[:, -1].softmax(-1)
        normed = model.base_model(ids).last_hidden_state[:, -1]
        hand = (model.lm_head(normed) * scale).softmax(-1)
        unscaled = model.lm_head(normed).softmax(-1)
    assert (wanted - own).abs().max() < 1e-5 and (hand - own).abs().max() < 1e-5
    assert (lens - unscaled).abs().max() < 1e-5

    def best(probabilities):
        return " and ".join(f"{p:.3f}" for p in probabilities.amax(-1).tolist())

    difference = (lens - wanted).abs().max().item()
    same = torch.equal(lens.argmax(-1), wanted.argmax(-1))
    print(f"{name}: lens {best(lens)}, model {best(wanted)}, by hand {best(hand)}; "
          f"{difference:.3f}, {same}")
    assert same and (difference < 1e-5 if setting is None else difference > 0.1)
END
grep -E '^(GPT2|Llama|Granite|Cohere2?):' "$folder/out"
