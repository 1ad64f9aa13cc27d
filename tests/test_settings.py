"""Settings: config files from left to right, --key=value over them, and errors of one line."""

import ast
import io
import math
import re
import subprocess
import sys

import numpy
import pytest
import torch
from conftest import ROOT, call

import config
import prepare

SCRIPT = '''"""A script."""
import os

steps = 10  # how many
rate = 0.5  # how fast
name = "x"  # what it is called
quiet = False  # say nothing
compile = "auto"  # auto, or a bool
size = 4
CONSTANT = 3  # not a setting


def main():
    inner = 1  # not a setting either
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def override(script, *arguments):
    return config.override(script, [str(argument) for argument in arguments])


def usage_error(capsys, script, *arguments):
    with pytest.raises(SystemExit) as stop:
        override(script, *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


def test_the_defaults_are_the_assignments_above_the_first_function(script):
    assert override(script) == {"steps": 10, "rate": 0.5, "name": "x", "quiet": False,
                                "compile": "auto", "size": 4}


@pytest.mark.parametrize("argument, name, value", [
    ("--steps=3", "steps", 3),
    ("--steps=1e3", "steps", 1000),
    ("--size=5", "size", 5),
    ("--rate=2", "rate", 2.0),
    ("--rate=1e-4", "rate", 1e-4),
    ("--rate=1e15", "rate", 1e15),
    ("--name=hello there", "name", "hello there"),
    ("--name='quoted'", "name", "quoted"),
    ("--name=1984", "name", "1984"),
    ("--name=True", "name", "True"),
    ("--name={{}}", "name", "{{}}"),
    ("--name=", "name", ""),
    ("--name=a=b", "name", "a=b"),
    pytest.param("--name=" + 3000 * "-" + "1", "name", 3000 * "-" + "1", id="a line"),
    pytest.param("--name=" + 100_000 * "-", "name", 100_000 * "-", id="a long line"),
    ("--quiet", "quiet", True),
    ("--quiet=False", "quiet", False),
    ("--compile", "compile", True),
    ("--compile=False", "compile", False),
    ("--compile=auto", "compile", "auto"),
])
def test_a_value_is_read_as_a_literal_of_the_settings_type(script, argument, name, value):
    found = override(script, argument)[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("argument", ["--steps=1.5", "--steps=many", "--steps=True", "--steps",
                                      "--rate=fast", "--rate=nan", "--quiet=1", "--quiet=no",
                                      "--name", "--steps=[1]", "--steps=None"])
def test_a_wrong_type_is_refused_with_what_was_found_and_expected(script, capsys, argument):
    error = usage_error(capsys, script, argument)
    name = argument[2:].split("=")[0]
    assert any(f"{name}=" in error and f"expected {kind}, as in --{name}=" in error
               for kind in ("int", "float", "bool", "str"))


@pytest.mark.parametrize("argument", ["--rate=-0.5", "--steps=-2", "--rate=1e999", "--steps=1e300",
                                      "--steps=9223372036854775808", "--rate=1" + "0" * 400])
def test_a_number_below_0_or_too_large_is_refused(script, capsys, argument):
    error = usage_error(capsys, script, argument)
    assert f"{argument[2:].split('=')[0]}=" in error and "expected" in error


@pytest.mark.parametrize("least, names", [(1, ("steps",)), (0, ())])
def test_the_error_names_the_least_number_that_is_allowed(script, capsys, least, names):
    with pytest.raises(SystemExit) as stop:
        config.override(script, [f"--steps={least - 1}"], **dict.fromkeys(names, 1))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"steps={least - 1}" in error
    assert f"expected a number of at least {least}" in error
    settings = config.override(script, [f"--steps={least}"], **dict.fromkeys(names, 1))
    assert settings["steps"] == least


def test_an_unknown_setting_is_refused_with_the_nearest_name(script, capsys):
    error = usage_error(capsys, script, "--stepz=3")
    assert "'stepz'" in error and "'steps'" in error
    error = usage_error(capsys, script, "--wxyz=3")
    assert "'wxyz'" in error and "did you mean" not in error and "--help" in error


def test_what_is_neither_a_setting_nor_a_config_file_is_refused(script, capsys):
    assert "steps=3" in usage_error(capsys, script, "steps=3")


def test_the_command_line_wins_over_config_files_in_any_order(script, tmp_path):
    recipe, other = tmp_path / "recipe.py", tmp_path / "other.py"
    recipe.write_text("steps = 7\nname = 'recipe'\nsize = 5\n")
    other.write_text("size = 6\n")
    for arguments in (["--steps=1", recipe, other], [recipe, "--steps=1", other],
                      [recipe, other, "--steps=1"]):
        settings = override(script, *arguments)
        assert settings["steps"] == 1 and settings["name"] == "recipe" and settings["size"] == 6
    assert override(script, other, recipe)["size"] == 5  # the last of the config files
    assert override(script, "--steps=1", "--steps=2")["steps"] == 2


def test_a_setting_of_the_command_line_keeps_its_value_inside_the_config_file(script, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("rate = 0.25\nsize = int(8 * rate)\n")
    assert override(script, recipe)["size"] == 2
    for arguments in (["--rate=2", recipe], [recipe, "--rate=2"]):
        settings = override(script, *arguments)
        assert settings["rate"] == 2.0 and settings["size"] == 16
    recipe.write_text("def change():\n    global rate\n    rate = 0.25\nchange()\n")
    assert override(script, recipe)["rate"] == 0.25
    assert override(script, recipe, "--rate=2")["rate"] == 2.0


def test_a_size_that_gpt3_does_not_have_is_refused_with_those_it_has(capsys):
    error = usage_error(capsys, ROOT / "train.py", ROOT / "config" / "gpt3.py", "--size=gpt2")
    assert "size='gpt2'" in error and "gpt3-125m" in error and "gpt3-175b" in error


def test_gpt3s_recipe_takes_a_shape_of_ones_own():
    shape = ["--size=", "--n_layer=2", "--n_head=2", "--n_embd=64"]
    settings = override(ROOT / "train.py", ROOT / "config" / "gpt3.py", *shape)
    assert settings["size"] == "" and settings["n_embd"] == 64
    assert settings["learning_rate"] == 6.0e-4  # that of the smallest


@pytest.mark.parametrize("batch_size, passes", [(8, 32), (64, 8), (512, 8)])
def test_gpt3s_batch_is_near_its_table_and_never_0(batch_size, passes):
    recipe = ROOT / "config" / "gpt3.py"
    settings = override(ROOT / "train.py", recipe, f"--batch_size={batch_size}")
    assert settings["gradient_accumulation_steps"] == passes


# Learning rate and tokens in a batch, Table 2.1 of Brown et al. 2020:
GPT3 = {"gpt3-125m": (6.0e-4, 0.5e6), "gpt3-350m": (3.0e-4, 0.5e6), "gpt3-760m": (2.5e-4, 0.5e6),
        "gpt3-1.3b": (2.0e-4, 1e6), "gpt3-2.7b": (1.6e-4, 1e6), "gpt3-6.7b": (1.2e-4, 2e6),
        "gpt3-13b": (1.0e-4, 2e6), "gpt3-175b": (0.6e-4, 3.2e6)}


@pytest.mark.parametrize("size", GPT3)
def test_gpt3s_learning_rates_and_batches_are_the_papers(size):
    settings = override(ROOT / "train.py", ROOT / "config" / "gpt3.py", f"--size={size}")
    learning_rate, batch = GPT3[size]
    assert settings["learning_rate"] == learning_rate
    assert settings["min_lr"] == pytest.approx(learning_rate / 10)
    sequences = settings["batch_size"] * settings["gradient_accumulation_steps"]
    tokens = sequences * settings["block_size"]
    assert tokens == pytest.approx(batch, rel=0.06)
    # Section 2.3 and appendix B: the whole run, the decay and the warmup, in tokens.
    for name, n in (("max_iters", 300e9), ("lr_decay_iters", 260e9), ("warmup_iters", 375e6)):
        assert settings[name] * tokens == pytest.approx(n, rel=0.005)


def test_gpt2s_recipe_has_the_batch_the_length_and_the_warmup_of_its_comments():
    settings = override(ROOT / "train.py", ROOT / "config" / "gpt2.py")
    sequences = settings["batch_size"] * settings["gradient_accumulation_steps"]
    tokens = sequences * settings["block_size"]
    assert tokens == 524_288
    assert settings["max_iters"] * tokens == pytest.approx(10e9, rel=1e-4)
    assert settings["warmup_iters"] * tokens == pytest.approx(375e6, rel=1e-3)


@pytest.mark.parametrize("max_iters", [230, 680])  # for input.txt and for a megabyte
def test_the_quick_start_is_evaluated_eight_times_whatever_its_length(max_iters):
    recipe = ROOT / "config" / "shakespeare.py"
    settings = override(ROOT / "train.py", recipe, f"--max_iters={max_iters}")
    assert math.ceil(max_iters / settings["eval_interval"]) == 8  # the last one at the end
    assert override(ROOT / "train.py", recipe)["max_iters"] == 230


def test_fine_tuning_reads_the_text_three_times_however_long_it_is():
    settings = override(ROOT / "train.py", ROOT / "config" / "finetune_gpt2.py")
    assert (settings["max_iters"], settings["max_epochs"]) == (0, 3.0)


def test_a_config_file_computes_with_the_settings_so_far(script, tmp_path):
    before, recipe = tmp_path / "before.py", tmp_path / "recipe.py"
    before.write_text("steps = 4\n")
    recipe.write_text("import math\nfrom math import pi\n_half = rate / 2\n"
                      "def double(x):\n    return 2 * x\n"
                      "steps = double(steps)\nrate = math.floor(_half * 10)\n")
    settings = override(script, before, recipe)
    assert settings["steps"] == 8 and settings["rate"] == 2.0
    assert set(settings) == {"steps", "rate", "name", "quiet", "compile", "size"}


def test_a_config_file_may_import_everything_and_run_another_one(script, tmp_path):
    (tmp_path / "base.py").write_text("steps = 3\nname = 'base'\n")
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from math import *\nfrom pathlib import Path\n"
                      "exec(Path(__file__).with_name('base.py').read_text())\n"
                      "double = lambda x: 2 * x\nrate = double(rate)\n")
    settings = override(script, recipe)
    assert settings["steps"] == 3 and settings["name"] == "base" and settings["rate"] == 1.0


@pytest.mark.parametrize("source", [b"\xef\xbb\xbfname = '\xc3\xa9'\n",  # of a Windows editor
                                    b"# -*- coding: latin-1 -*-\nname = '\xe9'\n"])
def test_a_config_file_has_any_encoding_that_python_reads(script, tmp_path, source):
    (tmp_path / "recipe.py").write_bytes(source)
    assert override(script, tmp_path / "recipe.py")["name"] == "\u00e9"


def test_a_change_can_begin_from_current_settings(script, capsys):
    current = override(script, "--steps=3", "--compile=auto")
    changed = config.override(script, ["--steps=4"], dict(current))
    assert changed == {**current, "steps": 4} and current["steps"] == 3


@pytest.mark.parametrize("source, word", [
    ("stepz = 1", "steps"), ("rate, stepz = 1, 2", "steps"), ("open('gone.txt')", "gone.txt"),
    ("steps = 'many'", "steps"), ("steps = 1 +", "SyntaxError"),
    ("steps = 1 / 0", "ZeroDivisionError"), ("steps = undefined", "NameError"),
])
def test_a_broken_config_file_is_named_with_its_fault(script, tmp_path, capsys, source, word):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(source)
    assert word in usage_error(capsys, script, recipe)


def test_a_missing_config_file_is_named(script, capsys):
    assert "nowhere.py" in usage_error(capsys, script, "nowhere.py")


@pytest.mark.parametrize("name", ["prepare", "train", "sample"])
def test_help_prints_every_setting_of_the_source_with_default_and_comment(name):
    code, out, _ = call(name, "--help")
    source = (ROOT / f"{name}.py").read_text().split("\ndef ")[0]
    settings = re.findall(r"^([a-z]\w*) = (.*)  # (.*)", source, re.MULTILINE)
    assert code == 0 and len(settings) >= 6
    for setting, default, comment in settings:
        line = f"  --{setting}={ast.literal_eval(default)!r}"
        assert f"\n{line.ljust(40)} {comment}\n" in out
    assert call(name, "-h") == (0, out, "")


def test_an_error_of_a_script_is_one_line_and_an_exit_code():
    done = subprocess.run([sys.executable, "prepare.py", "--input=nowhere.txt"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: input='nowhere.txt': no such file, folder")
    assert done.stderr.count("\n") == 1


def test_an_error_of_several_lines_becomes_one(capsys):
    def fail(_):
        raise ValueError("the first line\nand the second")

    assert config.run(fail, []) == 1
    assert capsys.readouterr().err == "error: the first line and the second\n"


def test_with_traceback_in_the_environment_an_error_shows_where_it_comes_from(monkeypatch):
    monkeypatch.setenv("TRACEBACK", "1")
    with pytest.raises(ValueError):
        config.run(prepare.main, ["--input=nowhere.txt"])
    with pytest.raises(torch.OutOfMemoryError):
        config.run(on_a_gpu, [])


def on_a_gpu(_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def in_cublas(_):
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("allocate", [on_a_gpu, in_cublas,
                                      lambda _: torch.empty(1 << 40, 1 << 40),
                                      lambda _: torch.empty(1 << 60, dtype=torch.uint8),
                                      lambda _: numpy.empty(1 << 60, numpy.uint8),
                                      lambda _: bytearray(1 << 60)],
                         ids=["cuda", "cublas", "torch's sizes", "torch", "numpy", "python"])
def test_out_of_memory_is_one_line_too(capsys, allocate):
    assert config.run(allocate, []) == 1
    assert capsys.readouterr().err.startswith("error: out of memory: lower batch_size")


def test_a_compiler_that_fails_is_not_out_of_memory_whatever_it_warns_of(capsys):
    def compile(_):
        raise RuntimeError("C++ compile error\n\nOutput:\nvec.h: warning: overflow in conversion "
                           "[-Woverflow]\ng++: fatal error: Terminated signal terminated program")

    assert config.run(compile, []) == 1
    assert capsys.readouterr().err == ("error: torch.compile needs a C++ compiler (on a GPU, "
                                       "Triton): add --compile=False\n")


def test_an_error_of_unknown_cause_is_not_hidden():
    def fail(_):
        raise RuntimeError("value cannot be converted to type int without overflow")

    with pytest.raises(RuntimeError):
        config.run(fail, [])


def test_a_character_that_standard_output_cannot_hold_is_escaped(monkeypatch):
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding="ascii"))
    assert config.run(lambda _: print("n\u00e9", flush=True), []) == 0
    assert file.getvalue() == b"n\\xe9\n"


RECIPES = sorted({*(ROOT / "config").glob("[a-z]*.py")} - {ROOT / "config" / "sources.py"})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_sets_only_what_train_knows(recipe):
    assert config.override(ROOT / "train.py", [str(recipe)])


@pytest.mark.parametrize("script, arguments, words", [
    ("train", ["--device"], "device=True: expected str"),
    ("sample", ["--init_from"], "init_from=True: expected str"),
    ("sample", ["--snapshot=True"], "No such file|no snapshot"),  # a path may have that name
    ("train", ["--out_dir="], "out_dir='': expected a folder"),
    ("prepare", ["--out_dir="], "out_dir='': expected a folder"),
    ("train", [ROOT / "config/gpt2.py", "--n_layer=1"], "have no effect beside size="),
])
def test_a_setting_that_cannot_be_meant_ends_with_one_line(script, arguments, words):
    code, _, err = call(script, *arguments)
    assert code in (1, 2) and re.search(words, err) and err.count("\n") == 1
