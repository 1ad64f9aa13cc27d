"""sample.py as people use it: what it prints, what it refuses, and what Ctrl-C stops."""

import ast
import codecs
import contextlib
import copy
import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, call, succeed

import config
import sample
from model import GPT, GPTConfig, beam_search
from prepare import load_tokenizer

TEXT = ("To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the\n"
        "slings and arrows of outrageous fortune. Être ou ne pas être, voilà la question.\n") * 20
SPELLED = "naïve – 日本 🙂 fin"  # what the model of the fixture speller writes, byte by byte


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """The out_dir of a tiny run on TEXT."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    succeed("prepare", f"--input={folder / 'text.txt'}", "--vocab_size=300", f"--out_dir={folder}")
    succeed("train", f"--data_dir={folder}", f"--out_dir={folder / 'out'}", "--n_layer=2",
            "--n_head=2", "--n_embd=32", "--block_size=32", "--batch_size=8", "--max_iters=35",
            "--warmup_iters=2", "--num_return_sequences=0", "--device=cpu",
            "--dtype=float32")
    return folder / "out"


@pytest.fixture(scope="session")
def model(run_dir):
    return GPT.from_snapshot(run_dir / "best.pt").eval()


@pytest.fixture(scope="session")
def encoding(model):
    return load_tokenizer(model.tokenizer)


@pytest.fixture(scope="session")
def speller(run_dir):
    """A snapshot whose tokens are bytes and whose model writes SPELLED after any prompt: its
    position embeddings point to the byte that is to follow, and its blocks add nothing."""
    snapshot = torch.load(run_dir / "final_model.pt", weights_only=True)
    snapshot["tokenizer"] = {"name": "bytes", "tokens": [chr(byte) for byte in range(256)]}
    snapshot["model_config"] = dict(block_size=64, vocab_size=257, n_layer=1, n_head=1, n_embd=64,
                                    dropout=0.0, bias=True)
    torch.manual_seed(0)
    speller = GPT(GPTConfig(**snapshot["model_config"]))
    with torch.no_grad():
        for name, parameter in speller.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.zero_()
        wte, wpe = speller.transformer.wte.weight, speller.transformer.wpe.weight
        wte.copy_(F.normalize(wte - wte.mean(1, keepdim=True), dim=1))
        following = [*SPELLED.encode()[1:], 256]
        wpe[:len(following)] = 100 * wte[following]
    snapshot["model_state_dict"] = speller.state_dict()
    path = run_dir.parent / "speller.pt"
    torch.save(snapshot, path)
    return path


@pytest.fixture
def sampled(run_dir, monkeypatch):
    """A function that calls sample.py on the tiny run; -> (exit code, stdout, stderr)."""
    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        return call("sample", f"--out_dir={run_dir}", "--device=cpu", "--dtype=float32",
                    "--max_new_tokens=40", *arguments)
    return run


@pytest.fixture
def text_of(sampled):
    """A function that calls sample.py where it has to succeed; -> its standard output."""
    def run(*arguments, stdin=b""):
        code, out, err = sampled(*arguments, stdin=stdin)
        assert code == 0, err
        return out
    return run


def continuations(model, encoding, prompt, **options):
    """The texts that model.generate makes of a prompt with sample.py's default settings."""
    defaults = dict(num_samples=1, max_new_tokens=40, temperature=0.8, top_k=200, seed=1337)
    options = defaults | options
    ids = torch.tensor([encoding.encode(prompt, allowed_special="all") or [encoding.end_id]])
    seed = options.pop("seed")
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    rows = model.generate(ids.repeat(options.pop("num_samples"), 1), eos_token=encoding.end_id,
                          generator=generator, **options).tolist()
    return [prompt + whole_characters(encoding, row[ids.size(1):]) for row in rows]


def whole_characters(encoding, ids):
    """The text of the ids up to the end of a document, without a character that is cut short."""
    end = ids.index(encoding.end_id) if encoding.end_id in ids else len(ids)
    return codecs.getincrementaldecoder("utf-8")("replace").decode(encoding.decode_bytes(ids[:end]))


# ---- the prompt and the text --------------------------------------------------------------------

