#!/usr/bin/env bash
# Guess: TransformerLens' generate(), which uses a key/value cache unless told otherwise, draws
# from a GPT-2 what generate() of transformers draws; greedily, the same tokens. The cache only
# saves time.
#
# transformer-lens 4.3.0 with transformers 5.24.0 (it asks for 5.9.0 or later): only the first new
# token knows the prompt. From the second on, each is computed from the one token before it and its
# position alone; the attention layers see nothing else. GPT-2's blocks in transformers 5.24.0 hand
# the cache to attention under the name "cache". TransformerLens, which puts attention of its own
# in that place, looks for "past_key_values" and "layer_past", finds neither, and goes on with the
# newest key and value only. The one warning is that transformers would like the new name. Logits,
# losses and hooks are right for a text that is given as a whole. use_past_kv_cache=False is right,
# and so is the cache with transformers 5.20.0, where it still has its old name.
#
# Seen (a 2-layer GPT-2 with random weights, 8 prompts of 20 tokens, 30 new ones each, greedy; how
# many of the new tokens, but for the first, are the likeliest one by transformers, given ...):
#   logits of a text, largest difference from transformers: 0.0000
#   without cache: 232 of 232 given the whole text, 1 given the last token alone
#   with cache: 2 of 232 given the whole text, 232 given the last token alone

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'transformer-lens==4.3.0'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
NEW = 30
names = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())]
bytes_only = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_only.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token=END_OF_TEXT,
                                    eos_token=END_OF_TEXT, pad_token=END_OF_TEXT,
                                    unk_token=END_OF_TEXT)
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=len(names), n_positions=64, n_embd=64, n_layer=2,
                                   n_head=4, bos_token_id=0, eos_token_id=0)).eval()
for name, parameter in model.named_parameters():
    if parameter.dim() == 2:
        torch.nn.init.normal_(parameter, std=0.5 if ".attn." in name else 0.1)
model.save_pretrained("model")
tokenizer.save_pretrained("model")
lens = TransformerBridge.boot_transformers("model", device="cpu", dtype=torch.float32).eval()

prompts = torch.randint(1, len(names), (8, 20))
with torch.no_grad():
    difference = (lens(prompts).log_softmax(-1) - model(prompts).logits.log_softmax(-1)).abs().max()
print(f"logits of a text, largest difference from transformers: {difference.item():.4f}")
assert difference < 1e-4


def likeliest(ids, position):
    """Return what follows these ids, of which the first one is at this position."""
    positions = torch.arange(position, position + ids.numel())
    return model(ids[None], position_ids=positions[None]).logits[0, -1].argmax().item()


@torch.no_grad()
def check(name, **arguments):
    whole, alone, total = 0, 0, 0
    for prompt in prompts:
        ids = lens.generate(prompt[None], max_new_tokens=NEW, do_sample=False, stop_at_eos=False,
                            verbose=False, return_type="tokens", **arguments)[0]
        assert ids.numel() == 20 + NEW and ids[20] == likeliest(prompt, 0)
        for i in range(21, 20 + NEW):
            whole += ids[i] == likeliest(ids[:i], 0)
            alone += ids[i] == likeliest(ids[i - 1:i], i - 1)
            total += 1
    print(f"{name}: {whole} of {total} given the whole text, {alone} given the last token alone")
    return whole / total, alone / total


whole, alone = check("without cache", use_past_kv_cache=False)
assert whole > 0.98 and alone < 0.2
whole, alone = check("with cache")
assert whole < 0.2 and alone > 0.98
END
