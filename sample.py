"""Text, and nothing else on standard output, from a model that train.py made, or from GPT-2.

    python sample.py --start="O gentle night"
    python sample.py --start="To be" --max_new_tokens=20 --probs=5  # what it hesitated between
    python sample.py --init_from=gpt2 --score=poem.txt              # how well GPT-2 knows a text"""

import codecs
import math
import sys
from pathlib import Path

import torch

import config
from model import GPT, choose_device
from prepare import documents, load_tokenizer

out_dir = "out"  # folder of the run to sample from
snapshot = "auto"  # 'best', 'final', 'latest' or a path; 'auto' is the first of these that is there
init_from = "auto"  # 'auto' and 'resume' take a snapshot; 'gpt2', another model's name, a folder
export = ""  # write the model into this new folder as other tools read it, in place of a text
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

def change_settings(arguments, current=None):  # one that can't be meant ends with exit code 2
    settings = config.override(__file__, arguments, current)
    config.at_least(settings, 1, "num_samples stride")
    if not 0 < settings["top_p"] <= 1:
        config.usage(f"top_p={settings['top_p']}: expected above 0 and at most 1")
    globals().update(settings)

def load_model():  # -> the one that init_from and snapshot name, with its tokenizer
    if init_from not in ("auto", "resume"):
        return GPT.from_pretrained(init_from)
    out = Path(out_dir)
    latest = max(out.glob("snapshots/*.pt"), key=lambda path: path.stat().st_mtime, default=out)
    named = {"best": out / "best.pt", "final": out / "final_model.pt", "latest": latest}
    there = [path for path in named.values() if path.is_file()]
    if snapshot == "auto" and not there:
        raise ValueError(f"there is no snapshot in {out_dir}: python train.py makes one")
    return GPT.from_snapshot(there[0] if snapshot == "auto" else named.get(snapshot, snapshot))

def decoder(encoding):  # -> a function token -> text; it holds back half a character
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    return lambda token: decode(encoding.decode_bytes([token] * (token != encoding.eot_token)))

def generate(model, encoding, text):
    """Print continuations of the text one after the other, the first one as it grows."""
    end = encoding.eot_token  # of a document, and what another begins with
    ids = encoding.encode_ordinary(text) or [end]
    if len(ids) > model.config.block_size:
        raise ValueError(f"cut the prompt: {len(ids)} tokens, block_size={model.config.block_size}")
    ids = torch.tensor([ids] * num_samples, device=model.lm_head.weight.device)
    if beams:
        for row, log_prob in model.beam_search(ids[:1], max_new_tokens, beams, length_penalty, end):
            print(f"log-probability {log_prob:.3f}:", file=sys.stderr)
            print(text, *map(decoder(encoding), row[ids.size(1):]), sep="", flush=True)
        return
    decoders = [decoder(encoding) for _ in ids]
    steps = [[text] * num_samples]  # what each row has grown by
    print("" if probs else text, end="", flush=True)
    for new, logits in model.stream(ids, max_new_tokens, temperature, top_k, top_p, end,
                                    torch.Generator(ids.device).manual_seed(seed), compile):
        steps.append([decode(token) for decode, token in zip(decoders, new[:, 0].tolist())])
        if probs:  # the likeliest tokens with their probabilities, the chosen one marked by *
            chances, chosen = logits[0].float().softmax(-1), new[0].item()
            likely = chances.topk(min(probs, len(chances))).indices.tolist()
            print(*(f"{'*' if i == chosen else ' '}{encoding.decode([i])!r} {chances[i]:.1%}"
                    for i in likely + [chosen] * (chosen not in likely)), sep="  ", file=sys.stderr)
        print("" if probs else steps[-1][0], end="", flush=True)
    first, *others = map("".join, zip(*steps))
    print(first if probs else "", *others, sep="\n---------------\n", flush=True)

def converse(model, encoding):
    """Read prompts and print continuations until the input ends; Ctrl-C stops a text."""
    print("Type a prompt; /temperature 0.5 changes a setting; Ctrl-D leaves.", file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        try:
            if not (line := sys.stdin.readline()):
                return
            if line.startswith("/"):
                change_settings(["--" + line[1:].strip().replace(" ", "=", 1)], dict(globals()))
            else:
                generate(model, encoding, line.rstrip("\n"))
        except (ValueError, KeyboardInterrupt) as error:
            print(error, file=sys.stderr)
        except SystemExit:  # usage has said why
            pass

@torch.inference_mode()
def print_score(model, encoding, text):
    """Print a text's loss, perplexity and bits per byte; a window moves on by stride tokens."""
    ids = torch.tensor(encoding.encode_ordinary(text), device=model.lm_head.weight.device)
    if len(ids) < 2:
        raise ValueError(f"{score} is too short to be scored: it needs two tokens")
    block_size = model.config.block_size
    total, scored = 0.0, 1  # the first token follows nothing
    for end in (*range(block_size + 1, len(ids), min(stride, block_size)), len(ids)):
        window = ids[None, max(0, end - block_size - 1):end]
        logits = model(window[:, :-1], window[:, 1:])[0][0, scored - end:].float()
        total += torch.nn.functional.cross_entropy(logits, ids[scored:end], reduction="sum").item()
        scored = end
    loss = total / (len(ids) - 1)
    size = len(encoding.decode_bytes(ids[1:].tolist()))
    print(f"{len(ids) - 1} tokens, {size} bytes: loss {loss:.4f}, perplexity "
          f"{math.exp(min(loss, 700)):.2f}, bits per byte {total / math.log(2) / size:.4f}")

def main(arguments=None):
    change_settings(arguments)
    target_device, matrix_dtype, _ = choose_device(device, dtype)
    text = sys.stdin.read() if start == "-" else start
    if score or start.startswith("FILE:"):
        text = "".join(piece + "\n" * last for piece, last in documents([score or start[5:]]))[:-1]
    model = load_model()
    if export:
        return model.save_pretrained(export)
    if not model.tokenizer:
        raise ValueError("the model has no tokenizer: put its tokenizer.json beside the weights")
    if dtype == "auto" and target_device.type == "cpu" and (score or model.num_params() < 2e7):
        matrix_dtype = torch.float32  # small matrices stay in the cache: halving them gains nothing
    model.to(target_device, matrix_dtype).eval()
    encoding = load_tokenizer(model.tokenizer)
    if score:
        return print_score(model, encoding, text)
    model.pack(beams or num_samples)
    return converse(model, encoding) if interactive else generate(model, encoding, text)

if __name__ == "__main__":
    raise SystemExit(config.run(main))