@pytest.mark.parametrize("options", [
    dict(), dict(temperature=0), dict(temperature=1.5), dict(top_k=3), dict(top_p=0.5),
    dict(seed=7), dict(max_new_tokens=7)], ids=str)
def test_the_text_is_what_model_generate_makes_with_the_same_settings(
        options, text_of, model, encoding):
    arguments = [f"--{name}={value}" for name, value in options.items()]
    expected, = continuations(model, encoding, "To be", **options)
    assert text_of("--start=To be", *arguments) == expected + "\n"


def test_each_setting_of_the_test_above_makes_another_text(model, encoding):
    settings = (dict(), dict(temperature=0), dict(temperature=1.5), dict(top_k=3), dict(top_p=0.5),
                dict(seed=7), dict(max_new_tokens=7))
    assert len({continuations(model, encoding, "To be", **options)[0] for options in settings}) == 7


def test_a_text_grows_beyond_the_block(text_of, model, encoding):
    expected, = continuations(model, encoding, "To be", max_new_tokens=100)
    assert text_of("--start=To be", "--max_new_tokens=100") == expected + "\n"
    assert len(encoding.encode_ordinary(expected)) > 3 * model.config.block_size


def test_several_samples_are_printed_one_after_the_other(text_of, model, encoding):
    expected = continuations(model, encoding, "To be", num_samples=3)
    assert len(set(expected)) == 3
    assert expected[:1] == continuations(model, encoding, "To be")  # whatever num_samples is
    out = text_of("--start=To be", "--num_samples=3")
    places = [out.index(text) for text in expected]
    assert places == sorted(places)


def test_the_prompt_comes_from_the_command_line_a_file_or_standard_input(text_of, tmp_path):
    prompt = "Être ou\nne pas"
    (tmp_path / "prompt.txt").write_text(prompt, encoding="utf-8")
    out = text_of(f"--start={prompt}")
    assert out.startswith(prompt) and len(out) > len(prompt) + 20
    assert text_of(f"--start=FILE:{tmp_path / 'prompt.txt'}") == out
    assert text_of("--start=-", stdin=prompt.encode()) == out
    assert text_of("--start=-", stdin=b"a\r\nb").startswith("a\r\nb")


def test_an_empty_prompt_begins_a_new_document(text_of, model, encoding, tmp_path):
    expected, = continuations(model, encoding, "")
    (tmp_path / "empty.txt").touch()
    assert text_of("--start=") == expected + "\n"
    assert text_of("--start=-") == expected + "\n"
    assert text_of(f"--start=FILE:{tmp_path / 'empty.txt'}") == expected + "\n"


def test_a_prompt_may_contain_the_token_that_ends_a_document(text_of, model, encoding):
    prompt = "To be<|endoftext|>To"
    ids = encoding.encode(prompt, allowed_special="all")
    assert encoding.end_id in ids and len(ids) < len(encoding.encode_ordinary(prompt)) - 3
    expected, = continuations(model, encoding, prompt)
    assert text_of(f"--start={prompt}") == expected + "\n"
    plain, = continuations(model, encoding, "To beTo")
    assert expected.removeprefix(prompt) != plain.removeprefix("To beTo")


def test_top_k_above_the_vocabulary_and_0_are_all_of_it(text_of):
    everything = text_of("--start=To be", "--temperature=3.0", "--top_k=0")
    assert text_of("--start=To be", "--temperature=3.0", "--top_k=1000000") == everything
    assert text_of("--start=To be", "--temperature=3.0", "--top_k=5") != everything


def test_the_snapshot_can_be_chosen_by_name_or_path_and_is_the_best_by_default(
        text_of, speller, run_dir, tmp_path):
    usual = text_of("--start=To be")
    assert text_of("--start=To be", f"--snapshot={run_dir / 'best.pt'}") == usual
    assert text_of("--start=To be", f"--snapshot={speller}") != usual
    folder = tmp_path / "run" / "snapshots"
    folder.mkdir(parents=True)
    shutil.copy(run_dir / "best.pt", tmp_path / "run" / "final_model.pt")
    shutil.copy(speller, folder / "snapshot_step_7.pt")
    shutil.copy(run_dir / "best.pt", folder / "snapshot_step_6.pt")  # newer, but of a lower step
    shutil.copy(run_dir / "best.pt", folder / "snapshot_step_x.pt")
    arguments = "--start=n", "--temperature=0", f"--out_dir={tmp_path / 'run'}"
    final = text_of(*arguments)  # there is no best.pt
    assert text_of(*arguments, "--snapshot=final") == final != SPELLED + "\n"
    assert text_of(*arguments, "--snapshot=latest") == SPELLED + "\n"
    for path in (folder / "snapshot_step_7.pt", "snapshots/snapshot_step_7.pt"):  # or in out_dir
        assert text_of(*arguments, f"--snapshot={path}") == SPELLED + "\n"


