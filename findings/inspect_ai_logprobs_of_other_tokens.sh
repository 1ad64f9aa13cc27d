#!/usr/bin/env bash
# Guess: the logprobs that inspect_ai gives for a local model (its provider "hf") are those of the
# tokens that were generated, one for each, so that their sum is the log-probability of the answer.
# Whether prompts are sent alone or together doesn't matter, to them nor to the counts of tokens.
#
# inspect_ai 0.3.285 with transformers 5.24.0, torch 2.13.0: they are those of the likeliest token
# of each step, whatever was drawn. inspect_ai keeps the log-softmax of all steps, and takes the
# first of its topk() as "the predicted token", name and value; which token was generated it doesn't
# look up. It samples unless the model argument do_sample=False is given, so most answers
# are concerned, and each looks likelier than it is. A confidence, a calibration or a perplexity
# made of them measures a text that nobody wrote. The documentation of the fields says "for each
# generated token". Greedily, and alone, it's right. Prompts that are sent together, as a task's
# samples are, become a batch: there an answer that ends first has further logprobs, of what would
# come after its end, up to the length of the longest. The usage counts padding, too, in
# front and behind: each sample has as many input and output tokens as the longest has.
#
# Seen (a small random GPT-2, whose tokens are words; tokens of the answer, number of logprobs, of
# these with the token of the answer; their sum, that of the answer by hand; input and output tokens
# of the usage; "ends": a model that ends this answer after a word, not the other one of 7 + 8):
#   greedy, alone: 8 tokens, 8 logprobs, 8 right; sum -10.01, by hand -10.01; usage 3 + 8
#   sampled, alone: 8 tokens, 8 logprobs, 1 right; sum -8.55, by hand -25.07; usage 3 + 8
#   greedy, ends, alone: 2 tokens, 2 logprobs, 2 right; sum -2.30, by hand -2.30; usage 3 + 2
#   greedy, ends, two: 2 tokens, 8 logprobs, 2 right; sum -8.99, by hand -2.30; usage 7 + 8

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'inspect-ai==0.3.285'

cd "$folder"
export HF_HUB_OFFLINE=1 HOME="$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import asyncio

import torch
from inspect_ai.model import GenerateConfig, get_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = 60
torch.set_num_threads(1)
torch.manual_seed(0)
vocabulary = {"<|endoftext|>": 0, **{f"w{i}": i for i in range(1, WORDS)}}
words = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>",
                                    pad_token="<|endoftext|>")
tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
tokenizer.save_pretrained("model")
gpt2 = GPT2LMHeadModel(GPT2Config(
    vocab_size=WORDS, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
    bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=False)).eval()
with torch.no_grad():
    gpt2.lm_head.weight[0] = 0  # the end isn't likely
gpt2.save_pretrained("model")


def greedily(text):
    ids = torch.tensor([tokenizer(text).input_ids])
    new = gpt2.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8,
                        do_sample=False)
    return new[0, ids.shape[1]:].tolist()


def report(name, prompt, output, ended=False):
    words = output.completion.split() + ["<|endoftext|>"] * ended
    start = len(prompt.split())
    ids = tokenizer.convert_tokens_to_ids(prompt.split() + words)
    with torch.no_grad():
        log_probs = gpt2(torch.tensor([ids])).logits[0].log_softmax(-1)
    by_hand = sum(log_probs[i - 1, ids[i]].item() for i in range(start, len(ids)))
    content = output.choices[0].logprobs.content
    right = sum(word == one.token for word, one in zip(words, content))
    total = sum(one.logprob for one in content)
    usage = output.usage.input_tokens, output.usage.output_tokens
    print(f"{name}: {len(words)} tokens, {len(content)} logprobs, {right} right; "
          f"sum {total:.2f}, by hand {by_hand:.2f}; usage {usage[0]} + {usage[1]}")
    return len(words), len(content), right, total - by_hand, *usage


async def main():
    settings = dict(model_path="model", device="cpu")
    greedy = get_model("hf/greedy", do_sample=False, **settings)
    sampled = get_model("hf/sampled", **settings)
    config = GenerateConfig(max_tokens=8, logprobs=True, top_logprobs=2, seed=0)
    long = "w9 w8 w7 w6 w5 w4 w3"
    other = greedily(long)
    short, size, word = next(
        (text, i, word) for text in (f"w{j} w{k} w3" for j in range(1, WORDS) for k in range(1, 5))
        for answer in [greedily(text)] for i, word in enumerate(answer)
        if 0 < i < 6 and word not in answer[:i] + other)

    result = report("greedy, alone", short, await greedy.generate(short, config=config))
    assert result[:3] == (8, 8, 8) and abs(result[3]) < 1e-3
    result = report("sampled, alone", short, await sampled.generate(short, config=config))
    assert result[0] == result[1] == 8 and result[2] < 5 and result[3] > 5

    with torch.no_grad():  # the first answer ends in place of that word
        gpt2.lm_head.weight[[0, word]] = gpt2.lm_head.weight[[word, 0]]
    gpt2.save_pretrained("model")
    ending = get_model("hf/ending", do_sample=False, **settings)
    alone = await ending.generate(short, config=config)
    result = report("greedy, ends, alone", short, alone, ended=True)
    assert result[:3] == (size + 1,) * 3 and abs(result[3]) < 1e-3
    assert result[4:] == (3, size + 1) and size + 1 < 8
    both = await asyncio.gather(*(ending.generate(text, config=config) for text in (short, long)))
    assert both[0].completion == alone.completion
    result = report("greedy, ends, two", short, both[0], ended=True)
    assert result[:3] == (size + 1, 8, size + 1) and result[3] < -0.1 and result[4:] == (7, 8)


asyncio.run(main())
END
