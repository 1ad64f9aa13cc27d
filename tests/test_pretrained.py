"""GPT-2's weights in and trained models out: the hub, the scripts, and what transformers does with
a model from here (those tests are skipped where transformers is not installed)."""

import collections
import hashlib
import http.server
import json
import os
import random
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, VOCABULARY, call, succeed
from test_weight_files import CONFIG, gpt2_tensors, make_model, same, write_safetensors
from torch.utils._python_dispatch import TorchDispatchMode

import prepare
from model import GPT, GPTConfig, for_inference
from prepare import load_tokenizer

needs_vocabulary = pytest.mark.skipif(not VOCABULARY.exists(), reason="GPT-2's vocabulary is not "
                                      f"in {VOCABULARY}")
TEXT = ("Who's there? naïve – 日本 🙂 \u00a0\u00ad\u200b x²  fin\n\n\n\n\n \n\t\r\n   \n a  b\n"
        + "".join(map(chr, range(1, 0x3000, 5))) + "".join(map(chr, range(0x1F300, 0x1F700, 9)))
        + "\n\n\n\n\n\n\n12345 1234567 !!!??? 'll 's 'S I'LL they've\taaaaaaaaaaaaaaaaaaaaaaa"
        + "<|endoftext|>And<|endoftext|>\n<|endoftext|>  ")


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Without a server of the test's own, nothing is downloaded and nobody's cache is read."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture(scope="session")
def trained(finished_run):
    return GPT.from_snapshot(finished_run / "final_model.pt").eval()


# ---- transformers opens what is saved here, and the other way round -----------------------------

@pytest.fixture(scope="session")
def transformers():
    found = pytest.importorskip("transformers", reason="transformers is not installed")
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()
    return found


@pytest.fixture(scope="session")
def exported(finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    succeed("sample", f"--out_dir={finished_run}", "--snapshot=final", f"--export={folder}")
    return folder


def test_transformers_computes_the_same_logits_and_the_same_text(exported, trained, transformers):
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        exported, output_loading_info=True)
    assert not any(report.values()), report
    theirs.eval()
    torch.manual_seed(0)
    idx = torch.randint(trained.config.vocab_size, (4, trained.config.block_size))
    with torch.no_grad():
        assert (theirs(idx).logits - trained(idx, idx)[0]).abs().max() < 1e-4


def test_greedy_generation_is_the_same_for_100_tokens(tmp_path, transformers):
    torch.manual_seed(3)
    model = GPT(GPTConfig(block_size=128, vocab_size=300, n_layer=2, n_head=2, n_embd=32)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # so that the text doesn't repeat one token
    model.save_pretrained(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    idx = torch.randint(299, (1, 8))
    end = model.config.vocab_size - 1
    text = theirs.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=100,
                           do_sample=False, pad_token_id=end)
    assert len(text[0].unique()) > 20
    ours = model.generate(idx, 100, temperature=0, eos_token=end)
    assert torch.equal(ours, text) and ours.size(1) == 108


class OperatorCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[operator.name()] += 1
        return operator(*args, **(kwargs or {}))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="without oneDNN")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512"])
@pytest.mark.parametrize("cpu_name, n_rows, is_packed", [
    ("AMD EPYC", 1, True), ("AMD EPYC", 4, True),
    ("Intel Xeon", 1, False), ("Intel Xeon", 4, True)])
def test_a_loaded_model_packs_its_large_layers_where_it_pays_and_follows_changed_weights(
        tmp_path, monkeypatch, instructions, cpu_name, n_rows, is_packed):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": cpu_name},
                        raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    torch.manual_seed(0)
    shape = GPTConfig(block_size=64, vocab_size=2048, n_layer=2, n_head=4, n_embd=384)
    GPT(shape).save_pretrained(tmp_path / "model")
    model = GPT.from_pretrained(str(tmp_path / "model"))
    idx = torch.randint(2048, (n_rows, 8))
    for _ in range(2):
        with OperatorCounter() as operators:
            text = model.generate(idx, 40, temperature=0)
        # In each step, the MLPs' two matrices of both blocks, and the output matrix. The prompt's
        # step is a linear layer everywhere (but for the output matrix: the last position alone).
        linear = {"AVX2": 4, "AVX512": 40 * 5}[instructions] if is_packed else 0
        assert operators.counts["mkldnn::_linear_pointwise"] == linear
        assert operators.counts["mkldnn::_convolution_pointwise"] == 40 * 5 * is_packed - linear
        reordered = 5 if is_packed and instructions == "AVX512" and n_rows > 1 else 0
        assert operators.counts["mkldnn::_reorder_linear_weight"] == reordered
        plain = idx
        for _ in range(40):
            plain = torch.cat((plain, model(plain)[0].argmax(dim=-1)), dim=1)
        assert torch.equal(text, plain)
        with torch.no_grad():
            model.transformer.wte.weight.mul_(-1)  # the output matrix, too: tokens change