# ---- text appears as it is generated ------------------------------------------------------------

class Pieces(io.RawIOBase):
    """A standard output that remembers what arrives in it, piece by piece."""

    def __init__(self):
        self.pieces = []

    def writable(self):
        return True

    def write(self, data):
        self.pieces.append(bytes(data))
        return len(data)


@pytest.mark.parametrize("count", [1, 3])
def test_text_appears_character_by_character_and_never_a_part_of_one(count, speller):
    out = Pieces()
    with contextlib.redirect_stdout(io.TextIOWrapper(out, encoding="utf-8")):
        assert config.run(sample.main, [f"--snapshot={speller}", "--start=n", "--temperature=0",
                                        "--device=cpu", f"--num_samples={count}"]) == 0
        sys.stdout.flush()
    pieces = [piece.decode() for piece in out.pieces if piece]  # raises for a part of a character
    assert "".join(pieces) == "\n---------------\n".join([SPELLED] * count) + "\n"
    assert pieces[:len(SPELLED)] == list(SPELLED)


@pytest.mark.parametrize("mode", ["--num_samples=1", "--num_samples=2", "--beams=2"])
def test_a_character_that_max_new_tokens_cuts_in_two_is_not_shown(mode, text_of, speller):
    out = text_of(f"--snapshot={speller}", "--start=n", "--temperature=0", "--max_new_tokens=2",
                  mode)
    assert "na" in out and "\ufffd" not in out


@pytest.mark.parametrize("which", ["latest", "best", "final", "nowhere.pt"])
def test_a_snapshot_that_does_not_exist_is_named(which, tmp_path):
    code, _, err = call("sample", f"--out_dir={tmp_path}", f"--snapshot={which}")
    assert code == 1 and f"there is no snapshot ({which})" in err and err.count("\n") == 1


def test_what_follows_the_end_of_a_document_is_not_shown(text_of, speller):
    arguments = f"--snapshot={speller}", "--start=n", "--max_new_tokens=60", "--temperature=0"
    assert text_of(*arguments) == SPELLED + "\n"
    assert text_of(*arguments, "--beams=2").startswith(SPELLED + "\n")
    assert text_of(*arguments, "--num_samples=2").count(SPELLED) == 2


