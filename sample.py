"""Text from a model that train.py made.

    python sample.py --start="O gentle night"
    python sample.py --start=FILE:prompt.txt --num_samples=3 --temperature=1.0 --top_p=0.9
    python sample.py --interactive
    python sample.py --start="To be" --max_new_tokens=20 --probs=5   # what it hesitated between
    python sample.py --score=poem.txt                                # how well it knows a text

Standard output is the text and nothing else; all that is said about it goes to standard error."""

import codecs
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import config
from model import GPT, choose_device
from prepare import load_tokenizer

out_dir = "out"  # folder of the run to sample from
snapshot = "auto"  # 'best', 'final', 'latest' or a path; 'auto' is the first of these that is there
init_from = "auto"  # as in train.py: 'auto' and 'resume' take a snapshot of out_dir
start = "\n"  # the prompt; FILE:path reads a file, - standard input, '' begins a new document
num_samples = 1  # continuations, made side by side
max_new_tokens = 200  # length of each
temperature = 0.8  # below 1 sharpens the distribution, above flattens it, 0 takes the likeliest
top_k = 200  # draw only among the so many likeliest tokens; 0 for all
top_p = 1.0  # draw only among the fewest tokens that have this probability together
beams = 0  # search so many beams for a likely text, in place of drawing; 0 for drawing
length_penalty = 1.0  # a beam's log-probability is divided by its length to this power
interactive = False  # ask for prompts; /temperature 0.5 and the like change settings in between
probs = 0  # show so many of the likeliest tokens at each step
score = ""  # measure the model on this text file, in place of generating
stride = 32  # tokens that --score's window of block_size moves on by
seed = 1337  # the same seed gives the same text
device = "auto"  # 'cpu', 'cuda', 'cuda:1', 'mps'; 'auto' takes the fastest that is there
dtype = "auto"  # 'float32', 'bfloat16' or 'float16'
compile = False  # on CUDA: record the work of one token once, as a CUDA graph, and replay it


def check_settings():  # one that can't be meant ends with exit code 2
    config.one_of(globals(), "init_from", "auto", "resume")
    config.at_least(globals(), 1, "num_samples stride")
    if not 0 < top_p <= 1:
        config.usage(f"top_p={top_p}: expected above 0 and at most 1")


def load_model():
    """Return the model that the setting snapshot names, with its tokenizer's description."""
    snapshots = Path(out_dir, "snapshots").glob("snapshot_step_*.pt")
    latest = max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
    there = {"best": Path(out_dir, "best.pt"), "final": Path(out_dir, "final_model.pt"),
             "latest": latest}
    there = {name: path for name, path in there.items() if path and path.exists()}
    if snapshot == "auto" and not there:
        raise ValueError(f"there is no snapshot in {out_dir}: python train.py makes one")
    path = next(iter(there.values())) if snapshot == "auto" else there.get(snapshot, snapshot)
    return GPT.from_snapshot(path)


def read_text(path):
    try:
        return Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from error


def show_step(logits, chosen, encoding):
    """Print the likeliest next tokens with their probabilities, the chosen one marked by *."""
    chances = F.softmax(logits.float(), dim=-1)
    likely = chances.topk(min(probs, len(chances))).indices.tolist()
    shown = likely + [chosen] * (chosen not in likely)
    print("  ".join(f"{'*' if i == chosen else ' '}{encoding.decode([i])!r} {chances[i]:.1%}"
                    for i in shown), file=sys.stderr)


def decode(ids, encoding):  # half a character at the end is left out
    text = encoding.decode_bytes([i for i in ids if i != encoding.eot_token])
    return codecs.getincrementaldecoder("utf-8")("replace").decode(text)


