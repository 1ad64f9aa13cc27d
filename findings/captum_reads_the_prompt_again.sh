#!/usr/bin/env bash
# Guess: captum's LLMAttribution with FeatureAblation says by how much the log-probability of each
# target token, and of all together, falls when a token of the prompt is replaced. The key/value
# cache, which it uses unless told otherwise, only saves time.
#
# captum 0.9.0 with transformers 5.24.0 (it names no version of its own): only the first target
# token is right. captum hands the whole text so far to prepare_inputs_for_generation() and relies
# on it to leave out what is in the cache. In transformers 5.24.0 it doesn't: the caller has to say
# how many tokens are new. So for every further token the whole text is read once more, behind what
# was read before, while the attention mask still has the length of the text: what the model sees is
# the prompt and then the beginning of the prompt again, in place of the target. The attributions
# are of the usual size, and many have the wrong sign. A target of one token, such as an answer A
# or B, is right; so are use_cached_outputs=False, forward_in_tokens=False, and the default with
# transformers 4.57.6.
#
# Seen (a 2-layer GPT-2 with random weights, prompt of 8 tokens, target of 4; largest difference of
# an attribution to each of the target's tokens, and to all together, from that by hand; share of
# attributions with the wrong sign):
#   by hand, whole target: from -2.02 to 3.59
#   use_cached_outputs=False: 0.00 0.00 0.00 0.00, together 0.00, sign 0 %
#   forward_in_tokens=False: 0.00 0.00 0.00 0.00, together 0.00, sign 0 %
#   default: 0.00 2.02 1.03 3.44, together 5.35, sign 38 %
#   default, from that by hand where the text is read again:
#       0.00 0.00 0.00 0.00, together 0.00, sign 0 %

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'captum==0.9.0'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
BASELINE = 5
names = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())]
bytes_only = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_only.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token=END_OF_TEXT,
                                    eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=len(names), n_positions=128, n_embd=64, n_layer=2,
                                   n_head=4, bos_token_id=0, eos_token_id=0)).eval()
for name, parameter in model.named_parameters():
    if parameter.dim() == 2:
        torch.nn.init.normal_(parameter, std=0.4 if ".attn." in name else 0.15)

prompt, target = "hello wo", "rld!"
prompt_ids = torch.tensor(tokenizer(prompt).input_ids)
target_ids = torch.tensor(tokenizer(target).input_ids)


@torch.no_grad()
def once(start):
    """Return the log-probability of each target token after this prompt and the ones before."""
    ids = torch.cat([start, target_ids])[None]
    logits = model(ids).logits[0, len(start) - 1:-1]
    return logits.log_softmax(-1).gather(1, target_ids[:, None])[:, 0]


@torch.no_grad()
def again(start):
    """Return the same where the text so far is read once more before each token.

    It follows what was read before, as its positions tell, but of all that is read the model only
    sees as many tokens from the beginning as the text so far has.
    """
    texts = [torch.cat([start, target_ids[:i]]) for i in range(len(target_ids))]
    read = torch.cat(texts)
    seen = torch.cat([torch.full((len(text),), len(text)) for text in texts])
    i, j = torch.arange(len(read))[:, None], torch.arange(len(read))
    mask = torch.where((j <= i) & (j < seen[:, None]), 0.0, torch.finfo(torch.float32).min)
    logits = model(read[None], attention_mask=mask[None, None]).logits[0]
    ends = torch.tensor([len(text) for text in texts]).cumsum(0) - 1
    return logits[ends].log_softmax(-1).gather(1, target_ids[:, None])[:, 0]


def ablated(function):
    """Return attributions for the tokens of the target and those of the prompt."""
    columns = []
    for i in range(len(prompt_ids)):
        other = prompt_ids.clone()
        other[i] = BASELINE
        columns.append(function(prompt_ids) - function(other))
    return torch.stack(columns, dim=1)


def compare(name, result, reference):
    token = (result.token_attr - reference).abs().amax(dim=1)
    whole = (result.seq_attr - reference.sum(0)).abs().max()
    sign = (result.token_attr.sign() != reference.sign()).float().mean().item()
    print(f"{name}: " + " ".join(f"{value:.2f}" for value in token) + f", together {whole:.2f}"
          f", sign {100 * sign:.0f} %")
    return token, whole


right, wrong = ablated(once), ablated(again)
print(f"by hand, whole target: from {right.sum(0).min():.2f} to {right.sum(0).max():.2f}")
attribution = LLMAttribution(FeatureAblation(model), tokenizer)
given = TextTokenInput(prompt, tokenizer, baselines=BASELINE)
for settings in {"use_cached_outputs": False}, {"forward_in_tokens": False}:
    token, whole = compare(", ".join(f"{key}={value}" for key, value in settings.items()),
                           attribution.attribute(given, target=target, **settings), right)
    assert token.max() < 1e-3 and whole < 1e-3
result = attribution.attribute(given, target=target)
token, whole = compare("default", result, right)
assert token[0] < 1e-3 and token[1:].min() > 0.3 and whole > 1
token, whole = compare("default, from that by hand where the text is read again", result, wrong)
assert token.max() < 1e-3 and whole < 1e-3
END