@contextlib.contextmanager
def running(run_dir, *arguments):
    """sample.py as a process on pipes that heeds Ctrl-C; it is killed if it hangs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits "ignored"
    process = subprocess.Popen(
        [sys.executable, ROOT / "sample.py", f"--out_dir={run_dir}", "--device=cpu", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    with process:
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def test_text_is_in_the_pipe_before_all_of_it_is_made_and_ctrl_c_ends_with_130(run_dir):
    with running(run_dir, "--start=To be", "--max_new_tokens=1000000000000") as process:
        assert process.stdout.read(40).startswith(b"To be")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 130
        assert b"Traceback" not in err


def test_a_reader_that_closes_the_pipe_ends_the_program_without_an_error(run_dir):
    with running(run_dir, "--start=To be", "--max_new_tokens=1000000000000") as process:
        assert process.stdout.read(10).startswith(b"To be")
        process.stdout.close()
        assert process.wait() == 0
        assert process.stderr.read() == b""


# ---- --interactive ------------------------------------------------------------------------------

def test_interactive_continues_each_line_until_the_input_ends(sampled, model, encoding):
    code, out, err = sampled("--interactive", stdin="To be\nÊtre\n\n".encode())
    assert code == 0 and "Traceback" not in err
    generator = torch.Generator().manual_seed(1337)
    assert out == "".join(continuations(model, encoding, prompt, seed=generator)[0] + "\n"
                          for prompt in ("To be", "Être", ""))


def test_interactive_answers_the_other_lines_where_one_is_not_utf_8(sampled):
    code, out, err = sampled("--interactive", "--max_new_tokens=0",
                             stdin=b"one\ntwo\r\n\xff\nthree\nfour")
    assert code == 0 and out == "one\ntwo\nthree\nfour\n" and err.count("utf-8") == 1


def test_interactive_goes_on_after_a_text_that_needs_too_much_memory(sampled):
    code, out, err = sampled("--interactive", "--max_new_tokens=0",
                             stdin=b"one\n/beams 10000000000000\ntwo\n/beams 0\nthree\n")
    assert (code, out) == (0, "one\nthree\n") and "memory" in err and "Traceback" not in err


def test_interactive_gives_a_new_text_each_time_and_the_seeds_first(sampled, model, encoding):
    prompts = b"To be\nTo be\nTo be\n"
    code, out, _ = sampled("--interactive", "--max_new_tokens=20", stdin=prompts)
    generator = torch.Generator().manual_seed(1337)
    texts = [continuations(model, encoding, "To be", seed=generator, max_new_tokens=20)[0]
             for _ in range(3)]
    assert code == 0 and out == "".join(text + "\n" for text in texts)
    assert len(set(texts)) == 3
    assert texts[0] == continuations(model, encoding, "To be", max_new_tokens=20)[0]


def test_interactive_commands_change_settings_for_the_texts_that_follow(sampled, model, encoding):
    code, out, err = sampled("--interactive", stdin=(
        b"To be\n/temperature 0.5\nTo be\n/top_k 2\n/seed 5\nTo be\n"
        b"/num_samples 2\n/temperature 0\nTo be\n"))
    assert code == 0, err
    generator = torch.Generator().manual_seed(1337)
    first, = continuations(model, encoding, "To be", seed=generator)
    second, = continuations(model, encoding, "To be", seed=generator, temperature=0.5)
    third, = continuations(model, encoding, "To be", temperature=0.5, top_k=2, seed=5)
    fourth, = continuations(model, encoding, "To be", temperature=0)
    assert len({first, second, third, fourth}) == 4
    assert out.startswith(f"{first}\n{second}\n{third}\n{fourth}\n")
    assert out.count(fourth) == 2


def test_interactive_help_lists_the_settings_and_asks_again(sampled, model, encoding):
    code, out, err = sampled("--interactive", stdin=b"/help\nTo be\n")
    assert code == 0 and "--temperature=" in out
    assert out.endswith("\n" + continuations(model, encoding, "To be")[0] + "\n")


@pytest.mark.parametrize("line, named", [
    ("/temperature -1", "temperature"), ("/temperature hot", "temperature"), ("/top_p 0", "top_p"),
    ("/temperatur 1", "temperature"), ("/", "setting"), ("/dtype int8", "dtype"),
    ("/dtype=int8", "dtype"), ("/out_dir\tx", "out_dir"), ("/start x", "start"),
    ("To be " * 50, "block_size")])
def test_an_invalid_line_gets_an_error_message_and_changes_nothing(
        line, named, sampled, model, encoding):
    _, _, usual = sampled("--interactive", stdin=b"To be\n")
    code, out, err = sampled("--interactive", stdin=f"{line}\nTo be\n".encode())
    assert code == 0
    assert out == continuations(model, encoding, "To be")[0] + "\n"
    assert named in err and len(err.splitlines()) - len(usual.splitlines()) <= 1


def test_ctrl_c_stops_the_text_and_not_the_program(run_dir):
    with running(run_dir, "--interactive", "--max_new_tokens=1000000000000") as process:
        process.stdin.write(b"To be\n")
        process.stdin.flush()
        assert process.stdout.read(200).startswith(b"To be")  # and it would never end
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(b"/max_new_tokens 5\nQuestion\n")
        assert process.returncode == 0
        assert b"Question" in out
        assert b"Traceback" not in err


# ---- --probs, --beams, --score ------------------------------------------------------------------

def test_probs_shows_the_likeliest_tokens_of_each_step_and_marks_the_chosen_one(
        sampled, model, encoding):
    code, out, err = sampled("--start=To be", "--max_new_tokens=25", "--probs=5",
                             "--temperature=2.0")
    expected, = continuations(model, encoding, "To be", max_new_tokens=25, temperature=2.0)
    assert code == 0 and out == expected + "\n"
    ids = torch.tensor([encoding.encode_ordinary("To be")])
    assert ids.size(1) + 25 <= 32  # one block
    steps = model.stream(ids, 25, 2.0, 200, generator=torch.Generator().manual_seed(1337))
    unlikely = 0
    for line, (new, _) in zip(err.splitlines(), steps, strict=True):
        shown = re.findall(r"""(\*?)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*") +(\d+\.\d+)%""", line)
        with torch.no_grad():
            probs = F.softmax(model(ids)[0][0, -1].double(), -1)
        likeliest = probs.topk(5).indices.tolist()
        chosen = new.item()
        unlikely += chosen not in likeliest
        tokens = likeliest + [chosen] * (chosen not in likeliest)
        assert [ast.literal_eval(text) for _, text, _ in shown] == [
            encoding.decode([token]) for token in tokens]
        assert [mark for mark, _, _ in shown] == ["*" if i == chosen else "" for i in tokens]
        assert [float(percent) for _, _, percent in shown] == pytest.approx(
            [100 * probs[token].item() for token in tokens], abs=0.06)
        ids = torch.cat((ids, new), dim=1)
    assert 0 < unlikely < 25


