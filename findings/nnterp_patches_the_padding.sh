#!/usr/bin/env bash
# Guess: a TargetPrompt of nnterp, TargetPrompt("a text", index_to_patch=1), means the second token
# of its text. patchscope_lens takes a list of them, one for each source, and gives each what it
# would give alone. index_to_patch=-1 and the like count from the end of the text.
#
# nnterp 1.3.0, nnsight 0.7.0, transformers 5.24.0: the second holds, the first only for the longest
# prompt of the list. The prompts are padded on the left, to one length, and the index is that of
# the padded row, so in a shorter prompt a place from the beginning is an earlier token or padding.
# Padding is masked and nothing reads it: the hidden state is put where nobody looks, the prompt is
# read as if it had not been patched, and the result, the same on every layer, looks like "this
# layer holds nothing". get_token_activations, of the same library, refuses an index from the
# beginning with padding on the left, and one from the end with padding on the right; here neither
# is checked, and nothing is said. TargetPromptBatch, whose purpose are "multiple target prompts
# with potentially different indices to patch", keeps the indices as they are. What the index counts
# isn't documented.
#
# Seen (a tiny Llama, two sources and two targets of 6 and 3 tokens, the second token of each to be
# patched; the largest difference of a probability on any layer, for each of the two prompts):
#   one by one: 0.0000 and 0.0000 from by hand, 0.0329 and 0.0414 from not patched
#   together, from the end: 0.0000 and 0.0000 from by hand, 0.0329 and 0.0414 from not patched
#   together: 0.0000 and 0.0414 from by hand, 0.0329 and 0.0000 from not patched

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
from nnterp import StandardizedTransformer
from nnterp.interventions import TargetPrompt, patchscope_lens
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB, LAYERS, PLACE = 60, 3, 1
SOURCES = ["w3 w4 w5", "w9 w8 w2"]
TARGETS = ["w10 w11 w12 w13 w14 w15", "w20 w21 w22"]


def ids(text):
    """Return the ids of a text."""
    return torch.tensor([[int(word[1:]) for word in text.split()]])


@torch.no_grad()
def by_hand(source, target, place):
    """Return the next-token probabilities with a source's last state put in, for each layer."""
    result = []
    for layer in model.model.layers:
        kept = []

        def hook(_, args, out):
            """Keep the source's last state; put it into the target, the second text to be read."""
            if kept and place is not None:
                out[0, place] = kept[0]
            kept.append(out[0, -1].clone())
        handle = layer.register_forward_hook(hook)
        model(ids(source))
        result.append(model(ids(target)).logits[0, -1].softmax(-1))
        handle.remove()
    return torch.stack(result)


words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w1"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="w0", eos_token="w0", padding_side="left")
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS,
    num_attention_heads=4, initializer_range=0.2, pad_token_id=0, bos_token_id=0,
    eos_token_id=0)).eval()
standard = StandardizedTransformer(model, tokenizer=tokenizer)
wanted = torch.stack([by_hand(s, t, PLACE) for s, t in zip(SOURCES, TARGETS)])
without = torch.stack([by_hand(s, t, None) for s, t in zip(SOURCES, TARGETS)])


def compare(name, result):
    """Print how far the result is from patching by hand and from not patching at all."""
    from_wanted, from_nothing = ((result - other).abs().amax((1, 2)) for other in (wanted, without))
    print(f"{name}: {from_wanted[0]:.4f} and {from_wanted[1]:.4f} from by hand, "
          f"{from_nothing[0]:.4f} and {from_nothing[1]:.4f} from not patched")
    return [from_wanted[0] < 1e-5, from_wanted[1] < 1e-5, from_nothing[1] < 1e-5]


with torch.no_grad():
    alone = torch.cat([patchscope_lens(standard, [source], [TargetPrompt(target, PLACE)])
                       for source, target in zip(SOURCES, TARGETS)])
    together = patchscope_lens(standard, SOURCES, [TargetPrompt(t, PLACE) for t in TARGETS])
    from_end = patchscope_lens(standard, SOURCES, [
        TargetPrompt(target, PLACE - len(target.split())) for target in TARGETS])
assert compare("one by one", alone) == [True, True, False]
assert compare("together, from the end", from_end) == [True, True, False]
assert compare("together", together) == [True, False, True]
END
grep -E '^(one|together)' "$folder/out"
