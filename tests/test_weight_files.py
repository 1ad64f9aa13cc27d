"""The files that GPT-2's weights come in: each format is read exactly, and whatever is broken in
one is refused with ValueError."""

import contextlib
import json
import os
import pickle
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

import prepare
from model import GPT, GPTConfig

SHAPE = dict(block_size=8, vocab_size=20, n_layer=2, n_head=2, n_embd=8)
MUTATIONS = int(os.environ.get("MUTATIONS", 500))  # of each format; 2000 is the real trial
CONFIG = dict(model_type="gpt2", activation_function="gelu_new", n_positions=8, vocab_size=20,
              n_layer=2, n_head=2, n_embd=8)


def make_model(**changes):
    torch.manual_seed(1)
    model = GPT(GPTConfig(**SHAPE | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def gpt2_tensors(model, prefix="transformer."):
    """The model's tensors as GPT-2's files have them: matrices of the blocks as (in, out)."""
    return {prefix + name.removeprefix("transformer."):
            (p.detach().t() if ".h." in name else p.detach()).contiguous()
            for name, p in model.named_parameters()}


def safetensors(tensors, **changes):
    """The bytes of a safetensors file."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
             torch.uint8: "U8", torch.bool: "BOOL", torch.float64: "F64"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        raw = tensor.flatten().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]} | changes.get(name, {})
        data += raw
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def write_safetensors(folder, tensors, **changes):
    (folder / "model.safetensors").write_bytes(safetensors(tensors, **changes))


def write_shards(folder, tensors):
    names = list(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2],
             "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        (folder / file).write_bytes(safetensors({name: tensors[name] for name in part}))
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items()
                                            for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_bin(folder, tensors, zipped=True):
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped,
               pickle_protocol=2)


def write_bin_shards(folder, tensors):
    files = {"pytorch_model-00001-of-00002.bin": list(tensors)[::2],
             "pytorch_model-00002-of-00002.bin": list(tensors)[1::2]}
    for file, names in files.items():
        torch.save({name: tensors[name] for name in names}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(
        {"weight_map": {name: file for file, names in files.items() for name in names}}))


def crc32c(data):  # bit by bit, masked as TensorFlow stores it
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def test_the_checksum_here_is_the_published_one():
    crc = int.from_bytes(crc32c(b"123456789"), "little") - 0xA282EAD8 & 0xFFFFFFFF
    assert (crc << 15 | crc >> 17) & 0xFFFFFFFF == 0xE3069283  # RFC 3720's polynomial


def varint(number):
    return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + varint(number >> 7)


def block(entries, restart_interval=16):
    """A block of an SSTable with the 5 bytes behind it: entries whose keys share prefixes."""
    data, last, restarts = b"", b"", []
    for i, (key, value) in enumerate(entries):
        shared = len(os.path.commonprefix([last, key])) if i % restart_interval else 0
        if not shared:
            restarts.append(len(data))
        data += varint(shared) + varint(len(key) - shared) + varint(len(value))
        data += key[shared:] + value
        last = key
    restarts = restarts or [0]
    data += b"".join(struct.pack("<I", place) for place in [*restarts, len(restarts)]) + b"\0"
    return data + crc32c(data)


def tensorflow_name(name):
    name = name.removeprefix("transformer.").replace("h.", "h", 1) if ".h." in name else (
        name.removeprefix("transformer."))
    kind = {"bias": "b", "weight": "g" if ".ln_" in name or "ln_f" in name else "w"}
    if name in ("wte.weight", "wpe.weight"):
        return "model/" + name[:3]
    stem, _, last = name.rpartition(".")
    return "model/" + stem.replace(".", "/") + "/" + kind[last]


def write_tensorflow(folder, tensors, blocks=1, shards=1, name="model.ckpt", extra=(), **changes):
    """The files of OpenAI's format; the entries of the index are spread over so many blocks, the
    tensors over so many shards. extra: other variables {name: array}."""
    data, entries = [b""] * shards, {b"": b"\x08" + varint(shards) + b"\x1a\x02\x08\x01"}
    variables = dict(extra)
    for key, tensor in tensors.items():
        is_matrix = ".h." in key and tensor.dim() == 2
        variables[tensorflow_name(key)] = tensor.numpy()[None] if is_matrix else tensor.numpy()
    for i, (variable, array) in enumerate(sorted(variables.items())):
        raw, shard = array.tobytes(), i % shards
        sizes = b"".join(b"\x12" + varint(len(size)) + size
                         for size in (b"\x08" + varint(n) for n in array.shape))
        entry = b"\x08" + varint({"float32": 1, "int32": 3, "int64": 9}[array.dtype.name])
        entry += b"\x12" + varint(len(sizes)) + sizes
        entry += b"\x18" + varint(shard) if shard else b""  # a zero is left out
        entry += b"\x20" + varint(len(data[shard])) if data[shard] else b""
        if variable not in changes:
            entry += b"\x28" + varint(len(raw)) + b"\x35" + crc32c(raw)
        entries[variable.encode()] = entry + changes.get(variable, b"")
        data[shard] += raw
    items, index, handles = sorted(entries.items()), b"", []
    size = -(-len(items) // blocks)
    for i in range(0, len(items), size):
        part = block(items[i:i + size])
        handles.append((items[min(i + size, len(items)) - 1][0],
                        varint(len(index)) + varint(len(part) - 5)))
        index += part
    footer = b""
    for part in (block([]), block(handles, 1)):
        footer += varint(len(index)) + varint(len(part) - 5)
        index += part
    index += footer.ljust(40, b"\0") + struct.pack("<Q", 0xdb4775248b80fb57)
    (folder / f"{name}.index").write_bytes(index)
    for i, part in enumerate(data):
        (folder / f"{name}.data-{i:05d}-of-{shards:05d}").write_bytes(part)
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n'
                                       f'all_model_checkpoint_paths: "{name}"\n')
    (folder / "config.json").unlink(missing_ok=True)
    (folder / "hparams.json").write_text(json.dumps(dict(n_vocab=20, n_ctx=8, n_embd=8, n_head=2,
                                                         n_layer=2)))


WRITERS = {"safetensors": write_safetensors, "shards": write_shards, "bin": write_bin,
           "old bin": lambda folder, tensors: write_bin(folder, tensors, zipped=False),
           "bin shards": write_bin_shards, "tensorflow": write_tensorflow}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def same(model, other):
    here, there = model.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name])
                                               for name in here)


def refusal(folder):
    with pytest.raises(ValueError) as error:
        GPT.from_pretrained(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


@contextlib.contextmanager
def peak_below(kilobytes):
    """What runs inside may use at most this much more memory; checked where Linux reports it."""
    def peak():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    known = Path("/proc/self/clear_refs").exists()
    if known:  # without this the peak of an earlier test would hide everything below it
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
    yield
    assert not known or peak() - before < kilobytes


# ---- what can be read ---------------------------------------------------------------------------

@pytest.mark.parametrize("form", WRITERS)
def test_each_format_is_read_exactly(form, folder):
    model = make_model()
    WRITERS[form](folder, gpt2_tensors(model))
    found = GPT.from_pretrained(folder)
    assert same(model, found) and found.lm_head.weight is found.transformer.wte.weight
    assert found.config == model.config and found.num_params() == model.num_params()
    idx = torch.randint(20, (2, 8))
    assert torch.equal(model(idx, idx)[0], found(idx, idx)[0])


@pytest.mark.parametrize("form", WRITERS)
def test_a_model_is_read_without_a_warning(form, folder, recwarn):
    WRITERS[form](folder, gpt2_tensors(make_model()))
    recwarn.clear()
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else some come once in a process
    GPT.from_pretrained(folder)
    torch.set_warn_always(before)
    assert not [str(warning.message) for warning in recwarn]


def test_a_tensorflow_index_may_have_several_blocks(folder):
    model = make_model()
    for blocks in (2, 5, 28):
        write_tensorflow(folder, gpt2_tensors(model), blocks=blocks)
        assert same(model, GPT.from_pretrained(folder))


def adam(tensors):
    """What Adam adds to a checkpoint: two slots for each variable, and counters."""
    extra = {"global_step": np.array(1000), "beta1_power": np.array(0.9, np.float32),
             "beta2_power": np.array(0.999, np.float32)}
    for key, tensor in tensors.items():
        shape = (1, *tensor.shape) if ".h." in key and tensor.dim() == 2 else tensor.shape
        for slot in ("Adam", "Adam_1"):
            extra[f"{tensorflow_name(key)}/{slot}"] = np.full(shape, 7, np.float32)
    return extra


def test_a_tensorflow_checkpoint_may_hold_an_optimizer(folder):
    model = make_model()
    tensors = gpt2_tensors(model)
    write_tensorflow(folder, tensors, extra=adam(tensors), blocks=3)
    assert same(model, GPT.from_pretrained(folder))


@pytest.mark.parametrize("shards", [2, 3, 30])
def test_a_tensorflow_checkpoint_may_have_several_shards(shards, folder):
    model = make_model()
    tensors = gpt2_tensors(model)
    write_tensorflow(folder, tensors, shards=shards, extra=adam(tensors))
    assert same(model, GPT.from_pretrained(folder))
    names = sorted([*map(tensorflow_name, tensors), *adam(tensors)])
    needed = f"model.ckpt.data-{names.index('model/wte') % shards:05d}-of-{shards:05d}"
    (folder / needed).unlink()
    assert needed in refusal(folder)


@pytest.mark.parametrize("path", ["model-1000", "/content/checkpoint/run1/model-1000"])
def test_the_checkpoint_file_names_the_newest_checkpoint(path, folder):
    model, older = make_model(), make_model()
    with torch.no_grad():
        older.transformer.wte.weight += 1
    for name, each in (("model-500", older), ("model-1500", older), ("model-1000", model)):
        write_tensorflow(folder, gpt2_tensors(each), name=name)
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\n'
                                       f'all_model_checkpoint_paths: "{path}"\n')
    assert same(model, GPT.from_pretrained(folder))


def test_partitioned_variables_and_the_v1_format_are_refused_by_name(folder):
    tensors = gpt2_tensors(make_model())
    # A TensorSliceProto in field 7, in place of size and checksum: stored in parts.
    write_tensorflow(folder, tensors, **{"model/wte": b"\x3a\x04\x0a\x02\x08\x05"})
    assert "model/wte is damaged, partitioned or not float32" in refusal(folder)
    (folder / "model.ckpt.index").unlink()
    (folder / "model.ckpt").write_bytes(b"a table of tensors")
    assert "model.ckpt.index" in refusal(folder)


def test_integers_in_a_tensorflow_checkpoint_are_not_taken_for_floats_of_the_same_size(folder):
    tensors = gpt2_tensors(make_model())
    name = "transformer.h.1.ln_2.bias"
    write_tensorflow(folder, tensors | {name: tensors[name].to(torch.int32)})
    assert "model/h1/ln_2/b is damaged, partitioned or not float32" in refusal(folder)


def test_a_shard_without_tensors_makes_no_difference(folder):
    model = make_model()
    write_shards(folder, gpt2_tensors(model))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["nothing"] = "empty.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "empty.safetensors").write_bytes(safetensors({}))
    assert same(model, GPT.from_pretrained(folder))


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin", "old bin"])
def test_float64_becomes_float32(form, folder):
    model = make_model()
    WRITERS[form](folder, {name: p.double() for name, p in gpt2_tensors(model).items()})
    found = GPT.from_pretrained(folder)
    assert same(model, found) and found.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_the_language_model_in_a_double_heads_model_is_read(form, folder):
    model = make_model()
    head = {"multiple_choice_head.summary.weight": torch.ones(1, 8),
            "multiple_choice_head.summary.bias": torch.ones(1)}
    WRITERS[form](folder, gpt2_tensors(model) | head)
    (folder / "config.json").write_text(json.dumps(
        CONFIG | {"architectures": ["GPT2DoubleHeadsModel"], "summary_type": "cls_index"}))
    assert same(model, GPT.from_pretrained(folder))


@pytest.mark.parametrize("about", [{"activation_function": "gelu_pytorch_tanh"}, {"n_inner": 32},
                                   {"n_inner": None}, {"n_ctx": 8}], ids=str)
def test_other_ways_to_write_gpt2s_own_config_open(about, folder):
    model = make_model()
    write_safetensors(folder, gpt2_tensors(model))
    (folder / "config.json").write_text(json.dumps(CONFIG | about))
    assert same(model, GPT.from_pretrained(folder))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("nested", [False, True])
def test_a_state_dict_of_ddp_or_compile_opens(prefix, nested, folder):
    model = make_model()
    tensors = gpt2_tensors(model, f"{prefix}transformer.")
    torch.save({"model": tensors, "step": 3} if nested else tensors, folder / "pytorch_model.bin")
    assert same(model, GPT.from_pretrained(folder))


def nanogpt(model, prefix, **changes):
    """What nanoGPT's train.py saves: its tensors are nn.Linear's, its two names of wte are one."""
    state = {f"{prefix}{name}": p.detach() for name, p in model.named_parameters()}
    state[f"{prefix}lm_head.weight"] = model.lm_head.weight.detach()
    return {"model": state, "optimizer": {"state": {}, "param_groups": []}, "iter_num": 2000,
            "model_args": SHAPE | {"bias": model.config.bias, "dropout": 0.0} | changes,
            "best_val_loss": torch.tensor(1.5), "config": {"dataset": "openwebtext"}}


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_of_nanogpt_opens_with_a_note_of_what_differs(prefix, bias, tmp_path, capsys):
    model = make_model(bias=bias)
    saved = nanogpt(model, prefix)
    if bias:  # and an old PyTorch, for which nanoGPT keeps the causal mask
        saved["model"][f"{prefix}transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
    torch.save(saved, tmp_path / "ckpt.pt")
    found = GPT.from_pretrained(tmp_path / "ckpt.pt")
    assert same(model, found) and found.config == model.config and found.tokenizer is None
    note, = capsys.readouterr().err.splitlines()
    assert "nanoGPT" in note and "GELU" in note


def test_a_checkpoint_of_nanogpt_with_gpt2s_vocabulary_has_gpt2s_tokenizer(tmp_path, monkeypatch):
    tokens = {"name": "gpt2", "tokens": [chr(byte) for byte in range(256)]}  # in its place
    monkeypatch.setattr(prepare, "find_tokenizer", {"gpt2": tokens}.get)
    model = make_model(vocab_size=50304)
    torch.save(nanogpt(model, "", vocab_size=50304), tmp_path / "ckpt.pt")
    assert GPT.from_pretrained(tmp_path / "ckpt.pt").tokenizer == tokens


def test_a_checkpoint_of_nanogpt_with_an_output_matrix_of_its_own_is_refused(tmp_path):
    saved = nanogpt(make_model(), "")
    saved["model"]["lm_head.weight"] = saved["model"]["lm_head.weight"] + 1
    torch.save(saved, tmp_path / "ckpt.pt")
    assert "lm_head.weight differs from wte.weight" in refusal(tmp_path / "ckpt.pt")


def test_a_damaged_checkpoint_of_nanogpt_is_refused_by_name(tmp_path, capsys):
    path = tmp_path / "ckpt.pt"
    torch.save(nanogpt(make_model(), "", n_layer=3), path)
    assert "transformer.h.2" in refusal(path)
    path.write_bytes(path.read_bytes()[:-100])
    refusal(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["safetensors", "shards", "bin"])
def test_half_precision_becomes_float32_exactly(dtype, form, folder):
    model = make_model()
    WRITERS[form](folder, {name: p.to(dtype) for name, p in gpt2_tensors(model).items()})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    assert same(model, GPT.from_pretrained(folder))


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin", "old bin"])
def test_the_oldest_names_masks_and_a_second_copy_of_wte_make_no_difference(form, folder):
    model = make_model()
    for prefix in ("", "transformer."):
        tensors = gpt2_tensors(model, prefix)
        for i in range(2):
            tensors[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
            tensors[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        WRITERS[form](folder, tensors)
        assert same(model, GPT.from_pretrained(folder))
        tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"].clone()
        tensors[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, 8, 8).tril().to(torch.uint8)
        tensors[f"{prefix}h.1.attn.bias"] = torch.ones(1, 1, 8, 8).tril().bool()
        WRITERS[form](folder, tensors)
        assert same(model, GPT.from_pretrained(folder))


def test_a_smaller_block_is_a_crop_and_dropout_can_be_set(folder):
    write_safetensors(folder, gpt2_tensors(make_model()))
    model = GPT.from_pretrained(folder, dropout=0.25)
    block = model.transformer.h[1]
    assert model.config.dropout == model.transformer.drop.p == 0.25
    assert block.attn.dropout.p == block.mlp.dropout.p == 0.25
    whole = make_model().transformer.wpe.weight
    model.crop_block_size(3)
    assert torch.equal(model.transformer.wpe.weight, whole[:3]) and model.config.block_size == 3


MEASURE = """
import sys
import torch
from pathlib import Path
from model import GPT, GPTConfig
with torch.device("meta"):  # imports what it needs
    size = GPT(GPTConfig()).num_params() * 4
folder = sys.argv[1]
Path("/proc/self/clear_refs").write_text("5")
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024
before = status("VmRSS")
model = GPT.from_pretrained(folder)
print((status("VmHWM") - before) / (4 * model.num_params()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured as Linux does it")
@pytest.mark.parametrize("dtype, head", [  # head: a second copy of wte is in the file
    (torch.float32, True), (torch.bfloat16, False)], ids=str)
def test_loading_takes_little_more_memory_than_the_model(dtype, head, tmp_path):
    shape = dict(block_size=64, vocab_size=20_000, n_layer=6, n_head=8, n_embd=512)
    model = GPT(GPTConfig(**shape))
    (tmp_path / "config.json").write_text(json.dumps(
        CONFIG | shape | dict(n_positions=64)))
    tensors = {name: p.to(dtype) for name, p in sorted(gpt2_tensors(model).items())}  # wte last
    if head:
        tensors["lm_head.weight"] = tensors["wte.weight" if "wte.weight" in tensors
                                            else "transformer.wte.weight"]
    write_safetensors(tmp_path, tensors)
    run = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], cwd=ROOT, capture_output=True,
                         text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    assert 0.9 < float(run.stdout) < 1.15, run.stdout


# ---- what is not a GPT-2 ------------------------------------------------------------------------

@pytest.mark.parametrize("key, value", [
    ("model_type", "gpt_neo"), ("activation_function", "gelu"), ("layer_norm_epsilon", 1e-6),
    ("scale_attn_by_inverse_layer_idx", True), ("scale_attn_weights", False),
    ("add_cross_attention", True), ("tie_word_embeddings", False), ("n_inner", 64),
    ("model_type", None), ("scale_attn_weights", None), ("tie_word_embeddings", None),
    ("quantization_config", {"bits": 4})])
def test_a_model_that_computes_something_else_is_refused(key, value, folder):
    write_safetensors(folder, gpt2_tensors(make_model()))
    (folder / "config.json").write_text(json.dumps(CONFIG | {key: value}))
    message = refusal(folder)
    assert key in message and repr(value) in message


def test_a_model_whose_config_has_other_keys_is_refused_by_its_type(folder):
    write_safetensors(folder, gpt2_tensors(make_model()))
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    assert "model_type is 'llama'" in refusal(folder)


@pytest.mark.parametrize("form", WRITERS)
def test_missing_extra_and_misshapen_tensors_are_refused_by_name(form, folder):
    whole = gpt2_tensors(make_model())
    name = "transformer.h.1.mlp.c_fc.weight"
    WRITERS[form](folder, {key: tensor for key, tensor in whole.items() if key != name})
    assert name in refusal(folder)
    WRITERS[form](folder, whole | {"transformer.h.2.mlp.c_fc.weight": whole[name]})
    assert "transformer.h.2.mlp.c_fc.weight" in refusal(folder)
    WRITERS[form](folder, whole | {name: whole[name].t().contiguous()})
    assert name in refusal(folder) and "[8, 32]" in refusal(folder)
    WRITERS[form](folder, {key: p for key, p in whole.items() if "wte" not in key})
    assert "no 'transformer.wte.weight'" in refusal(folder)


def test_a_quantized_file_and_an_adapter_are_refused_by_name(folder):
    whole = gpt2_tensors(make_model())
    name = "transformer.h.0.ln_1.weight"
    write_safetensors(folder, whole, **{name: {"dtype": "I8"}})
    message = refusal(folder)
    assert name in message and "I8" in message and "quantized" in message
    write_safetensors(folder, whole)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "adapter" in (message := refusal(folder)) and "merge" in message


def test_an_output_matrix_of_its_own_and_integers_are_refused(folder):
    whole = gpt2_tensors(make_model())
    write_safetensors(folder, whole | {"lm_head.weight": whole["transformer.wte.weight"] + 1})
    assert "lm_head.weight" in refusal(folder)
    name = "transformer.h.0.ln_1.weight"
    write_safetensors(folder, whole | {name: whole[name].to(torch.uint8)})
    assert name in refusal(folder)


@pytest.mark.parametrize("about", [
    {"n_layer": 10**9}, {"n_layer": 3}, {"n_layer": 1}, {"n_embd": 10**12}, {"vocab_size": -1},
    {"n_positions": None}, {"n_head": 3}, {"n_head": "2"}, {"n_layer": 2.5}], ids=str)
def test_a_shape_that_does_not_fit_is_refused_at_once(about, folder):
    write_safetensors(folder, gpt2_tensors(make_model()))
    (folder / "config.json").write_text(json.dumps(CONFIG | about))
    refusal(folder)


def test_a_folder_without_weights_or_config_says_what_is_missing(tmp_path):
    assert "config.json" in (message := refusal(tmp_path)) and "snapshot" in message
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert "model.safetensors" in refusal(tmp_path)


def test_a_tensor_that_repeats_one_number_takes_no_memory(folder):
    write_bin(folder, gpt2_tensors(make_model()) | {
        "transformer.wte.weight": torch.zeros(1).expand(20_000, 20_000)})  # 16 KB for 1.6 GB
    with peak_below(50_000):
        assert "can't hold" in refusal(folder)


class Evil:
    def __reduce__(self):
        return os.system, ("touch was_executed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_executed(zipped, folder, monkeypatch):
    monkeypatch.chdir(folder)
    write_bin(folder, gpt2_tensors(make_model()) | {"evil": Evil()}, zipped)
    assert "system" in refusal(folder)  # the reason, in one line, without PyTorch's advice
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    refusal(folder)
    assert not Path("was_executed").exists()


# ---- what is broken -----------------------------------------------------------------------------

def mutated(data, dice):
    """Bytes with one or a few of them changed, cut out, doubled or cut off."""
    data = bytearray(data)
    kind = dice.randrange(6)
    place = dice.randrange(len(data))
    if kind < 3:
        for _ in range(dice.choice([1, 1, 1, 2, 8])):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif kind == 3:
        del data[place:]
    elif kind == 4:
        length = dice.choice([1, 2, 8, 100])
        data[place:place + length] = dice.randbytes(length)
    else:
        end = place + dice.choice([1, 4, 40])
        data[place:end] = dice.choice([b"", bytes(data[place:end]) * 2, b"\xff" * 8])
    return bytes(data)


def mutated_header(data, dice):
    """A safetensors file with another header: other numbers, names, types, depth or length."""
    size, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    entry = header[dice.choice([name for name in header if name != "__metadata__"])]
    numbers = [-1, 0, 1, 2, 8, 2**31, 2**63, 2**64, -2**63, 1e300, 8.0, None, "8", [8], True]
    kind = dice.randrange(8)
    if kind < 2:
        entry["shape"][dice.randrange(len(entry["shape"]))] = dice.choice(numbers)
    elif kind < 4:
        entry["data_offsets"][dice.randrange(2)] = dice.choice(numbers)
    elif kind == 4:
        entry[dice.choice(["shape", "data_offsets", "dtype"])] = dice.choice(
            [None, [], {}, "F16", "I64", "F99", [1], [[1]], 8, [-8, -8], [0, 0, 0]])
    elif kind == 5:
        other = header[dice.choice([name for name in header if name != "__metadata__"])]
        entry.update(dice.choice([other, {"data_offsets": other["data_offsets"]}]))
    elif kind == 6:
        header = dice.choice([[], 1, None, "x", {"a": header}, {}, {"__metadata__": header}])
    text = json.dumps(header).encode()
    if kind == 7:
        depth = dice.choice([10, 10**3, 10**5])
        text = dice.choice([b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth,
                            text.replace(b"8", b"9" * depth, 1)])
    length = dice.choice([len(text)] * 6 + [0, 2**40, 2**63, 2**64 - 1, len(text) + 1])
    return struct.pack("<Q", length) + text + data[8 + size:]


def trials(folder, file, change, count, seed):
    """Load so many mutations of a file; -> how many were refused, how many loaded equal."""
    model, path, dice = make_model(), folder / file, random.Random(seed)
    whole, refused, equal = path.read_bytes(), 0, 0
    for _ in range(count):
        path.write_bytes(change(whole, dice))
        try:
            found = GPT.from_pretrained(folder)
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert same(model, found)
            equal += 1
    path.write_bytes(whole)
    assert same(model, GPT.from_pretrained(folder))
    return refused, equal


def head_only(data, dice):  # the tensors' bytes have no checksum in this form
    end = 8 + struct.unpack("<Q", data[:8])[0]
    changed = mutated(data[:end], dice)
    return changed + data[end:] if dice.random() < 0.9 else data[:dice.randrange(len(data))]


@pytest.mark.parametrize("form, file, change, share", [
    ("safetensors", "model.safetensors", head_only, 0.5),
    ("safetensors", "model.safetensors", mutated_header, 0.5),
    ("shards", "model.safetensors.index.json", mutated, 0.5),
    ("shards", "model-00002-of-00002.safetensors", head_only, 0.5),
    ("bin", "pytorch_model.bin", mutated, 1),
    ("tensorflow", "model.ckpt.index", mutated, 0.5),
    ("tensorflow", "model.ckpt.data-00000-of-00001", mutated, 0.5),
], ids=["safetensors", "header", "index", "shard", "bin", "tensorflow", "tensorflow data"])
def test_a_mutated_file_loads_equal_or_is_refused(form, file, change, share, folder):
    count = round(share * MUTATIONS)
    WRITERS[form](folder, gpt2_tensors(make_model()))
    with peak_below(50_000):
        refused, equal = trials(folder, file, change, count, seed=count + len(file))
    assert refused + equal == count and refused > count / 3


def test_a_mutated_old_bin_raises_nothing_but_valueerror(folder):
    write_bin(folder, gpt2_tensors(make_model()), zipped=False)
    path, dice = folder / "pytorch_model.bin", random.Random(5)
    whole = path.read_bytes()
    with peak_below(50_000):
        for _ in range(MUTATIONS):  # no checksums: changed numbers are not noticed
            path.write_bytes(mutated(whole, dice))
            try:
                GPT.from_pretrained(folder)
            except ValueError as error:
                assert str(error)


# ---- the way out --------------------------------------------------------------------------------

def test_what_is_saved_is_read_back_exactly(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "new" / "folder")
    assert same(model, GPT.from_pretrained(tmp_path / "new" / "folder"))
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [
        "config.json", "generation_config.json", "model.safetensors"]
    assert os.listdir(tmp_path / "new") == ["folder"]


def test_a_model_without_biases_is_saved_as_one_whose_biases_are_zero(tmp_path):
    model = make_model(bias=False)
    model.save_pretrained(tmp_path / "model")
    found = GPT.from_pretrained(tmp_path / "model")
    idx = torch.randint(20, (2, 8))
    assert torch.allclose(model(idx, idx)[0], found(idx, idx)[0], atol=1e-6)
    assert found.transformer.h[0].ln_1.bias.abs().sum() == 0


def test_a_folder_that_is_not_empty_is_left_unchanged(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        make_model().save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make_model().save_pretrained(tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_tensors_are_aligned_in_the_file(tmp_path):  # since they are memory-mapped
    make_model().save_pretrained(tmp_path / "model")
    data = (tmp_path / "model" / "model.safetensors").read_bytes()
    size, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    assert (8 + size) % 8 == 0 and header["__metadata__"] == {"format": "pt"}
    assert "lm_head.weight" not in header and len(header) == 1 + 28
    place = np.frombuffer(data, np.float32, offset=8 + size)
    assert place.size == make_model().num_params()


def test_a_model_that_is_opened_has_its_dropout_off(folder):
    model = make_model(dropout=0.5)
    write_safetensors(folder, gpt2_tensors(model))
    torch.save(dict(format_version=2, model_config=vars(model.config), tokenizer=None,
                    model_state_dict=model.state_dict()), folder / "snapshot.pt")
    idx = torch.randint(20, (2, 8))
    for found in (GPT.from_pretrained(folder, dropout=0.5), GPT.from_snapshot(
            folder / "snapshot.pt"), GPT.from_pretrained(folder / "snapshot.pt", dropout=0.5)):
        assert found.config.dropout == 0.5
        assert torch.equal(found(idx)[0], model.eval()(idx)[0])


def test_where_there_are_several_files_of_weights_safetensors_counts(folder):
    model, other = make_model(), make_model()
    with torch.no_grad():
        other.transformer.wte.weight.add_(1)
    write_bin(folder, gpt2_tensors(other))
    assert same(other, GPT.from_pretrained(folder))
    write_safetensors(folder, gpt2_tensors(model))
    assert same(model, GPT.from_pretrained(folder))


def test_the_reason_of_a_refusal_is_at_most_300_characters(folder):
    whole = gpt2_tensors(make_model())
    write_safetensors(folder, {name: whole[name] for name in whole if "wte" in name})  # 27 missing
    assert len(refusal(folder)) <= len(f"{folder}: ") + 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_model_keeps_its_weights_when_the_file_changes(dtype, folder):
    model = make_model().to(dtype).float()
    write_safetensors(folder, {name: p.to(dtype) for name, p in gpt2_tensors(model).items()})
    found = GPT.from_pretrained(folder)
    with open(folder / "model.safetensors", "r+b") as file:  # in place, as no tool should
        file.write(b"\1" * (folder / "model.safetensors").stat().st_size)
    assert same(model, found)