@pytest.fixture(scope="session")
def ender(run_dir, model, encoding):
    """A snapshot of the tiny run whose model may end a document with its likeliest fifth token."""
    snapshot = torch.load(run_dir / "best.pt", weights_only=True)
    ids = torch.tensor([encoding.encode_ordinary("To be")])
    fifth = model.generate(ids, 5, temperature=0)[0, -1]
    for name in ("transformer.wte.weight", "lm_head.weight"):
        weight = snapshot["model_state_dict"][name]
        weight[encoding.end_id] = weight[fifth]
    torch.save(snapshot, run_dir.parent / "ender.pt")
    return run_dir.parent / "ender.pt"


def test_beams_are_printed_with_their_log_probabilities_the_best_first(sampled, ender, encoding):
    model = GPT.from_snapshot(ender).eval()
    ids = torch.tensor([encoding.encode_ordinary("To be")])
    printed = []
    for penalty in (0.0, 2.0):
        code, out, err = sampled(f"--snapshot={ender}", "--start=To be", "--max_new_tokens=12",
                                 "--beams=4", f"--length_penalty={penalty}")
        assert code == 0
        beams = beam_search(model, ids, 12, 4, penalty, encoding.end_id)
        assert out == "".join("To be" + whole_characters(encoding, row[ids.size(1):]) + "\n"
                              for row, _ in beams)
        shown = [float(number) for number in re.findall(r"-\d+\.\d+", err)]
        assert shown == pytest.approx([log_prob for _, log_prob in beams], abs=1e-2)
        assert len({len(row) for row, _ in beams}) > 1
        printed.append(out)
    assert printed[0] != printed[1]


def plain_score(model, ids, stride):
    """The sum of -log p of each token but the first, each found by a forward pass of its own. The
    first window ends after block_size predictions, each of the next ones `stride` later (or
    block_size, so that none is left out)."""
    block_size = model.config.block_size
    stride = min(stride, block_size)
    total = 0.0
    for i in range(1, len(ids)):
        later = math.ceil(max(0, i - block_size) / stride)
        end = min(len(ids) - 1, block_size + later * stride)
        context = torch.tensor([ids[max(0, end - block_size):i]])
        with torch.no_grad():
            total -= F.log_softmax(model(context)[0][0, -1].double(), -1)[ids[i]].item()
    return total