def test_transformers_finds_the_same_tokens(exported, trained, transformers):
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    encoding = load_tokenizer(trained.tokenizer)
    for text in (TEXT, (ROOT / "input.txt").read_text(encoding="utf-8")[:200_000]):
        ids = encoding.encode(text, allowed_special="all")
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == encoding.decode(ids) == text
    assert theirs.eos_token_id == encoding.end_id and len(theirs) == encoding.n_vocab


@needs_vocabulary
def test_transformers_finds_gpt2s_own_tokens(tmp_path, transformers):
    model = GPT(GPTConfig(block_size=8, vocab_size=50257, n_layer=1, n_head=1, n_embd=2))
    model.save_pretrained(tmp_path / "model", prepare.find_tokenizer("gpt2"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = load_tokenizer(prepare.find_tokenizer("gpt2")).encode(TEXT, allowed_special="all")
    assert theirs(TEXT)["input_ids"] == ids
    found = GPT.from_pretrained(tmp_path / "model").tokenizer
    assert found["tokens"] == prepare.find_tokenizer("gpt2")["tokens"]
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(tmp_path / "theirs" / "tokenizer.json", tmp_path / "model")
    assert GPT.from_pretrained(tmp_path / "model").tokenizer == found


def test_tokens_with_two_merges_are_the_same_in_transformers(tmp_path, transformers):
    tokens = [chr(i) for i in range(256)] + ["ab", "bc", "abc", "aa", "aaa", "aaaa", "ca", "abca"]
    make_model(vocab_size=265).save_pretrained(tmp_path / "m", {"name": "bpe", "tokens": tokens})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    encoding = load_tokenizer({"name": "bpe", "tokens": tokens})
    dice = random.Random(0)
    for _ in range(500):
        text = "".join(dice.choices("abc ", k=dice.randrange(1, 40)))
        assert theirs(text)["input_ids"] == encoding.encode_ordinary(text), text


def test_the_safetensors_library_reads_the_file(exported, trained):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    found = safetensors.load_file(exported / "model.safetensors")
    ours = gpt2_tensors(trained, prefix="")  # names as in OpenAI's own file at the hub
    assert found.keys() == ours.keys() and all(torch.equal(found[key], ours[key]) for key in ours)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("headless", [False, True])  # GPT2Model's names have no prefix
def test_what_transformers_saves_is_read_exactly(sharded, half, headless, tmp_path, exported,
                                                    trained, transformers):
    kind = transformers.AutoModel if headless else transformers.AutoModelForCausalLM
    theirs = kind.from_pretrained(exported)
    ours = GPT(trained.config)
    ours.load_state_dict(trained.state_dict())
    if half:
        theirs = theirs.half()
        ours = ours.half().float()
    theirs.save_pretrained(tmp_path, max_shard_size="30KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    assert same(ours, GPT.from_pretrained(tmp_path))
    assert GPT.from_pretrained(tmp_path).tokenizer is None
    transformers.AutoTokenizer.from_pretrained(exported).save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path).tokenizer == trained.tokenizer


# ---- what other tools ask for -------------------------------------------------------------------

def test_the_export_has_what_other_tools_read(exported, trained):
    def read(name):
        return json.loads((exported / name).read_text(encoding="utf-8"))
    block_size = trained.config.block_size
    assert sorted(path.name for path in exported.iterdir()) == [
        "config.json", "generation_config.json", "merges.txt", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    assert read("config.json")["n_ctx"] == block_size  # llama.cpp, MLX
    found = read("tokenizer.json")
    assert found["post_processor"] is None and found["normalizer"] is None  # transformers.js
    assert read("generation_config.json")["max_length"] == block_size
    assert read("tokenizer_config.json")["clean_up_tokenization_spaces"] is False
    assert read("vocab.json") == found["model"]["vocab"]  # keras-hub
    merges = (exported / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges[0] == "#version: 0.2" and merges[1:] == found["model"]["merges"]


def test_vocab_json_and_merges_txt_alone_are_the_same_tokenizer(exported, trained, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    assert GPT.from_pretrained(tmp_path / "model").tokenizer == trained.tokenizer


def test_transformers_default_pipeline_stays_within_the_block(exported, transformers):
    generate = transformers.pipeline("text-generation", model=str(exported), device="cpu")
    text = generate("The ", do_sample=False)[0]["generated_text"]
    assert text.startswith("The ") and len(text) > 4


# ---- tokenizers ---------------------------------------------------------------------------------

def test_an_exported_tokenizer_is_read_back(exported, trained):
    assert GPT.from_pretrained(exported).tokenizer == trained.tokenizer
    assert json.loads((exported / "tokenizer_config.json").read_text())["eos_token"] == (
        "<|endoftext|>")


@pytest.mark.parametrize("change", [
    lambda found: found["model"].update(type="Unigram"),
    lambda found: found["pre_tokenizer"].update(type="Whitespace"),
    lambda found: found["pre_tokenizer"].update(add_prefix_space=True),
    lambda found: found["model"]["vocab"].update(more=300),
    lambda found: found["model"]["vocab"].pop("a"),
    lambda found: found["model"]["vocab"].update({"日": found["model"]["vocab"].pop("a")}),
    lambda found: found["added_tokens"][0].update(id=0),
    lambda found: found.clear(),
])
def test_a_tokenizer_of_another_kind_is_refused(change, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError) as error:
        GPT.from_pretrained(tmp_path / "model")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'model'}: ") and "\n" not in message


# ---- the scripts --------------------------------------------------------------------------------

TUNE = ["--block_size=8", "--batch_size=4", "--max_iters=6", "--log_interval=1",
        "--eval_interval=3", "--eval_iters=2", "--snapshot_interval=2", "--device=cpu",
        "--num_return_sequences=0", "--dropout=0.1", "--optimizer=adamw", "--learning_rate=1e-4"]


def test_an_exported_model_generates_the_text_of_its_snapshot(exported, finished_run):
    arguments = "--start=The ", "--max_new_tokens=30", "--device=cpu", "--seed=5"
    text = succeed("sample", f"--out_dir={finished_run}", "--snapshot=final", *arguments)
    assert succeed("sample", f"--init_from={exported}", *arguments) == text


@pytest.mark.parametrize("arguments, word", [
    (["--init_from=no/such"], "HF_HUB_OFFLINE"), (["--init_from=config"], "config.json")])
def test_a_model_that_does_not_exist_is_one_line(arguments, word, monkeypatch, data_dir):
    monkeypatch.chdir(ROOT)
    code, out, err = call("sample", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1) and word in err
    code, out, err = call("train", *TUNE, f"--data_dir={data_dir}", *arguments,
                          f"--out_dir={data_dir / 'none'}")
    assert (code, err.count("\n")) == (1, 1) and word in err
    assert {path.name for path in (data_dir / "none").glob("*")} <= {".lock"}


def test_a_model_without_a_tokenizer_cannot_generate_text(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(tmp_path, gpt2_tensors(make_model()))
    code, out, err = call("sample", f"--init_from={tmp_path}")
    assert (code, out, err.count("\n")) == (1, "", 1) and "tokenizer" in err


def test_training_starts_from_a_model_and_resumes_from_its_own_snapshots(exported, data_dir,
                                                                         tmp_path, trained):
    arguments = [*TUNE, f"--data_dir={data_dir}", f"--init_from={exported}"]
    succeed("train", *arguments, f"--out_dir={tmp_path / 'whole'}")
    first = torch.load(tmp_path / "whole" / "final_model.pt", weights_only=True)
    assert first["model_config"] == {
        **vars(trained.config), "block_size": 8, "dropout": 0.1}
    near = first["model_state_dict"]["transformer.h.0.attn.c_attn.weight"]
    assert 0 < (near - trained.transformer.h[0].attn.c_attn.weight).abs().max() < 1e-2

    cut = [*arguments, f"--out_dir={tmp_path / 'cut'}"]
    succeed("train", *cut, "--max_iters=4", "--lr_decay_iters=6")
    (tmp_path / "cut" / "final_model.pt").unlink()
    out = succeed("train", *cut)
    assert "resuming from" in out and "step_4" in out
    second = torch.load(tmp_path / "cut" / "final_model.pt", weights_only=True)
    assert all(torch.equal(first["model_state_dict"][name], second["model_state_dict"][name])
               for name in first["model_state_dict"])
    assert "nothing left" in succeed("train", *cut)


def test_eval_only_measures_the_model_itself(exported, data_dir, tmp_path):
    arguments = [f"--data_dir={data_dir}", f"--init_from={exported}", "--eval_only",
                 "--device=cpu", "--block_size=16", f"--out_dir={tmp_path / 'none'}"]
    line = succeed("train", *arguments).splitlines()[-1]
    assert line.startswith(f"val with {exported} (block_size=")
    assert not (tmp_path / "none").exists()


def test_another_run_another_tokenizer_and_a_larger_block_are_refused(
        exported, data_dir, finished_run, tmp_path):
    def refused(*arguments):
        code, _, err = call("train", *TUNE, f"--data_dir={data_dir}", *arguments)
        assert code == 1 and err.count("\n") == 1
        return err
    assert "init_from" in refused(f"--init_from={exported}", f"--out_dir={finished_run}",
                                  "--block_size=16", "--optimizer=muon", "--dropout=0")
    assert "block_size=64" in refused(f"--init_from={exported}", "--block_size=64",
                                      f"--out_dir={tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(tmp_path, gpt2_tensors(make_model()))
    message = refused(f"--init_from={tmp_path}", f"--out_dir={tmp_path / 'out'}")
    assert f"--tokenizer={tmp_path}" in message and str(data_dir) in message


@needs_vocabulary
def test_the_recipe_for_gpt2_works(tmp_path, monkeypatch, text):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "hub" / "models--gpt2" / "snapshots" / "main"
    folder.mkdir(parents=True)
    GPT(GPTConfig(block_size=32, n_layer=1, n_head=2, n_embd=8)).save_pretrained(
        folder, prepare.find_tokenizer("gpt2"))
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink()  # then it's the vocabulary that tiktoken knows
    (tmp_path / "text.txt").write_text(text[:6000], encoding="utf-8")
    succeed("prepare", f"--input={tmp_path / 'text.txt'}", "--tokenizer=gpt2",
            f"--out_dir={tmp_path / 'data'}")
    data = f"--data_dir={tmp_path / 'data'}"
    out = succeed("train", "config/finetune_gpt2.py", data, f"--out_dir={tmp_path / 'out'}",
                  "--block_size=16", "--max_epochs=0", "--max_iters=2", "--batch_size=2",
                  "--device=cpu", "--max_length=3", "--gradient_accumulation_steps=2")
    assert "iteration 2/2" in out
    assert succeed("sample", "--init_from=gpt2", "--start=Hello", "--max_new_tokens=2",
                   "--device=cpu").startswith("Hello")
    assert "val with gpt2" in succeed("train", "--init_from=gpt2", "--eval_only", data,
                                   "--eval_iters=1", "--device=cpu", "--block_size=16",
                                   f"--out_dir={tmp_path / 'out'}")


def test_a_model_without_tokenizer_and_with_spare_ids_trains_and_samples(data_dir, tmp_path):
    GPT(GPTConfig(block_size=16, vocab_size=400, n_layer=1, n_head=2, n_embd=8)).save_pretrained(
        tmp_path / "model")  # the data has 300 tokens
    out = succeed("train", f"--init_from={tmp_path / 'model'}", f"--data_dir={data_dir}",
                  f"--out_dir={tmp_path / 'out'}", "--block_size=16", "--max_iters=1",
                  "--max_length=60", "--device=cpu", "--eval_iters=1")
    assert out.count("  sample    |") == 5


def test_a_fine_tuning_run_with_another_shape_is_told_how_to_start_over(data_dir, tmp_path):
    model = tmp_path / "model"
    GPT(GPTConfig(block_size=16, vocab_size=300, n_layer=1, n_head=2, n_embd=8)).save_pretrained(
        model)
    command = ("train", f"--init_from={model}", f"--data_dir={data_dir}", "--max_iters=1",
               f"--out_dir={tmp_path / 'out'}", "--device=cpu", "--eval_iters=1", "--max_length=2")
    out = succeed(*command, "--block_size=16")
    code, _, err = call(*command, "--block_size=8")
    assert code == 1 and err.count("\n") == 1
    advice = re.search("--init_from=.*--overwrite$", err.strip())[0].split()
    again = succeed(*command, "--block_size=16", *advice)
    assert again.split(" parameters")[0] == out.split(" parameters")[0]  # the same model again


def test_a_text_shorter_than_a_sequence_is_no_reason_to_repeat_the_preparation(data_dir, tmp_path):
    code, _, err = call("train", f"--data_dir={data_dir}", "--block_size=400000",
                        f"--out_dir={tmp_path / 'out'}", "--device=cpu")
    assert code == 1 and "lower block_size=400000" in err and err.count("\n") == 1


def test_a_model_made_for_inference_is_not_saved(tmp_path):
    model = GPT(GPTConfig(block_size=16, vocab_size=400, n_layer=1, n_head=2, n_embd=8))
    with pytest.raises(ValueError, match="for_inference"):
        for_inference(model, "cpu", torch.bfloat16).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_file_of_weights_is_no_name_of_a_model(tmp_path):
    GPT(GPTConfig(block_size=16, vocab_size=400, n_layer=1, n_head=2, n_embd=8)).save_pretrained(
        tmp_path / "model")
    code, _, err = call("sample", f"--init_from={tmp_path / 'model' / 'model.safetensors'}")
    assert code == 1 and "is not a folder: expected a model's" in err and err.count("\n") == 1


# ---- the hub ------------------------------------------------------------------------------------

class Hub(http.server.ThreadingHTTPServer):
    """A hub on loopback that serves files {path: bytes} and misbehaves as requested."""
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.asked, self.faults = {}, [], {}
        self.token = ""

    def put(self, model, folder, revision="main"):
        for path in Path(folder).iterdir():
            self.files[f"/{model}/resolve/{revision}/{path.name}"] = path.read_bytes()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def refuse(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        hub, name = self.server, self.path.rsplit("/", 1)[1]
        hub.asked.append((self.path, self.headers.get("Range")))
        faults = hub.faults.get(name, [])
        fault = faults.pop(0) if faults else None
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.refuse(401)
        if isinstance(fault, int):
            return self.refuse(fault)
        if self.path not in hub.files:
            return self.refuse(404)
        data = hub.files[self.path]
        start = 0
        if self.headers.get("Range") and fault != "no range":
            start = int(self.headers["Range"][6:-1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        digest = hashlib.sha256(data if fault != "hash" else b"another").hexdigest()
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        part = data[start:]
        if fault in ("break", "stall"):
            self.wfile.write(part[:len(part) // 2])
            self.wfile.flush()
            time.sleep(1.5 if fault == "stall" else 0)
            self.close_connection = True
            return
        self.wfile.write(part)


@pytest.fixture
def hub(monkeypatch, exported):
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(prepare, "RETRY_DELAYS", (0.01,) * 4)
    monkeypatch.setattr(prepare, "TIMEOUT", 0.5)
    server.put("owner/name", exported)
    yield server
    server.shutdown()
    server.server_close()


def cached(tmp_path):
    """The files in the cache under their final names."""
    return sorted(path.name for path in (tmp_path / "hub").rglob("*")
                  if path.is_file() and path.suffix != ".part")


@pytest.mark.parametrize("name", ["./models/mine", "runs/models/mine", "/nowhere/mine"])
def test_a_folder_that_does_not_exist_is_not_looked_for_at_the_hub(name, hub):
    with pytest.raises(ValueError, match="is not a folder"):
        GPT.from_pretrained(name)
    assert hub.asked == []


def test_a_model_is_downloaded_once(hub, trained, tmp_path, monkeypatch):
    found = GPT.from_pretrained("owner/name")
    assert same(trained, found) and found.tokenizer == trained.tokenizer
    assert cached(tmp_path) == ["config.json", "model.safetensors", "tokenizer.json"]
    count = len(hub.asked)
    assert same(trained, GPT.from_pretrained("owner/name")) and len(hub.asked) == count
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert same(trained, GPT.from_pretrained("owner/name")) and len(hub.asked) == count


def test_a_revision_shards_and_a_bin_are_found(hub, trained, exported, tmp_path):
    from test_weight_files import write_bin, write_bin_shards, write_shards
    for name, write, revision in (("a/shards", write_shards, "v1.0"),
                                  ("bin", write_bin, "refs/pr/7"),
                                  ("bins", write_bin_shards, "v2.0")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        shutil.copy(exported / "config.json", folder)
        write(folder, gpt2_tensors(trained))
        hub.put(name, folder, revision.replace("/", "%2F"))
        found = GPT.from_pretrained(f"{name}@{revision}")
        assert same(trained, found) and found.tokenizer is None
    with pytest.raises(ValueError, match="status 404"):
        GPT.from_pretrained("bin")  # there is no main


def test_a_download_of_shards_resumes_after_an_error(hub, trained, exported, tmp_path):
    from test_weight_files import write_shards
    folder = tmp_path / "shards"
    folder.mkdir()
    shutil.copy(exported / "config.json", folder)
    write_shards(folder, gpt2_tensors(trained))
    hub.put("shards", folder)
    hub.faults["model-00002-of-00002.safetensors"] = [403]
    with pytest.raises(ValueError, match="HF_TOKEN"):
        GPT.from_pretrained("shards")
    assert same(trained, GPT.from_pretrained("shards"))


def test_the_cache_of_hugging_face_is_used(hub, exported, trained, tmp_path, monkeypatch):
    repository = tmp_path / "hf" / "hub" / "models--some--one"
    shutil.copytree(exported, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("some/one", "some/one@main", "some/one@0123abcd"):
        assert same(trained, GPT.from_pretrained(name))
    assert hub.asked == []
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    shutil.copytree(tmp_path / "hf", tmp_path / ".cache" / "huggingface")
    assert same(trained, GPT.from_pretrained("some/one")) and hub.asked == []
    (tmp_path / ".cache").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert same(trained, GPT.from_pretrained("some/one")) and hub.asked == []


@pytest.mark.parametrize("value", ["1", "on", "YES", "True"])
def test_offline_never_asks(value, hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE"):
        GPT.from_pretrained("owner/name")
    assert hub.asked == [] and cached(tmp_path) == []


def test_a_token_is_sent(hub, trained, monkeypatch, tmp_path):
    hub.token = "secret"
    with pytest.raises(ValueError, match="HF_TOKEN"):
        GPT.from_pretrained("owner/name")
    assert cached(tmp_path) == []
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert same(trained, GPT.from_pretrained("owner/name"))


@pytest.mark.parametrize("faults", [
    ["break"], ["break", "break", "break"], ["stall"], [503, 503], ["break", "no range"],
    ["break", 503, "break"], ["break", "stall"]], ids=str)
def test_a_download_resumes_after_a_lost_connection(faults, hub, trained, tmp_path):
    hub.faults["model.safetensors"] = list(faults)
    assert same(trained, GPT.from_pretrained("owner/name"))
    assert cached(tmp_path) == ["config.json", "model.safetensors", "tokenizer.json"]
    ranges = [asked for path, asked in hub.asked if path.endswith("model.safetensors")]
    assert len(ranges) == 1 + len([fault for fault in faults if fault != "no range"])
    assert ranges[0] == "bytes=0-" and ("break" not in faults or ranges[-1] != "bytes=0-")


@pytest.mark.parametrize("faults, word", [
    ([503] * 9, "503"), ([404, 404], "status 404"), ([401], "HF_TOKEN"), ([403], "HF_TOKEN"),
    (["hash"] * 9, "sha256"), (["break"] * 9, "onnection")], ids=str)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_failed_download_leaves_no_file_under_its_final_name(file, faults, word, hub, trained,
                                                               tmp_path):
    hub.faults[file] = list(faults)
    with pytest.raises(ValueError, match=word) as error:
        GPT.from_pretrained("owner/name")
    assert "\n" not in str(error.value)
    assert file not in cached(tmp_path)
    hub.faults.clear()
    assert same(trained, GPT.from_pretrained("owner/name"))


def test_no_connection_and_a_full_disk_are_one_message(hub, monkeypatch, tmp_path,
                                                                     trained):
    def full(fd):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(ValueError, match="No space left on device"):
            GPT.from_pretrained("owner/name")
    assert cached(tmp_path) == []
    with monkeypatch.context() as broken:
        broken.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        with pytest.raises(ValueError, match="download failed"):
            GPT.from_pretrained("owner/name")
    assert cached(tmp_path) == [] and same(trained, GPT.from_pretrained("owner/name"))


def test_a_shard_cannot_be_outside_its_folder(hub, exported, tmp_path):
    hub.files = {path: data for path, data in hub.files.items() if "safetensors" not in path}
    hub.files["/owner/name/resolve/main/model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"a": "../../../../outside.safetensors"}}).encode()
    hub.files["/owner/name/resolve/main/outside.safetensors"] = b"x" * 100
    with pytest.raises(ValueError):
        GPT.from_pretrained("owner/name")
    inside = tmp_path / "hub" / "models--owner--name" / "snapshots" / "main"
    assert all(path.parent == inside for path in (tmp_path / "hub").rglob("*.safetensors*"))


def test_the_weights_are_read_without_gpt2s_vocabulary_and_the_reason_is_given(
        tmp_path, monkeypatch, capsys):
    def none(name):
        raise OSError("no network")
    GPT(GPTConfig(8, 50257, 1, 2, 4)).save_pretrained(tmp_path / "plain")
    monkeypatch.setattr(prepare.tiktoken, "get_encoding", none)
    assert GPT.from_pretrained(tmp_path / "plain").tokenizer is None
    assert "no network" in capsys.readouterr().err
    code, out, err = call("sample", f"--init_from={tmp_path / 'plain'}", "--device=cpu")
    assert code == 1 and out == "" and "tokenizer" in err and "no network" in err


def test_the_export_says_which_token_ends_a_text_and_how_long_one_may_be(exported, trained):
    def read(name):
        return json.loads((exported / name).read_text(encoding="utf-8"))
    end = prepare.load_tokenizer(trained.tokenizer).end_id
    for name in ("config.json", "generation_config.json"):
        assert read(name)["eos_token_id"] == read(name)["bos_token_id"] == end
    assert read("tokenizer_config.json")["model_max_length"] == trained.config.block_size


def test_transformers_ends_a_text_of_an_exported_model_where_we_do(tmp_path, transformers):
    torch.manual_seed(3)
    model = GPT(GPTConfig(block_size=128, vocab_size=300, n_layer=2, n_head=2, n_embd=32)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        idx = torch.randint(299, (1, 8))
        text = model.generate(idx, 20, temperature=0)[0].tolist()
        end = next(token for token in text[12:] if token not in text[:12] and token != 299)
        weight = model.transformer.wte.weight
        weight[[end, 299]] = weight[[299, end]]  # now the token 299 stands where end stood
    tokens = [chr(byte) for byte in range(256)] + [f"the{i}" for i in range(43)]
    for name, tokenizer in (("model", {"name": "bpe", "tokens": tokens}), ("without", None)):
        model.save_pretrained(tmp_path / name, tokenizer)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        found = theirs.generate(idx, attention_mask=torch.ones_like(idx), do_sample=False)
        before = text[:text.index(end)] + [299]
        if tokenizer:
            assert found[0].tolist() == before
        else:  # 299 may be any token: nothing ends the text but its length
            assert found[0, :len(before)].tolist() == before and found.size(1) == 128


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="without oneDNN")
@pytest.mark.parametrize("new, dtype, is_packed", [
    (7, torch.float32, False), (8, torch.float32, True), (8, torch.bfloat16, True)])
def test_layers_are_packed_only_for_texts_long_enough_to_pay(new, dtype, is_packed, monkeypatch):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU does not pack bfloat16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=2048, n_layer=1, n_head=4, n_embd=384))
    model = for_inference(model, torch.device("cpu"), dtype)
    with OperatorCounter() as operators:
        model.generate(torch.randint(2048, (4, 8)), new, temperature=0)
    packed = ("mkldnn::_linear_pointwise", "mkldnn::_convolution_pointwise")
    assert sum(operators.counts[name] for name in packed) == new * 3 * is_packed


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="without oneDNN")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("n_rows", [1, 2])
def test_only_the_steps_of_one_text_in_16_bits_are_computed_without_onednn(n_rows, dtype):
    model = GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    model = for_inference(model, torch.device("cpu"), dtype)
    found = []

    def note(module, inputs):
        found.append(torch.backends.mkldnn.enabled)
        if len(found) == 4:
            raise KeyboardInterrupt

    model.lm_head.register_forward_pre_hook(note)
    steps = model.stream(torch.zeros(n_rows, 5, dtype=torch.int64), 4)
    for _ in range(3):
        next(steps)
        assert torch.backends.mkldnn.enabled
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert torch.backends.mkldnn.enabled
    assert found == [True] + 3 * [n_rows == 2 or dtype == torch.float32]


def test_onednn_stays_off_if_it_was_switched_off(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    model = GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    for_inference(model, torch.device("cpu"), torch.bfloat16).generate(torch.tensor([[1, 2]]), 4)
    assert not torch.backends.mkldnn.enabled


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_logits_of_a_prompt_do_not_copy_the_output_matrix(dtype):
    """The stride of the last position's dimension of size 1 made F.linear multiply batches."""
    model = GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    model = for_inference(model, torch.device("cpu"), dtype)
    with OperatorCounter() as operators, torch.no_grad():
        model(torch.zeros(1, 5, dtype=torch.int64))
    assert operators.counts["aten::bmm"] == 0 and operators.counts["aten::mm"] == 1


@needs_vocabulary
def test_a_model_of_the_hub_with_vocab_json_and_merges_txt_gets_its_own_tokenizer(
        hub, exported, trained, tmp_path):
    """Models of 2019 and 2020 often have no tokenizer.json; GPT-2's tokenizer is not theirs."""
    source = tmp_path / "source"
    GPT(GPTConfig(8, 50257, 1, 2, 4)).save_pretrained(source, trained.tokenizer)
    (source / "tokenizer.json").unlink()
    hub.put("some/one", source)
    assert GPT.from_pretrained(source).tokenizer == trained.tokenizer  # as a folder
    assert GPT.from_pretrained("some/one").tokenizer == trained.tokenizer


@needs_vocabulary
def test_a_model_whose_weights_alone_are_in_the_cache_gets_its_own_tokenizer(
        hub, exported, trained, tmp_path):
    source = tmp_path / "source"
    GPT(GPTConfig(8, 50257, 1, 2, 4)).save_pretrained(source, trained.tokenizer)
    hub.put("some/one", source)
    cache = tmp_path / "hub" / "models--some--one"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0123abcd")
    (cache / "snapshots" / "0123abcd").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):  # as AutoModel.from_pretrained leaves it
        (cache / "snapshots" / "0123abcd" / name).write_bytes((source / name).read_bytes())
    hub.put("some/one", source, "0123abcd")
    assert GPT.from_pretrained("some/one").tokenizer == trained.tokenizer


def test_the_export_names_its_architecture_its_special_tokens_and_its_dropout(tmp_path, trained):
    make_model(vocab_size=300, dropout=0.25).save_pretrained(tmp_path / "m", trained.tokenizer)
    about, tokens = (json.loads((tmp_path / "m" / name).read_text(encoding="utf-8"))
                     for name in ("config.json", "tokenizer_config.json"))
    assert about["architectures"] == ["GPT2LMHeadModel"]
    assert (about["resid_pdrop"], about["embd_pdrop"], about["attn_pdrop"]) == (0.25, 0.25, 0)
    assert tokens["bos_token"] == tokens["eos_token"] == tokens["unk_token"] == "<|endoftext|>"
