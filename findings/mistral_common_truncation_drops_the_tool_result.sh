#!/usr/bin/env bash
# Guess: mistral-common with truncate_for_context_length=True ("automatically truncate messages to
# fit within the model's context length") and max_model_input_len=n makes at most n tokens: the
# oldest turns go first, and the system prompt and the turn that is to be answered stay. If these
# alone are too long, it's an error. All versions of its tokenizers do so.
#
# mistral-common 1.13.1: only the tokenizers from version 7 on drop anything, and they go too far.
# Versions 1 to 3 (Mistral 7B, Mixtral, Nemo), for which the documentation is the same, return all
# tokens, whatever n is, and say nothing. From 7 on, the <s> isn't counted, so that there may be one
# token more than the model takes. And what comes after the last question is dropped, too, after the
# older turns: the question itself is kept, but the loop then goes on to the end of its turn, as it
# does for a question that is dropped. So a tool's result that is too long is no error: it's thrown
# away together with the call, and the model gets the bare question once more, 8 tokens where 109
# are allowed. In the same way the beginning of an answer (prefix=True) is lost, and prefix_ids are
# still those of the text that isn't there. Nothing is said about it. (A remark in the source says
# that the last message is never dropped.)
#
# Seen (two old turns and a new question with the five tokenizers; then the calls of a tool, and an
# answer that is to be continued, with version 7):
#   v1, 115 tokens: 114 allowed, 115 made; 60 allowed, 115 made
#   v2, 98 tokens: 97 allowed, 98 made; 60 allowed, 98 made
#   v3, 98 tokens: 97 allowed, 98 made; 60 allowed, 98 made
#   v3 tekken, 96 tokens: 95 allowed, 96 made; 60 allowed, 96 made
#   v7, 98 tokens: 97 allowed, 98 made; 60 allowed, 54 made
#   tool, 111 tokens: 110 allowed, 111 made; 109 allowed, 8 made: [INST] What is the weather?[/INST]
#   prefix, 26 tokens: 25 allowed, 26 made; 24 allowed, 5 made: [INST] Count.[/INST]
#   prefix_ids of 5 tokens: 21

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'mistral-common==1.13.1' 'numpy==2.3.5' \
    'tiktoken==0.14.0' 'sentencepiece==0.2.3' 'pydantic==2.14.4'
cd "$folder"

"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import warnings

from mistral_common.protocol.instruct.messages import (
    AssistantMessage, SystemMessage, ToolMessage, UserMessage)
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import FunctionCall, ToolCall
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

warnings.simplefilter("ignore")


def encode(tokenizer, messages, limit=None):
    request = ChatCompletionRequest(
        messages=messages, truncate_for_context_length=limit is not None)
    return tokenizer.encode_chat_completion(request, max_model_input_len=limit)


def compare(name, tokenizer, messages, limits, end="\n"):
    """Encode with limits of tokens; return the numbers of tokens and the last result."""
    counts = [len(encode(tokenizer, messages).tokens)]
    print(f"{name}, {counts[0]} tokens:", end=" ")
    for place, limit in enumerate(limits):
        result = encode(tokenizer, messages, counts[0] + limit if limit < 0 else limit)
        counts.append(len(result.tokens))
        print(f"{counts[0] + limit if limit < 0 else limit} allowed, {counts[-1]} made",
              end="; " if place == 0 else end)
    return counts, result


def text(tokenizer, result):
    return tokenizer.instruct_tokenizer.decode(result.tokens)


chat = [SystemMessage(content="Be brief."),
        UserMessage(content="one " * 20), AssistantMessage(content="uno " * 20),
        UserMessage(content="two " * 20), AssistantMessage(content="dos " * 20),
        UserMessage(content="three?")]
for name, tokenizer in (
        ("v1", MistralTokenizer.v1()), ("v2", MistralTokenizer.v2()),
        ("v3", MistralTokenizer.v3()), ("v3 tekken", MistralTokenizer.v3(is_tekken=True))):
    counts, _ = compare(name, tokenizer, chat, (-1, 60))
    assert len(set(counts)) == 1 and counts[0] > 60
tokenizer = MistralTokenizer.v7()
counts, result = compare("v7", tokenizer, chat, (-1, 60))
assert counts[1] == counts[0] and counts[2] <= 60
assert "one" not in text(tokenizer, result) and "Be brief" in text(tokenizer, result)

call = ToolCall(id="123456789", function=FunctionCall(name="forecast", arguments="{}"))
question = "What is the weather?"
counts, result = compare("tool", tokenizer, [
    UserMessage(content=question), AssistantMessage(tool_calls=[call]),
    ToolMessage(content="sunny " * 30, tool_call_id="123456789", name="forecast")], (-1, -2), ": ")
bare = encode(tokenizer, [UserMessage(content=question)])
print(bare.text.replace("<s>", "").replace("\u2581", " "))
assert counts[1] == counts[0] and result.tokens == bare.tokens

counts, result = compare("prefix", tokenizer, [
    UserMessage(content="Count."), AssistantMessage(content="1 2 3 4 5 6 7 8 9 10", prefix=True)],
    (-1, -2), ": ")
bare = encode(tokenizer, [UserMessage(content="Count.")])
print(bare.text.replace("<s>", "").replace("\u2581", " "))
print(f"prefix_ids of {len(result.tokens)} tokens: {len(result.prefix_ids)}")
assert counts[1] == counts[0] and result.tokens == bare.tokens
assert result.prefix_ids and not set(result.prefix_ids) & set(result.tokens)
END