@pytest.mark.parametrize("length, stride", [(70, 1), (200, 7), (200, 32), (200, 1000), (20, 7)])
def test_score_equals_a_sliding_window_computed_token_by_token(
        length, stride, sampled, model, encoding, tmp_path):
    ids = encoding.encode_ordinary(TEXT[40:])[:length]
    text = encoding.decode(ids)
    assert encoding.encode_ordinary(text) == ids
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    code, out, err = sampled(f"--score={tmp_path / 'text.txt'}", f"--stride={stride}")
    assert code == 0
    nats = plain_score(model, ids, stride)
    size = len(text.encode()) - len(encoding.decode_bytes(ids[:1]))
    for name, expected in (("loss", nats / (length - 1)),
                           ("perplexity", math.exp(nats / (length - 1))),
                           ("bits per byte", nats / math.log(2) / size)):
        shown = float(re.search(rf"{name}:? (\d+\.\d+)", out + err)[1])
        assert shown == pytest.approx(expected, abs=0.006 if name == "perplexity" else 1e-4)


def test_a_smaller_stride_gives_each_token_more_context_and_another_score(model, encoding):
    ids = encoding.encode_ordinary(TEXT[40:])[:200]
    scores = [plain_score(model, ids, stride) / 199 for stride in (1, 7, 32)]
    assert len({round(score, 3) for score in scores}) == 3


# ---- other models than a run's, and other tools -------------------------------------------------

@pytest.fixture
def pretrained(monkeypatch, model):
    """The tiny run's model, which has any name; saving it notes the folder and the type."""
    asked, saved = [], []
    model = copy.deepcopy(model)
    model.save_pretrained = lambda folder: saved.append((folder, model.lm_head.weight.dtype))
    monkeypatch.setattr(GPT, "from_pretrained", lambda name: asked.append(str(name)) or model)
    return model, asked, saved


def test_init_from_is_the_name_of_a_model_or_a_folder(pretrained, text_of, encoding, run_dir):
    model, asked, _ = pretrained
    expected, = continuations(model, encoding, "To be")
    for name in ("gpt2", "owner/name", "some/folder"):
        assert text_of("--start=To be", f"--init_from={name}") == expected + "\n"
    for name in ("auto", "resume"):
        assert text_of("--start=To be", f"--init_from={name}") == expected + "\n"
    assert asked == ["gpt2", "owner/name", "some/folder", *[str(run_dir / "best.pt")] * 2]


def test_export_writes_the_model_in_float32_and_no_text(pretrained, sampled):
    _, asked, saved = pretrained
    assert sampled("--export=folder", "--dtype=bfloat16") == (0, "", "")
    assert sampled("--export=other", "--init_from=gpt2")[:2] == (0, "")
    assert saved == [("folder", torch.float32), ("other", torch.float32)] and asked[1:] == ["gpt2"]


def test_a_model_without_a_tokenizer_can_be_exported_but_not_write(pretrained, sampled):
    model, _, saved = pretrained
    model.tokenizer = None
    assert_refused(sampled("--init_from=folder"), 1, "no tokenizer")
    assert sampled("--init_from=folder", "--export=other")[0] == 0 and len(saved) == 1


def test_the_dtype_is_the_settings_or_float32_for_small_models_and_scores(sampled, monkeypatch,
                                                                          tmp_path):
    asked = []

    def for_inference(model, device, dtype, original=sample.for_inference):
        asked.append(dtype)
        return original(model, device, dtype)

    monkeypatch.setattr(sample, "for_inference", for_inference)
    fast = {"avx512_bf16": True}  # a CPU for which 'auto' is bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: fast, raising=False)
    (tmp_path / "x.txt").write_text("To be, or not to be")
    score = f"--score={tmp_path / 'x.txt'}"
    for parameters, arguments in ((1000, ["--dtype=int8"]), (1000, ["--dtype=bfloat16"]),
                                  (1000, ["--dtype=auto"]), (20_000_000, ["--dtype=auto"]),
                                  (20_000_000, ["--dtype=auto", score])):
        monkeypatch.setattr(GPT, "num_params", lambda model, found=parameters: found)
        assert sampled("--start=To be", "--max_new_tokens=3", *arguments)[0] == 0
    assert asked == ["int8", torch.bfloat16, torch.float32, torch.bfloat16, torch.float32]
    assert_refused(sampled("--dtype=int8", "--device=cuda"), 2, "int8", "cuda")


