"""Generation: the cache, text beyond the block and decoding, against plain references.

The references here have no cache: for every new token they read the whole visible text again.
"""

import contextlib
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import model as model_module
from model import GPT, Cache, CUDAGraphCache, GPTConfig, beam_search, for_inference

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def tiny_model(block_size=16, vocab_size=60, n_embd=32, device="cpu"):
    """A model with random weights, so large that its predictions are far from uniform; those of
    ln_f have both signs, so that it doesn't just repeat the token that it reads."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size, vocab_size, n_layer=2, n_head=2, n_embd=n_embd))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2 * (32 / n_embd) ** 0.5)
        torch.nn.init.normal_(model.transformer.ln_f.weight)
    return model.to(device).eval()


def random_ids(*shape, vocab_size=60, device="cpu"):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1)).to(device)


def seeded(seed, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def visible(prompt_length, new, block_size):
    """Yield (start, end) of the text that is seen when each of the new tokens is predicted: when
    there is no room for one more, only the newest half of a block is kept."""
    start, end = max(0, prompt_length - block_size), prompt_length
    for _ in range(new):
        if end - start > block_size:
            start = end - max(1, block_size // 2)
        yield start, end
        end += 1


@torch.no_grad()
def plain_greedy(model, ids, new):
    for start, _ in visible(ids.size(1), new, model.config.block_size):
        logits = model(ids[:, start:])[0][:, -1]
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
    return ids


@torch.no_grad()
def plain_log_probs(model, ids):  # a list of ids -> a list of the next token's log-probabilities
    logits = model(torch.tensor([ids]))[0][0, -1]
    return F.log_softmax(logits.double(), dim=-1).tolist()


def plain_probs(model, ids, temperature=1.0, top_k=None, top_p=1.0):
    """The exact distribution that the next token is to be drawn from, computed number by number."""
    weights = {token: math.exp(log_prob / temperature)
               for token, log_prob in enumerate(plain_log_probs(model, ids))}
    likeliest = sorted(weights, key=weights.get, reverse=True)[:top_k or None]
    total = sum(weights[token] for token in likeliest)
    nucleus = []
    for token in likeliest:
        nucleus.append(token)
        if sum(weights[token] for token in nucleus) >= top_p * total:
            break
    total = sum(weights[token] for token in nucleus)
    return {token: weights[token] / total for token in nucleus}


def plain_beam_search(model, prompt, new, beams, length_penalty, eos_token):
    """Beam search as a textbook has it, beams that have ended competing with those that grow."""
    kept = [(0.0, [])]  # (log-probability, what follows the prompt)
    for _ in range(new):
        grown = []
        for so_far, ids in kept:
            if ids and ids[-1] == eos_token:
                grown.append((so_far, ids))
            else:
                grown += [(so_far + log_prob, ids + [token])
                          for token, log_prob in enumerate(plain_log_probs(model, prompt + ids))]
        kept = sorted(grown, key=lambda beam: -beam[0])[:beams]
    return sorted(kept, key=lambda beam: -beam[0] / len(beam[1]) ** length_penalty)


# ---- the cache ----------------------------------------------------------------------------------

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_embd", [32, 384])  # large matrices may have kernels of their own
@pytest.mark.parametrize("prompt_length", [1, 5, 16])
@pytest.mark.parametrize("batch_size", [1, 8])
@torch.no_grad()
def test_cached_logits_equal_a_plain_forward_pass_at_every_position(
        batch_size, prompt_length, n_embd, device):
    model = tiny_model(n_embd=n_embd, device=device)
    text = random_ids(batch_size, prompt_length, device=device)
    steps = model.stream(text, 40, generator=seeded(2, device))
    for (new, logits), (start, end) in zip(steps, visible(prompt_length, 40, 16), strict=True):
        plain = model(text[:, start:end])[0][:, -1]
        assert logits.shape == (batch_size, 60)
        torch.testing.assert_close(logits, plain, rtol=0, atol=1e-4)
        text = torch.cat((text, new), dim=1)
    assert text.size(1) == prompt_length + 40


@pytest.mark.parametrize("prompt_length", [1, 5, 16])
def test_greedy_text_is_the_same_with_and_without_a_cache(prompt_length):
    model = tiny_model()
    prompt = random_ids(3, prompt_length)
    plain = plain_greedy(model, prompt, 16)
    assert len(plain[0, prompt_length:].unique()) > 5  # not one token for ever
    assert model.generate(prompt, 16, temperature=0).equal(plain)


@pytest.mark.parametrize("block_size", [1, 2, 9, 16])
def test_text_of_three_blocks_continues_from_the_newest_half_of_each_full_block(block_size):
    model = tiny_model(block_size)
    prompt = random_ids(2, 1)
    plain = plain_greedy(model, prompt, 3 * block_size)
    assert model.generate(prompt, 3 * block_size, temperature=0).equal(plain)


def test_only_the_newest_block_of_a_longer_prompt_is_read():
    model = tiny_model()
    prompt = random_ids(2, 21)
    assert model.generate(prompt, 20, temperature=0).equal(plain_greedy(model, prompt, 20))


def test_a_token_costs_less_than_two_positions_of_work_however_long_the_text_is():
    model = tiny_model()
    prompt = random_ids(1, 1)

    def flops(new):
        with FlopCounterMode(display=False) as counter:
            model.generate(prompt, new, temperature=0)
        return counter.get_total_flops()

    one_position = flops(1)
    assert one_position > 2 * model.transformer.h[0].mlp.c_fc.weight.numel()
    assert flops(16) == pytest.approx(16 * one_position, rel=0.2)  # attention's part grows
    assert flops(160) < 2 * 160 * one_position


@pytest.mark.parametrize("n_embd", [32, 384])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_generates_in_half_precision(dtype, n_embd):
    model = tiny_model(n_embd=n_embd).to(dtype)
    prompt = random_ids(2, 5)
    with torch.no_grad():
        plain = model(prompt)[0][:, -1].float()
    first, second = model.stream(prompt, 2, temperature=0)
    torch.testing.assert_close(first[1].float(), plain, rtol=0.05, atol=0.2)
    with torch.no_grad():
        plain = model(torch.cat((prompt, first[0]), dim=1))[0][:, -1].float()
    torch.testing.assert_close(second[1].float(), plain, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("n_embd", [32, 384])
def test_text_follows_the_weights_when_they_change(n_embd):
    """Copies of the weights in a faster layout must not outlive a change of the weights, or an
    unfinished generation."""
    model = tiny_model(n_embd=n_embd)
    prompt = random_ids(1, 4)
    before = model.generate(prompt, 12, temperature=0)
    unfinished = model.stream(prompt, 12)
    next(unfinished)
    unfinished.close()
    loss = model(prompt, prompt)[1]
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.5 * parameter.grad)
    after = model.generate(prompt, 12, temperature=0)
    assert after.equal(plain_greedy(model, prompt, 12))
    assert not after.equal(before)


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_of_fixed_shape_gives_the_logits_of_a_plain_forward_pass(device):
    """What a CUDA graph records: a window of the cache is attended to, its empty part masked."""
    model = tiny_model(device=device)
    ids = random_ids(3, 16, device=device)
    cache = CUDAGraphCache(model, 3)
    with torch.no_grad():
        expected = model(ids, ids)[0]
        cache.read(ids[:, :5])
        for position in range(5, 16):
            logits = cache.read(ids[:, position:position + 1])
            torch.testing.assert_close(logits, expected[:, position], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_step_of_fixed_shape_attends_to_a_window_that_grows_by_256_positions(monkeypatch):
    windows = []
    attention = model_module.attention
    monkeypatch.setattr(model_module, "attention", lambda q, k, *rest: (
        windows.append(k.size(2)) or attention(q, k, *rest)))
    model = tiny_model(block_size=600)
    ids = random_ids(2, 600)
    expected = model(ids, ids)[0]
    cache = CUDAGraphCache(model, 2)
    cache.read(ids[:, :254])
    for position in range(254, 600):
        windows.clear()
        logits = cache.read(ids[:, position:position + 1])
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-4, atol=1e-4)
        assert windows == [min(600, 256 * (position // 256 + 1))] * 2


class FakeGraph(TorchDispatchMode):
    """Stands in for a CUDA graph on a CPU: replay repeats the recorded operators with the same
    tensors, and writes what they compute into the tensors that they returned at first."""
    replayed = []

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        assert "_local_scalar_dense" not in str(function), "while recording, nothing can be read"
        result = function(*arguments, **(options or {}))
        self.calls.append((function, arguments, options or {}, result))
        return result

    def replay(self):
        self.replayed.append(self)
        for function, arguments, options, result in self.calls:
            new = function(*arguments, **options)
            if isinstance(new, torch.Tensor):
                result, new = (result,), (new,)
            for before, after in zip(result, new):
                if isinstance(after, torch.Tensor) and after.data_ptr() != before.data_ptr():
                    before.copy_(after)  # (else it is a view, or was changed in place)


@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_recorded_and_replayed_steps_give_text_and_logits_of_the_plain_cache(
        batch_size, temperature, monkeypatch):
    model = tiny_model(block_size=300)
    prompt = random_ids(batch_size, 5)
    plain = list(model.stream(prompt, 500, temperature=temperature, generator=seeded(2)))
    replayed = []
    monkeypatch.setattr(FakeGraph, "replayed", replayed)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(model_module, "new_cache", lambda model, n_rows, *_: CUDAGraphCache(
        model, n_rows))
    found = list(model.stream(prompt, 500, temperature=temperature, generator=seeded(2)))
    for (ids, logits), (plain_ids, plain_logits) in zip(found, plain, strict=True):
        assert ids.equal(plain_ids)
        torch.testing.assert_close(logits, plain_logits, rtol=1e-4, atol=1e-4)
    # All but the prompt, the steps that were recorded, and the refilled cache of 150 tokens.
    assert len(replayed) == 500 - 1 - 2 - 2 and len(set(replayed)) == 2


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("known", [4, 11])
def test_one_or_several_tokens_may_follow_what_a_cache_holds(known, gradients):
    model, ids = tiny_model(), random_ids(2, 12)
    cache = Cache(model, 2)
    with torch.no_grad():
        model(ids[:, :known], cache=cache)
        expected = model(ids)[0]
    with torch.set_grad_enabled(gradients):
        logits = model(ids[:, known:], cache=cache)[0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("batch_size", [1, 8])
def test_text_is_the_same_with_steps_replayed_as_a_cuda_graph(batch_size):
    model = tiny_model(device="cuda")
    prompt = random_ids(batch_size, 5, device="cuda")
    expected = model.generate(prompt, 50, temperature=0)
    assert model.generate(prompt, 50, temperature=0, compile=True).equal(expected)


@pytest.mark.parametrize("dtype, rtol, atol", [(torch.float32, 1e-4, 1e-4),
                                               (torch.bfloat16, 0.05, 0.2)], ids=str)
@pytest.mark.parametrize("batch_size", [1, 8])
@torch.no_grad()
def test_a_model_for_inference_gives_the_logits_of_the_plain_one(batch_size, dtype, rtol, atol):
    plain = tiny_model(n_embd=384)
    fast = for_inference(tiny_model(n_embd=384), torch.device("cpu"), dtype)
    text = random_ids(batch_size, 5)
    for new, logits in fast.stream(text, 11, temperature=0):
        assert logits.dtype == dtype
        expected = plain(text)[0][:, -1].log_softmax(-1)
        torch.testing.assert_close(logits.float().log_softmax(-1), expected, rtol=rtol, atol=atol)
        text = torch.cat((text, new), dim=1)
    if dtype == torch.float32:
        assert text.equal(plain_greedy(plain, text[:, :5], 11))


def test_generating_keeps_nothing_for_a_backward_pass():
    """Outside of no_grad, a graph of all steps would grow with the text."""
    model = tiny_model()
    for _, logits in model.stream(random_ids(2, 5), 20):
        assert not logits.requires_grad


def test_tokens_come_one_by_one_while_the_text_grows():
    stream = tiny_model().stream(random_ids(1, 3), 10 ** 15)  # reserving nothing for all of it
    assert [next(stream)[0].shape for _ in range(5)] == [(1, 1)] * 5


class Adapted(torch.nn.Linear):  # as LoRA does it
    def forward(self, x):
        return super().forward(x) + 0.01 * x.sum(dim=-1, keepdim=True) * self.offset


def adapt(layer):
    layer.__class__ = Adapted
    layer.offset = torch.randn(layer.out_features, generator=seeded(1))


def keep_activations(layer):
    layer.register_forward_hook(lambda layer, inputs, output: setattr(layer, "last", output))
    layer(torch.ones(1, layer.in_features))


def replace_forward(layer):
    layer.forward = lambda x: -F.linear(x, layer.weight, layer.bias)


def scale_weight_norm(layer):
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(layer)
    with torch.no_grad():
        layer.weight_g.mul_(3)  # layer.weight is computed from it in the next forward pass


def scale_parametrized_weight(layer):
    torch.nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3)


@pytest.mark.parametrize("change", [
    adapt, keep_activations, replace_forward, scale_weight_norm, scale_parametrized_weight,
    lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    lambda layer: setattr(layer, "lock", threading.Lock())],
    ids=["adapter", "hook", "forward", "weight_norm", "parametrized", "pruned", "lock"])
def test_a_layer_that_somebody_has_changed_is_used_as_it_is(change):
    model = tiny_model(block_size=64, n_embd=512)  # large enough to be packed
    prompt = random_ids(3, 5)
    unchanged = model.generate(prompt, 40, temperature=0)
    change(model.transformer.h[0].mlp.c_fc)
    text = model.generate(prompt, 40, temperature=0)
    assert text.equal(plain_greedy(model, prompt, 40))
    if change in (adapt, replace_forward, scale_weight_norm, scale_parametrized_weight):
        assert not text.equal(unchanged)


def test_a_large_model_generates_under_autocast():
    model = tiny_model(block_size=64, n_embd=768)  # all of its layers are packed
    with torch.autocast("cpu", torch.bfloat16):
        assert model.generate(random_ids(3, 5), 40).shape == (3, 45)


# ---- how the next token is chosen ---------------------------------------------------------------

def test_temperature_0_takes_the_likeliest_whatever_the_other_options_are():
    model = tiny_model()
    prompt = random_ids(4, 3)
    text = model.generate(prompt, 10, temperature=0, top_k=5, top_p=0.3, generator=seeded(3))
    assert text.equal(plain_greedy(model, prompt, 10))


def binomial_tail(count, n, p):
    """The probability of a count at least as far from n * p as this one, in n draws."""
    distance = abs(count - n * p)
    return sum(math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
                        + k * math.log(p) + (n - k) * math.log1p(-p)) if p < 1 else float(k == n)
               for k in range(n + 1) if abs(k - n * p) >= distance - 1e-9)


@pytest.mark.parametrize("options", [
    dict(), dict(temperature=0.5), dict(temperature=2.0), dict(top_k=5), dict(top_k=60),
    dict(top_k=1000), dict(top_p=0.5), dict(top_p=0.9), dict(top_p=1.0), dict(top_p=1e-6),
    dict(temperature=0.7, top_k=10, top_p=0.8), dict(temperature=1.5, top_k=1)], ids=str)
def test_tokens_are_drawn_with_the_exact_probabilities(options):
    model = tiny_model(block_size=4)
    prompt = random_ids(1, 3)
    n = 8_000
    drawn = model.generate(prompt.expand(n, -1), 1, generator=seeded(4), **options)[:, -1]
    counts = drawn.bincount(minlength=60).tolist()
    exact = plain_probs(model, prompt[0].tolist(), **options)
    assert {token for token, count in enumerate(counts) if count} <= exact.keys()
    for token, p in exact.items():
        assert binomial_tail(counts[token], n, p) > 1e-6, token


def test_the_options_of_the_test_above_leave_different_numbers_of_tokens():
    model = tiny_model(block_size=4)
    prompt = random_ids(1, 3)[0].tolist()
    sizes = [len(plain_probs(model, prompt, **options)) for options in
             (dict(), dict(top_p=0.9), dict(top_p=0.5), dict(top_k=5), dict(top_p=1e-6))]
    assert sizes[0] == 60 > sizes[1] > sizes[2] > 1 == sizes[4] and sizes[3] == 5


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    model = tiny_model()
    prompt = random_ids(2, 3)
    first, again, other = (model.generate(prompt, 20, generator=seeded(seed)) for seed in (5, 5, 6))
    assert first.equal(again)
    assert not first.equal(other)
    by_position = model.generate(prompt, 20, 0.7, 9, generator=seeded(5))
    assert by_position.equal(model.generate(prompt, 20, temperature=0.7, top_k=9,
                                            generator=seeded(5)))


def test_each_row_of_a_batch_is_continued_by_itself():
    model = tiny_model()
    prompts = random_ids(5, 3)
    alone = [model.generate(prompt[None], 30, temperature=0) for prompt in prompts]
    assert model.generate(prompts, 30, temperature=0).equal(torch.cat(alone))
    same = prompts[:1].expand(5, -1)
    assert len(model.generate(same, 10, generator=seeded(7)).unique(dim=0)) == 5


@pytest.mark.parametrize("options", [dict(), dict(temperature=0.5, top_k=9, top_p=0.9)], ids=str)
def test_the_text_of_a_row_does_not_depend_on_the_number_of_rows(options):
    model = tiny_model()
    prompt = random_ids(1, 3)
    texts = [model.generate(prompt.expand(n, -1), 100, generator=seeded(7), **options)
             for n in (1, 2, 5)]
    assert texts[0].equal(texts[1][:1]) and texts[1].equal(texts[2][:2])
    assert not texts[2][0].equal(texts[2][1])


def test_a_row_repeats_eos_token_after_it_and_the_text_ends_when_all_rows_have_it():
    model = tiny_model()
    prompts = random_ids(6, 3)
    eos = model.generate(prompts, 1, generator=seeded(8))[0, -1].item()  # the first row begins so
    free = model.generate(prompts, 400, generator=seeded(8))[:, 3:].tolist()
    lengths = [row.index(eos) + 1 for row in free]  # raises if a row never comes to it
    assert min(lengths) == 1 and 1 < max(lengths) < 400
    text = model.generate(prompts, 400, eos_token=eos, generator=seeded(8))
    assert text.equal(torch.cat((prompts, torch.tensor(
        [row[:length] + [eos] * (max(lengths) - length) for row, length in zip(free, lengths)])),
        dim=1))


def test_an_eos_token_in_the_prompt_does_not_end_the_text():
    model = tiny_model()
    prompt = random_ids(1, 3)
    text = plain_greedy(model, prompt, 5)
    unused = next(token for token in range(60) if token not in text)
    prompt[0, 0] = unused
    plain = plain_greedy(model, prompt, 5)
    assert unused not in plain[0, 3:]
    assert model.generate(prompt, 5, temperature=0, eos_token=unused).equal(plain)


# ---- beams --------------------------------------------------------------------------------------

def assert_same_beams(found, prompt, expected):
    assert [ids for ids, _ in found] == [prompt + ids for _, ids in expected]
    for (_, log_prob), (plain, _) in zip(found, expected):
        assert log_prob == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [1, 2, 4, 7])
def test_beam_search_finds_what_a_plain_search_without_cache_finds(beams, length_penalty):
    model = tiny_model()
    prompt = random_ids(1, 4)
    for eos_token in (None, *range(0, 60, 6)):
        found = beam_search(model, prompt, 8, beams, length_penalty, eos_token)
        assert_same_beams(found, prompt[0].tolist(), plain_beam_search(
            model, prompt[0].tolist(), 8, beams, length_penalty, eos_token))


def test_the_searches_of_the_test_above_reach_ends_and_length_penalty_reorders_them():
    model = tiny_model()
    prompt = random_ids(1, 4)[0].tolist()
    ends = {eos: [plain_beam_search(model, prompt, 8, 4, penalty, eos) for penalty in (0.0, 2.0)]
            for eos in range(0, 60, 6)}
    lengths = {len(ids) for results in ends.values() for _, ids in results[0]}
    assert len(lengths) > 2
    assert any(flat != long for flat, long in ends.values())


def test_a_search_with_enough_beams_ranks_all_continuations_there_are():
    model = tiny_model(vocab_size=5)
    prompt = [1, 4]
    every = [[]]
    for _ in range(3):
        every = [ids + [token] for ids in every for token in range(5)]
    scored = []
    for ids in every:
        log_probs = [plain_log_probs(model, prompt + ids[:i])[ids[i]] for i in range(3)]
        scored.append((sum(log_probs), ids))
    scored.sort(key=lambda beam: -beam[0])
    found = beam_search(model, torch.tensor([prompt]), 3, beams=125)
    assert_same_beams(found, prompt, scored)
    few = beam_search(model, torch.tensor([prompt]), 3, beams=25)  # complete for two steps
    assert few[0][0] == found[0][0]


def test_beams_are_never_more_than_there_are_continuations():
    model = tiny_model(vocab_size=5)
    found = beam_search(model, torch.tensor([[1, 4]]), 1, beams=7)
    assert sorted(ids[-1] for ids, _ in found) == [0, 1, 2, 3, 4]
    assert sum(math.exp(log_prob) for _, log_prob in found) == pytest.approx(1, abs=1e-4)


def test_one_beam_is_greedy_decoding_up_to_eos_token():
    model = tiny_model()
    prompt = random_ids(1, 4)
    plain = plain_greedy(model, prompt, 12)[0].tolist()
    assert beam_search(model, prompt, 12, beams=1)[0][0] == plain
    for eos in range(60):  # an end that is only second best is not taken
        end = plain.index(eos, 4) + 1 if eos in plain[4:] else len(plain)
        assert beam_search(model, prompt, 12, 1, eos_token=eos)[0][0] == plain[:end]


def test_beams_may_outgrow_the_block():
    model = tiny_model()
    prompt = random_ids(1, 3)
    text = plain_greedy(model, prompt, 48)
    found = beam_search(model, prompt, 48, beams=1)
    assert found[0][0] == text[0].tolist()
    ids, log_prob = beam_search(model, prompt, 48, beams=3)[0]
    plain = [plain_log_probs(model, ids[start:end])[ids[end]]
             for start, end in visible(3, 48, 16)]
    assert log_prob == pytest.approx(sum(plain), abs=1e-3)


# ---- invalid options ----------------------------------------------------------------------------

@pytest.mark.parametrize("prompt_length, options, named", [
    (0, dict(), "0 tokens"), (3, dict(temperature=-0.5), "temperature=-0.5"),
    (3, dict(top_k=-1), "top_k=-1"), (3, dict(top_p=0.0), "top_p=0.0"),
    (3, dict(top_p=1.5), "top_p=1.5")])
def test_an_invalid_option_raises_a_value_error_that_names_it(
        prompt_length, options, named):
    with pytest.raises(ValueError, match=named):
        tiny_model().generate(random_ids(1, prompt_length), 3, **options)


# ---- eight bits ---------------------------------------------------------------------------------

def test_a_model_gets_eight_bits_without_a_warning(recwarn):
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else some come once in a process
    for_inference(tiny_model(), torch.device("cpu"), "int8")
    torch.set_warn_always(before)
    assert not [str(warning.message) for warning in recwarn]


def test_eight_bits_change_the_loss_by_less_than_half_a_percent():
    model = tiny_model(n_embd=384)
    ids = random_ids(8, 16)
    with torch.no_grad():
        expected = F.cross_entropy(model(ids[:, :-1], ids[:, 1:])[0].flatten(0, 1),
                                   ids[:, 1:].flatten())
        model = for_inference(model, torch.device("cpu"), "int8")
        found = F.cross_entropy(model(ids[:, :-1], ids[:, 1:])[0].flatten(0, 1),
                                ids[:, 1:].flatten())
    assert found.item() == pytest.approx(expected.item(), rel=0.005)
    assert not found.equal(expected)
    assert model.generate(ids[:2, :4], 40, temperature=0).shape == (2, 44)


def test_without_a_generator_the_seed_of_torch_decides_the_text():
    model, prompt, texts = tiny_model(), random_ids(1, 3), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(model.generate(prompt, 20))
    assert texts[0].equal(texts[1]) and not texts[0].equal(texts[2])


@pytest.mark.parametrize("tokenizer, n_ids", [
    (None, 60), ({"tokens": 50 * ["x"]}, 51),
    ({"tokens": 50 * ["x"], "special": {"<a>": 50, "<b>": 51}}, 52),
    ({"tokens": [None, *50 * ["x"]], "special": {"<a>": 0}}, 51)])
def test_every_token_of_the_tokenizer_may_be_drawn_and_no_other_row_of_wte(tokenizer, n_ids):
    model = tiny_model()
    model.tokenizer = tokenizer
    new = model.generate(random_ids(1, 3).expand(2000, -1), 1, temperature=1e6,
                         generator=seeded(1))[:, -1]
    assert new.unique().tolist() == list(range(n_ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, "int8"], ids=str)
def test_a_model_for_inference_is_precise_where_all_logits_are_near_minus_100(dtype):
    model, ids = tiny_model(n_embd=384), random_ids(4, 16)
    with torch.no_grad():
        model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0, -10
        model.transformer.wte.weight[:, 0], model.transformer.wpe.weight[:, 0] = 10, -10
        expected = model(ids, ids)[0]
        found = for_inference(model, torch.device("cpu"), dtype)(ids, ids)[0].float()
        assert expected.mean() < -90
        difference = found.log_softmax(-1) - expected.log_softmax(-1)
    assert difference.square().mean().sqrt() < 0.1


def test_a_step_of_fixed_shape_does_not_depend_on_what_was_in_the_memory_of_its_cache(monkeypatch):
    model, ids = tiny_model(), random_ids(1, 16)
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "empty", lambda shape, **options: torch.full(shape, math.nan,
                                                                          **options))
        cache = CUDAGraphCache(model, 1)
    with torch.no_grad():
        cache.read(ids[:, :5])
        torch.testing.assert_close(cache.read(ids[:, 5:6]), model(ids[:, :6])[0][:, -1],
                                   rtol=1e-4, atol=1e-4)


def test_more_tokens_than_the_block_has_room_for_behind_a_cache_are_refused():
    model, ids = tiny_model(), random_ids(1, 17)
    cache = Cache(model, 1)
    with torch.no_grad():
        model(ids[:, :10], cache=cache)
        with pytest.raises(ValueError, match="17 tokens: expected from 1 to block_size=16"):
            model(ids[:, 10:], cache=cache)


def test_the_random_numbers_of_a_row_do_not_repeat():
    steps = model_module.uniform_rows(2, seeded(1), "cpu")
    numbers = torch.cat([next(steps) for _ in range(1024)], dim=1)  # made 256 at a time
    parts = numbers.view(2 * 4, 256)
    assert len(parts.unique(dim=0)) == 8 and abs(numbers.mean() - 0.5) < 0.03


@pytest.mark.parametrize("temperature", [1e-7, 1e-40, 1e-320])
def test_a_temperature_near_0_takes_the_likeliest_token(temperature):
    model, prompt = tiny_model(), random_ids(2, 3)
    found = model.generate(prompt, 10, temperature=temperature)
    assert found.equal(plain_greedy(model, prompt, 10))
