"""Generate text with a model that train.py made, or with GPT-2. Notes go to standard error.

    python sample.py --start="O gentle night"
    python sample.py --start="To be" --max_new_tokens=20 --probs=5  # most likely at each step
    python sample.py --init_from=gpt2 --score=poem.txt              # how well GPT-2 predicts it
"""

import codecs
import math
import sys

import numpy as np
import torch

import config
from model import GPT, beam_search, for_inference, get_device, get_snapshot, measure
from prepare import document_pieces, load_tokenizer

# model
out_dir = "out"  # folder of the run to sample from
snapshot = "auto"  # 'best', 'final', 'latest' or a path; 'auto': the first of these that exists
init_from = "auto"  # 'auto', 'resume': a snapshot of out_dir; or 'gpt2', a folder, a .pt file
export = ""  # write the model into this new folder in Hugging Face's format, and stop
# text
start = "\n"  # the prompt; FILE:path reads a file, - standard input, '' begins a new document
num_samples = 1  # continuations, generated as one batch (ignored with beams or probs)
max_new_tokens = 200  # length of each
temperature = 0.8  # below 1 sharpens the distribution, above 1 flattens it; 0: the most likely
top_k = 200  # sample only from the k most likely tokens; 0: all
top_p = 1.0  # sample only from the most likely tokens with this total probability
seed = 1337  # the same seed gives the same text
# other ways to use the model
beams = 0  # number of beams of a beam search; 0: sample
length_penalty = 1.0  # a beam's log-probability is divided by its length to this power
interactive = False  # ask for prompts; /temperature 0.5 changes a setting in between
probs = 0  # number of most likely tokens to show at each step (before temperature); 0: none
score = ""  # measure the model on this text file
stride = 32  # tokens by which --score's window of block_size advances
# system
device = "auto"  # 'cpu', 'cuda', 'cuda:1', 'mps'; 'auto': the fastest available
dtype = "auto"  # 'float32', 'bfloat16', 'float16'; on a CPU also 'int8': fast, less exact
compile = False  # on CUDA: replay each step as a CUDA graph (this is not torch.compile)


def print_continuations(model, encoding, prompt, generator):
    """Print the continuations of a prompt in the way that the settings ask for."""
    # An empty prompt becomes <|endoftext|>, which ends a document and so begins the next one.
    ids = encoding.encode(prompt, allowed_special="all") or [encoding.end_id]
    if len(ids) > model.config.block_size:
        raise ValueError(f"shorten the prompt: {len(ids)} tokens > {model.config.block_size=}")
    n_rows = 1 if beams or probs else num_samples
    idx = torch.tensor([ids] * n_rows, device=model.transformer.wte.weight.device)  # (B, T)
    if beams:
        found = beam_search(model, idx, max_new_tokens, beams, length_penalty, encoding.end_id)
        for text_ids, log_prob in found:
            print(f"log-probability {log_prob:.3f}:", file=sys.stderr)
            print(prompt, *map(text_decoder(encoding), text_ids[len(ids):]), sep="", flush=True)
        return
    # Each step gives the next ids (B, 1) and the logits (B, n_ids) from which they were drawn.
    steps = model.stream(idx, max_new_tokens, temperature, top_k, top_p, encoding.end_id,
                         generator, compile=compile)
    print_steps = print_probs if probs else print_texts
    print_steps(encoding, prompt, steps)


def print_texts(encoding, prompt, steps):
    """Print num_samples texts one after the other, the first one as it is generated."""
    decoders = [text_decoder(encoding) for _ in range(num_samples)]  # characters may span tokens
    texts = [prompt] * num_samples
    print(prompt, end="", flush=True)
    for new, _ in steps:
        pieces = [decode(token) for decode, token in zip(decoders, new[:, 0].tolist())]
        texts = [text + piece for text, piece in zip(texts, pieces)]
        print(pieces[0], end="", flush=True)
    print("", *texts[1:], sep="\n---------------\n")  # "" ends the line of the first


def print_probs(encoding, prompt, steps):
    """Print the most likely tokens of each step to standard error, then the text."""
    ids = []
    for new, logits in steps:
        ids += new[0].tolist()
        probabilities = logits[0].float().softmax(dim=-1)
        best = probabilities.topk(min(probs, len(probabilities))).indices.tolist()
        for i in dict.fromkeys([*best, ids[-1]]):  # each token once
            token = f"{'*' if i == ids[-1] else ' '}{encoding.decode([i])!r}"
            print(f"{token} {probabilities[i]:.1%}", end="  ", file=sys.stderr)
        print(file=sys.stderr)
    print(prompt, *map(text_decoder(encoding), ids), sep="")


