"""What other tools make of an exported folder: the same ids, the same logits, the same text."""

import json

import pytest
import torch
from conftest import ROOT, TINY, call, succeed  # noqa: F401

from model import GPT, GPTConfig, for_inference
from prepare import load_tokenizer

BLOCK_SIZE = 64
SENTENCES = [
    "a , b", " don't we'll they've ...  end ", "To be, or not to be: that is the question.",
    "Où est l'été, señor?", "Съешь же ещё этих булок", "Ξεσκεπάζω την ψυχοφθόρα", "שלום עולם!",
    "كيف حالك؟ ۱۲۳", "नमस्ते दुनिया १२३", "สวัสดีชาวโลก",
    "我能吞下玻璃而不伤身体。", "いろはにほへと カタカナ",
    "한국어 문장", "🙂👩‍👩‍👧‍👦 e\u0301 ﬁ ½",
    "tabs\tand\r\nlines\n\n\n  \u00a0x\u3000y", "aaaaaaa abababab 1234567"]
PROMPT = "O gentle night, "


@pytest.fixture(scope="session")
def exported(data_dir, tmp_path_factory):
    """The folder of a model with BLOCK_SIZE positions. Its weights are random, and so large that
    what is likeliest at a position is far ahead of the rest, in any tool's arithmetic."""
    folder = tmp_path_factory.mktemp("ecosystem")
    options = [*TINY, f"--block_size={BLOCK_SIZE}", "--max_iters=1", "--snapshot_interval=1"]
    succeed("train", *options, f"--data_dir={data_dir}", f"--out_dir={folder / 'run'}")
    succeed("sample", f"--out_dir={folder / 'run'}", f"--export={folder / 'first'}")
    model = GPT.from_pretrained(folder / "first")
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.25, generator=draw)
    model.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def model(exported):
    return GPT.from_pretrained(exported).eval()


@pytest.fixture(scope="session")
def encoding(model):
    return load_tokenizer(model.tokenizer)


@pytest.fixture(scope="session")
def greedy(model, encoding):
    """The ids of PROMPT, and the ids of what follows it, up to the end of the block."""
    prompt = encoding.encode_ordinary(PROMPT)
    new = BLOCK_SIZE - len(prompt)
    ids = model.generate(torch.tensor([prompt]), new, temperature=0)[0].tolist()
    continuation = ids[len(prompt):]
    assert encoding.end_id not in continuation  # where tools stop: take another seed
    assert len(set(continuation)) > 5
    return prompt, continuation


def test_greedy_has_no_ties(model, greedy):
    ids = torch.tensor([greedy[0] + greedy[1]])
    with torch.no_grad():
        best = model(ids, ids)[0].topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > 1e-3


def test_transformers_computes_the_same_logits(exported, model):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    ids = torch.randint(model.config.vocab_size, (2, BLOCK_SIZE))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids, ids)[0], atol=1e-4, rtol=1e-4)


def test_transformers_finds_every_weight_and_no_other(exported):
    transformers = pytest.importorskip("transformers")
    _, report = transformers.AutoModelForCausalLM.from_pretrained(
        exported, output_loading_info=True)
    assert not any(report.values()), report


@pytest.mark.parametrize("sentence", SENTENCES)
def test_transformers_gives_the_same_ids_and_the_text_back(exported, encoding, sentence):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    ids = tokenizer.encode(sentence)
    assert ids == encoding.encode_ordinary(sentence)
    assert tokenizer.decode(ids) == sentence


@pytest.mark.parametrize("sentence", SENTENCES)
def test_merges_txt_alone_gives_the_same_ids(exported, encoding, sentence):
    """Tools without ignore_merges see nothing but vocab.json and merges.txt."""
    tokenizers = pytest.importorskip("tokenizers")
    files = str(exported / "vocab.json"), str(exported / "merges.txt")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert tokenizer.encode(sentence).ids == encoding.encode_ordinary(sentence)


