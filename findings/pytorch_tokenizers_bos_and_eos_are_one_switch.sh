#!/usr/bin/env bash
# Guess: encode(text, bos, eos) of pytorch_tokenizers, the tokenizers of ExecuTorch's runners, does
# what its header tokenizer.h promises for all classes: bos and eos are the numbers of tokens for
# the beginning and the end that are put before and after those of the text. SPTokenizer, for the
# files of sentencepiece, and HFTokenizer, for tokenizer.json, differ in the file that they read.
#
# pytorch_tokenizers 1.5.0, tokenizers 0.23.3, sentencepiece 0.2.3: HFTokenizer has only one switch.
# If either number isn't 0, it applies the post-processor of tokenizer.json, and that's all: what
# stands before and after the text is what the template there says, whatever was asked for. With a
# template that has a beginning and no end, like Llama 3's, eos=1 puts a beginning before the text
# and nothing after it, so texts that are put together for training have no ends. With a template
# of both, bos=1 for a prompt puts an end after it. Without a template, as in the file of GPT-2,
# nothing is added at all. There is no error, and bos_tok() and eos_tok() tell the right ids in all
# cases. HuggingFaceTokenizer, the class in Python that get_tokenizer() takes for such a file,
# doesn't look at its bos and eos at all: the template is always applied.
#
# Seen (for bos and eos of 0 0, 1 0, 0 1, 1 1, 2 2, with "text" for the ids of the text itself):
#   sentencepiece: text | <s> text | text </s> | <s> text </s> | <s> <s> text </s> </s>
#   template of <s>: text | <s> text | <s> text | <s> text | <s> text
#   template of <s>, Python: <s> text | <s> text | <s> text | <s> text | <s> text
#   both: text | <s> text </s> | <s> text </s> | <s> text </s> | <s> text </s>
#   both, Python: <s> text </s> | <s> text </s> | <s> text </s> | <s> text </s> | <s> text </s>
#   no template: text | text | text | text | text
#   no template, Python: text | text | text | text | text

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'pytorch_tokenizers==1.5.0' \
    'tokenizers==0.23.3' 'sentencepiece==0.2.3' 'tiktoken==0.14.0'
cd "$folder"

"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import json

import sentencepiece
from pytorch_tokenizers import CppHFTokenizer, CppSPTokenizer, get_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

COUNTS = ((0, 0), (1, 0), (0, 1), (1, 1), (2, 2))
TEXT = "the sun and the rain"
LINES = ["the wind and the snow", "the moon and the sun", "rain and snow and wind"] * 9
BOS, EOS = 1, 2


def report(name, encode, text):
    """Print what is before and after the text for each pair of numbers; return the ids."""
    found = [list(encode(*pair)) for pair in COUNTS]
    shown = []
    for ids in found:
        start = next(i for i in range(len(ids)) if ids[i:i + len(text)] == text)
        before, after = ids[:start], ids[start + len(text):]
        assert set(before) <= {BOS} and set(after) <= {EOS}
        shown.append(" ".join(["<s>"] * len(before) + ["text"] + ["</s>"] * len(after)))
    print(f"{name}: " + " | ".join(shown))
    return found


def wanted(text):
    return [[BOS] * bos + text + [EOS] * eos for bos, eos in COUNTS]


sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_prefix="pieces",
                                         model_type="bpe", vocab_size=40, minloglevel=2)
text = sentencepiece.SentencePieceProcessor(model_file="pieces.model").encode(TEXT)
pieces = CppSPTokenizer()
pieces.load("pieces.model")
assert report("sentencepiece", lambda *n: pieces.encode(TEXT, *n), text) == wanted(text)

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(
    vocab_size=40, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
text = tokenizer.encode(TEXT).ids
assert tokenizer.token_to_id("<s>") == BOS and tokenizer.token_to_id("</s>") == EOS
with open("tokenizer_config.json", "w") as file:
    json.dump({"bos_token": "<s>", "eos_token": "</s>"}, file)
for name, template in (("template of <s>", "<s> $A"), ("both", "<s> $A </s>"),
                       ("no template", None)):
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)])
        by_template = tokenizer.encode(TEXT).ids
    else:
        content = json.loads(tokenizer.to_str()) | {"post_processor": None}
        tokenizer = Tokenizer.from_str(json.dumps(content))
        by_template = text
    tokenizer.save("tokenizer.json")
    fast = CppHFTokenizer()
    fast.load(".")
    assert (fast.bos_tok(), fast.eos_tok()) == (BOS, EOS)
    found = report(name, lambda *n: fast.encode(TEXT, *n), text)
    assert found == [text] + 4 * [by_template] and found != wanted(text)
    slow = get_tokenizer("tokenizer.json", "tokenizer_config.json")
    assert (slow.bos_id, slow.eos_id) == (BOS, EOS)
    found = report(f"{name}, Python", lambda bos, eos: slow.encode(TEXT, bos=bos, eos=eos), text)
    assert found == 5 * [by_template]
END
grep -E '^(sentencepiece|template|both|no template)[a-zA-Z<>, ]*: ' "$folder/out"