def generate(model, encoding, text):
    """Print continuations of the text: one as it grows, several one after the other. An empty
    text is the beginning of a document."""
    ids = encoding.encode_ordinary(text) or [encoding.eot_token]
    if len(ids) > model.config.block_size:
        raise ValueError(f"the prompt has {len(ids)} tokens and the model's block_size is "
                         f"{model.config.block_size}: shorten it")
    ids = torch.tensor([ids] * num_samples, device=model.lm_head.weight.device)
    if beams:
        for row, log_prob in model.beam_search(ids[:1], max_new_tokens, beams, length_penalty,
                                               eos_token=encoding.eot_token):
            print(f"log-probability {log_prob:.3f}:", file=sys.stderr)
            print(text + decode(row[ids.size(1):], encoding), flush=True)
        return
    generator = torch.Generator(ids.device).manual_seed(seed)
    live = num_samples == 1 and not probs
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # holds back half a character
    steps = []
    print(text if live else "", end="", flush=True)
    for new, logits in model.stream(ids, max_new_tokens, temperature, top_k, top_p,
                                    encoding.eot_token, generator, compile):
        steps.append(new[:, 0].tolist())
        if probs:
            show_step(logits[0], steps[-1][0], encoding)
        if live and steps[-1] != [encoding.eot_token]:
            print(decoder.decode(encoding.decode_single_token_bytes(steps[-1][0])), end="",
                  flush=True)
    rows = [text + decode(row, encoding) for row in zip(*steps)] or [text] * num_samples
    print("" if live else "\n---------------\n".join(rows), flush=True)


def converse(model, encoding):
    """Read prompts and print continuations until the input ends; Ctrl-C stops a text."""
    described = config.read_settings(__file__)
    print("Type a prompt; /temperature 0.5 changes a setting; Ctrl-D leaves.", file=sys.stderr)
    while True:
        settings = dict(globals())  # to go back to when a command is refused
        print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
            if not line:
                return
            if line.startswith("/"):
                name, _, value = line[1:].strip().partition(" ")
                config.assign_text(globals(), f"{name}={value.strip()}", described)
                check_settings()
            else:
                generate(model, encoding, line.rstrip("\n"))
        except (ValueError, SystemExit) as error:
            globals().update(settings)
            if isinstance(error, ValueError):
                print(error, file=sys.stderr)
        except KeyboardInterrupt:
            print(file=sys.stderr)


@torch.inference_mode()
def print_score(model, encoding, text):
    """Print loss, perplexity and bits per byte of a text, each token with as much context as a
    window of block_size gives that moves on by stride tokens."""
    ids = torch.tensor(encoding.encode_ordinary(text))
    if len(ids) < 2:
        raise ValueError(f"{score} is too short to be scored: it needs two tokens")
    block_size = model.config.block_size
    total = 0.0
    scored = 1  # the first token follows nothing
    while scored < len(ids):
        end = min(len(ids), scored + (block_size if scored == 1 else min(stride, block_size)))
        window = ids[max(0, end - block_size - 1):end].to(model.lm_head.weight.device)[None]
        logits = model(window[:, :-1], window[:, 1:])[0][0, scored - end:].float()
        total += F.cross_entropy(logits, window[0, scored - end:], reduction="sum").item()
        scored = end
    loss = total / (len(ids) - 1)
    size = len(text.encode()) - len(encoding.decode_single_token_bytes(ids[0].item()))
    print(f"{len(ids) - 1} tokens, {size} bytes: loss {loss:.4f}, perplexity "
          f"{math.exp(min(loss, 700)):.2f}, bits per byte {total / math.log(2) / size:.4f}")


def main(arguments=None):
    globals().update(config.override(__file__, arguments))
    check_settings()
    target_device, matrix_dtype, _ = choose_device(device, dtype)
    text = start
    if start == "-":
        text = sys.stdin.read()
    elif start.startswith("FILE:"):
        text = read_text(start[5:])
    scored_text = read_text(score) if score else ""
    model = load_model()
    if dtype == "auto" and target_device.type == "cpu" and (score or model.num_params() < 2e7):
        matrix_dtype = torch.float32  # small matrices stay in the cache: halving them gains nothing
    model.to(target_device, matrix_dtype).eval()
    encoding = load_tokenizer(model.tokenizer)
    if score:
        print_score(model, encoding, scored_text)
        return
    model.pack(beams or num_samples)
    if interactive:
        converse(model, encoding)
    else:
        generate(model, encoding, text)


if __name__ == "__main__":
    raise SystemExit(config.run(main))