def test_merges_txt_makes_every_token_of_its_bytes(exported):
    tokenizers = pytest.importorskip("tokenizers")
    files = str(exported / "vocab.json"), str(exported / "merges.txt")
    bpe = tokenizers.models.BPE.from_file(*files)
    vocabulary = json.loads((exported / "vocab.json").read_text(encoding="utf-8"))
    del vocabulary["<|endoftext|>"]
    for token, i in vocabulary.items():
        assert [each.id for each in bpe.tokenize(token)] == [i]


def test_transformers_pipeline_without_a_length_ends_at_the_block(exported, encoding):
    transformers = pytest.importorskip("transformers")
    generate = transformers.pipeline("text-generation", model=str(exported))
    text = generate(PROMPT)[0]["generated_text"]  # IndexError beyond the last position
    assert text.startswith(PROMPT)


def test_transformers_pipeline_writes_the_same_greedy_text(exported, encoding, greedy):
    transformers = pytest.importorskip("transformers")
    generate = transformers.pipeline("text-generation", model=str(exported))
    text = generate(PROMPT, do_sample=False)[0]["generated_text"]
    assert text == encoding.decode(greedy[0] + greedy[1])


def test_ctranslate2_writes_the_same_greedy_text(exported, encoding, greedy, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    transformers = pytest.importorskip("transformers")
    ctranslate2.converters.TransformersConverter(str(exported)).convert(str(tmp_path / "converted"))
    generator = ctranslate2.Generator(str(tmp_path / "converted"), compute_type="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    prompt = tokenizer.convert_ids_to_tokens(tokenizer.encode(PROMPT))
    result = generator.generate_batch([prompt], max_length=len(greedy[1]), sampling_topk=1,
                                      include_prompt_in_result=False)
    ids = result[0].sequences_ids[0]
    assert ids == greedy[1]
    assert tokenizer.decode(ids) == encoding.decode(greedy[1])


def test_mlx_lm_writes_the_same_greedy_text(exported, encoding, greedy):
    mlx_lm = pytest.importorskip("mlx_lm")  # pip install 'mlx[cpu]' mlx-lm
    theirs, tokenizer = mlx_lm.load(str(exported))
    text = mlx_lm.generate(theirs, tokenizer, PROMPT, max_tokens=len(greedy[1]))
    assert text == encoding.decode(greedy[1])


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_takes_other_batches_and_lengths(model, strict):
    length = torch.export.Dim("length", min=2, max=BLOCK_SIZE)
    sizes = {0: torch.export.Dim("batch", min=2), 1: length}
    ids = torch.randint(model.config.vocab_size, (3, 17))
    with torch.no_grad():
        program = torch.export.export(model, (ids, ids), dynamic_shapes=(sizes, sizes),
                                      strict=strict).module()
        for shape in [(2, 2), (5, 9), (4, BLOCK_SIZE)]:
            ids = torch.randint(model.config.vocab_size, shape)
            logits, loss = program(ids, ids)
            expected, expected_loss = model(ids, ids)
            torch.testing.assert_close(logits, expected)
            torch.testing.assert_close(loss, expected_loss)


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_of_16_bits_takes_any_length(strict):
    model = GPT(GPTConfig(block_size=300, vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    model = for_inference(model, torch.device("cpu"), torch.bfloat16)
    sizes = {1: torch.export.Dim("length", min=2, max=300)}
    program = torch.export.export(model, (torch.zeros(1, 8, dtype=torch.int64),),
                                  dynamic_shapes=(sizes,), strict=strict).module()
    for T in (5, 300):
        ids = torch.randint(64, (1, T))
        torch.testing.assert_close(program(ids)[0], model(ids)[0])


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_predicts_the_next_token_at_any_length(model, strict):
    length = torch.export.Dim("length", min=2, max=BLOCK_SIZE)
    ids = torch.randint(model.config.vocab_size, (2, 8))
    with torch.no_grad():
        program = torch.export.export(
            model, (ids,), dynamic_shapes=({0: torch.export.Dim("batch"), 1: length},),
            strict=strict).module()
        for shape in [(1, 5), (3, BLOCK_SIZE)]:
            ids = torch.randint(model.config.vocab_size, shape)
            torch.testing.assert_close(program(ids)[0], model(ids)[0])