def test_scores_in_eight_bits_are_computed_on_the_cpu_also_where_there_is_a_gpu(
        text_of, tmp_path, monkeypatch):
    (tmp_path / "poem.txt").write_text(TEXT[:300], encoding="utf-8")
    arguments = f"--score={tmp_path / 'poem.txt'}", "--dtype=int8", "--device=auto"
    expected = text_of(*arguments)
    monkeypatch.setattr(sample, "get_device", lambda *_: (torch.device("meta"), torch.float32))
    assert text_of(*arguments) == expected


# ---- invalid settings and files -----------------------------------------------------------------

def assert_refused(result, code, *named):
    found, out, err = result
    assert found == code, err
    assert out == ""
    assert len(err.splitlines()) == 1 and "Traceback" not in err
    for word in named:
        assert word in err


@pytest.mark.parametrize("argument", [
    "--top_p=0", "--top_p=-0.5", "--top_p=1.5", "--temperature=-1", "--temperature=nan",
    "--temperature=hot", "--top_k=-1", "--max_new_tokens=-1", "--num_samples=0", "--beams=-2",
    "--stride=0", "--seed=-1", "--probs=-1", "--dtype=int4", "--device=nowhere"])
def test_an_invalid_setting_is_named(argument, sampled):
    code = 1 if argument == "--device=nowhere" else 2  # that one isn't wrong everywhere
    assert_refused(sampled(argument), code, argument[2:].partition("=")[0])


def test_a_wrong_name_of_a_setting_ends_with_the_nearest_right_one(sampled):
    assert_refused(sampled("--temprature=1"), 2, "temprature", "temperature")