def main(arguments):
    configure(arguments)  # start and the other settings above now have their final values
    torch_device, torch_dtype = get_device(device, "float32" if dtype == "int8" else dtype)
    # Read the text before the model, which takes longer. (A file's documents are joined by "\n".)
    if score or start.startswith("FILE:"):
        pieces = document_pieces([score or start.removeprefix("FILE:")])
        text = "".join(part + ("\n" if last else "") for part, last in pieces).removesuffix("\n")
    else:
        text = sys.stdin.buffer.read().decode() if start == "-" else start
    name = get_snapshot(out_dir, snapshot) if init_from in ("auto", "resume") else init_from
    model = GPT.from_pretrained(name)
    if export:
        return model.save_pretrained(export)
    if dtype == "auto" and torch_device.type == "cpu" and (score or model.num_params() < 20e6):
        torch_dtype = torch.float32  # faster for small models, exact for scores
    model = for_inference(model, torch_device, "int8" if dtype == "int8" else torch_dtype)
    encoding = load_tokenizer(model.tokenizer)
    if score:
        return print_score(model, encoding, text, model.transformer.wte.weight.device)
    if interactive:
        return converse(model, encoding)
    print_continuations(model, encoding, text, torch.Generator().manual_seed(seed))


# ---- plumbing: skip on a first reading ----

def configure(arguments, current=None):
    settings = config.override(__file__, arguments, current, num_samples=1, stride=1,
                               dtype=("auto", "float32", "bfloat16", "float16", "int8"))
    if settings["dtype"] == "int8" and settings["device"] not in ("auto", "cpu"):
        config.usage(f"dtype='int8' with device={settings['device']!r}: expected 'cpu'")
    if not 0 < settings["top_p"] <= 1:
        config.usage(f"top_p={settings['top_p']}: expected above 0 and at most 1")
    globals().update(settings)


def text_decoder(encoding):
    """Return a function id -> text that holds back incomplete characters."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    return lambda i: "" if i == encoding.end_id else decode(encoding.decode_bytes([i]))


def converse(model, encoding):
    """Read prompts and print continuations until the input ends; Ctrl-C stops the current text."""
    print("Type a prompt; /temperature 0.5 changes a setting; Ctrl-D quits.", file=sys.stderr)
    fixed = "out_dir snapshot init_from export start score stride interactive device dtype".split()
    generator = torch.Generator().manual_seed(seed)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        try:
            if not (line := sys.stdin.buffer.readline().decode()):
                return
            if line.startswith("/"):
                words = line[1:].strip().replace("=", " ", 1).split(maxsplit=1)  # name, value
                if words and words[0] in fixed:
                    raise ValueError(f"{words[0]} can't be changed now: start sample.py again")
                configure(["--" + "=".join(words)], globals())  # the others keep their values
                if words[0] == "seed":
                    generator.manual_seed(seed)
            else:
                print_continuations(model, encoding, line.rstrip("\r\n"), generator)
        except (ValueError, RuntimeError, MemoryError, KeyboardInterrupt) as error:
            print(error, file=sys.stderr)
        except SystemExit:  # config.usage has printed why
            pass


def print_score(model, encoding, text, model_device):
    """Print a text's loss, perplexity and bits per byte; a window advances by stride tokens."""
    tokens = np.array(encoding.encode(text, allowed_special="all"))
    if len(tokens) < 2:
        raise ValueError(f"{score} is too short to be scored: it needs two tokens")
    block_size = model.config.block_size
    ends = [*range(block_size + 1, len(tokens), min(stride, block_size)), len(tokens)]
    windows = [(max(0, end - block_size - 1), first, end) for first, end in zip([1, *ends], ends)]
    nats = sum(measure(lambda x, y: model(x.to(model_device), y.to(model_device))[1],
                       tokens, windows, 1, block_size))
    targets = tokens[1:]  # the first has no context; below, <|endoftext|> counts as no bytes
    loss = nats / len(targets)
    n_bytes = max(1, len(encoding.decode_bytes(targets[targets != encoding.end_id].tolist())))
    print(f"{len(targets)} tokens, {n_bytes} bytes: loss {loss:.4f}, perplexity "
          f"{math.exp(min(loss, 700)):.2f}, bits per byte {nats / math.log(2) / n_bytes:.4f}")


if __name__ == "__main__":
    raise SystemExit(config.run(main))