@pytest.mark.parametrize("setting", ["--start=FILE:{}", "--score={}"])
def test_a_text_file_that_cannot_be_read_is_named(setting, sampled, tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    assert_refused(sampled(setting.format(latin)), 1, str(latin), "UTF-8")
    missing = tmp_path / "missing.txt"
    assert_refused(sampled(setting.format(missing)), 1, str(missing))
    assert_refused(sampled(setting.format(tmp_path)), 1, str(tmp_path))


def test_standard_input_that_is_not_utf_8_is_refused(sampled):
    assert_refused(sampled("--start=-", stdin=b"caf\xe9"), 1, "utf-8")


@pytest.mark.parametrize("arguments", ["--interactive", "--start=-"])
def test_a_closed_standard_input_is_an_empty_one(run_dir, arguments):
    command = f'"{sys.executable}" "{ROOT}/sample.py" "--out_dir={run_dir}" {arguments} <&-'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_prompt_longer_than_the_block_is_refused_with_both_lengths(sampled, encoding):
    prompt = "To be " * 50
    assert_refused(sampled(f"--start={prompt}"), 1, str(len(encoding.encode_ordinary(prompt))),
                   "block_size", "32")


def test_a_prompt_may_fill_the_whole_block(sampled, model, encoding):
    prompt = encoding.decode(encoding.encode_ordinary(TEXT)[:32])
    assert len(encoding.encode_ordinary(prompt)) == 32 == model.config.block_size
    text, = continuations(model, encoding, prompt)
    assert sampled(f"--start={prompt}") == (0, f"{text}\n", "")


def test_a_text_file_that_is_missing_is_named_once(sampled, tmp_path):
    code, _, err = sampled(f"--score={tmp_path / 'none.txt'}")
    assert (code, err) == (1, f"error: {tmp_path / 'none.txt'}: No such file or directory\n")


def test_end_of_text_counts_as_a_token_of_a_scored_text_and_as_no_byte(sampled, tmp_path):
    (tmp_path / "text.txt").write_text("hello<|endoftext|>world")
    code, out, _ = sampled(f"--score={tmp_path / 'text.txt'}")
    tokens, size, loss, bits = re.search(
        r"(\d+) tokens, (\d+) bytes: loss (.*), perp.*, bits per byte (.*)", out).groups()
    first = len("hello") + len("world") - int(size)  # the bytes of the first token: not predicted
    assert code == 0 and 1 <= first <= 5
    assert float(bits) == pytest.approx(
        float(loss) * int(tokens) / math.log(2) / int(size), rel=1e-3)
    (tmp_path / "text.txt").write_text("<|endoftext|>" * 3)
    assert sampled(f"--score={tmp_path / 'text.txt'}")[0] == 0


def test_the_perplexity_of_a_loss_too_large_for_exp_is_shown_all_the_same(text_of, run_dir,
                                                                           tmp_path):
    snapshot = torch.load(run_dir / "best.pt", weights_only=True)
    snapshot["model_state_dict"]["transformer.ln_f.weight"] *= 1e6
    torch.save(snapshot, tmp_path / "wild.pt")
    (tmp_path / "text.txt").write_text("quite unlike it", encoding="utf-8")
    out = text_of(f"--score={tmp_path / 'text.txt'}", f"--snapshot={tmp_path / 'wild.pt'}")
    assert float(re.search(r"loss (\S+),", out)[1]) > 710  # exp(710) is no float any more
    assert "perplexity 1014232" in out


def test_a_text_too_short_to_be_scored_is_refused(sampled, tmp_path):
    (tmp_path / "empty.txt").touch()
    assert_refused(sampled(f"--score={tmp_path / 'empty.txt'}"), 1, "empty.txt")


def test_a_file_that_is_no_snapshot_is_named(sampled, run_dir, tmp_path):
    whole = (run_dir / "final_model.pt").read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    for name, content in (("empty.pt", b""), ("text.pt", TEXT.encode()), ("cut.pt", whole[:-500]),
                          ("damaged.pt", damaged), ("other.pt", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert_refused(sampled(f"--snapshot={tmp_path / name}"), 1, str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pt")
    assert_refused(sampled(f"--snapshot={tmp_path / 'list.pt'}"), 1, "list.pt: not a snapshot")
    assert_refused(sampled(f"--snapshot={tmp_path / 'missing.pt'}"), 1, "missing.pt")
    assert_refused(sampled(f"--snapshot={tmp_path}"), 1, str(tmp_path))


def test_an_out_dir_without_a_snapshot_says_how_to_make_one(sampled, tmp_path):
    assert_refused(sampled(f"--out_dir={tmp_path}"), 1, str(tmp_path), "train.py")


def test_the_documents_of_a_prompt_file_are_lines(text_of, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "To be"}\n{"text": "or not"}\n')
    out = text_of("--start=To be\nor not")
    assert out.startswith("To be\nor not")
    assert text_of(f"--start=FILE:{tmp_path / 'x.jsonl'}") == out


def test_a_long_file_is_scored_as_the_text_it_is(text_of, tmp_path):
    text = "To be, or not to be\n" * 7000  # 140,000 characters: prepare.py reads two pieces
    (tmp_path / "x.txt").write_text(text)
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": text}))
    whole = text_of(f"--score={tmp_path / 'x.jsonl'}")
    assert text_of(f"--score={tmp_path / 'x.txt'}") == whole


def test_interactive_keeps_the_blanks_around_a_prompt(sampled, model, encoding):
    code, out, _ = sampled("--interactive", stdin=b"  To be \n")
    assert code == 0 and out == continuations(model, encoding, "  To be ")[0] + "\n"


def test_probs_above_the_number_of_tokens_shows_all(sampled, model):
    code, _, err = sampled("--start=To be", "--max_new_tokens=2", "--probs=100000")
    shares = [re.findall(r"(\d+\.\d)%", line) for line in err.splitlines()]
    assert code == 0 and [len(line) for line in shares] == [model.config.vocab_size] * 2
    assert all(sum(map(float, line)) == pytest.approx(100, abs=15) for line in shares)


@pytest.mark.parametrize("name", ["snapshot", "init_from", "export", "score", "stride",
                                  "interactive", "device"])
def test_a_setting_that_is_used_before_the_first_prompt_cannot_be_changed(name, sampled):
    code, out, err = sampled("--interactive", stdin=f"/{name} 1\n".encode())
    assert code == 0 and out == "" and f"{name} can't be changed now" in err


@pytest.mark.parametrize("arguments", [[], ["--compile"]], ids=str)
def test_compile_is_handed_to_the_model(arguments, sampled, monkeypatch):
    asked, stream = [], GPT.stream
    monkeypatch.setattr(GPT, "stream", lambda *rest, **options: (
        asked.append(options.get("compile")) or stream(*rest, **options)))
    assert sampled("--start=To be", *arguments)[0] == 0
    assert asked == [bool(arguments)]
