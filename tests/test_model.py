"""model.py: what makes it GPT-2, checked against arithmetic and plain references."""

import math

import pytest
import torch
import torch.nn.functional as F

from model import (
    GPT,
    SIZES,
    GPTConfig,
    get_device,
    linear_cross_entropy,
)

TINY = GPTConfig(block_size=16, vocab_size=61, n_layer=2, n_head=2, n_embd=32)


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**{**TINY.__dict__, **changes}))


def batch(B=3, T=16, seed=1):
    return torch.randint(61, (2, B, T), generator=torch.Generator().manual_seed(seed))


def plain_gpt2(weights, idx, n_layer, n_head):
    """GPT-2 written out with explicit softmax, mask and tanh: weights by name, (T,) -> (T, V)."""
    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * weights[name + ".weight"] + weights[name + ".bias"]

    def linear(x, name):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    T = len(idx)
    x = weights["transformer.wte.weight"][idx] + weights["transformer.wpe.weight"][:T]
    for i in range(n_layer):
        h = f"transformer.h.{i}."
        q, k, v = linear(norm(x, h + "ln_1"), h + "attn.c_attn").chunk(3, -1)
        heads = []
        for a, b, c in zip(*(t.chunk(n_head, -1) for t in (q, k, v))):
            scores = a @ b.T / math.sqrt(a.size(-1))
            scores = scores.masked_fill(torch.ones(T, T).triu(1) > 0, -math.inf)
            heads.append(scores.exp() / scores.exp().sum(-1, keepdim=True) @ c)
        x = x + linear(torch.cat(heads, -1), h + "attn.c_proj")
        y = linear(norm(x, h + "ln_2"), h + "mlp.c_fc")
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y ** 3)))
        x = x + linear(y, h + "mlp.c_proj")
    return norm(x, "transformer.ln_f") @ weights["transformer.wte.weight"].T


def test_logits_equal_gpt2_written_out_plainly():
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerNorms away from 0 and 1
            parameter.add_(torch.randn_like(parameter) * 0.1)
        x, y = batch()
        logits, loss = model(x, y)
        expected = torch.stack([plain_gpt2(model.state_dict(), row, 2, 2) for row in x])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, F.cross_entropy(expected.flatten(0, 1), y.flatten()))


def test_a_later_token_changes_no_earlier_logit():
    model = tiny()
    x, y = batch()
    with torch.no_grad():
        before = model(x, y)[0]
        for t in range(1, 16):
            changed = x.clone()
            changed[:, t] = (changed[:, t] + 1) % 61
            after = model(changed, y)[0]
            assert torch.equal(before[:, :t], after[:, :t])
            assert not torch.allclose(before[:, t], after[:, t])


@pytest.mark.parametrize("return_logits", [True, False])
def test_gradients_reach_every_parameter(return_logits):
    model = tiny()
    model(*batch(), return_logits=return_logits)[1].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_embedding_and_the_output_layer_are_one_matrix():
    model = tiny()
    assert model.lm_head.weight is model.transformer.wte.weight
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
    assert model(batch()[0])[0].abs().max() == 0


def test_the_initial_loss_is_near_that_of_guessing():
    model = tiny(vocab_size=2000)
    x, y = torch.randint(2000, (2, 8, 16))
    assert abs(model(x, y)[1].item() - math.log(2000)) < 0.1


def test_the_residual_projections_are_initialized_smaller_by_the_root_of_twice_the_depth():
    model = tiny(n_layer=8, n_embd=128)
    for block in model.transformer.h:
        for part, std in ((block.attn.c_attn, 0.02), (block.mlp.c_fc, 0.02),
                          (block.attn.c_proj, 0.02 / 4), (block.mlp.c_proj, 0.02 / 4)):
            assert abs(part.weight.std().item() / std - 1) < 0.05
            assert part.bias.abs().max() == 0


def value_and_gradients(loss_of, x, weight):
    x = x.clone().requires_grad_()
    weight = weight.clone().requires_grad_()
    loss = loss_of(x, weight)
    return loss, *torch.autograd.grad(loss, (x, weight))


@pytest.mark.parametrize("n, vocab_size", [(7, 61), (7, 128), (100, 180_000)])  # the last in chunks
@pytest.mark.parametrize("is_cuda", [True, False])  # as on a GPU: with padding
def test_each_loss_equals_cross_entropy_in_value_and_gradients(
        is_cuda, n, vocab_size, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cuda", is_cuda)
    torch.manual_seed(0)
    x, weight = torch.randn(6, n, 8), torch.randn(vocab_size, 8)
    targets = torch.randint(vocab_size, (6, n))
    targets[0, 3] = targets[5] = -1  # these don't count

    def found(x, weight):
        return linear_cross_entropy(x.flatten(0, 1), weight, targets.flatten())

    def expected(x, weight):
        return F.cross_entropy((x @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=-1)

    for a, b in zip(value_and_gradients(found, x, weight),
                    value_and_gradients(expected, x, weight)):
        torch.testing.assert_close(a, b, atol=3e-6, rtol=1e-4)


@pytest.mark.parametrize("is_cuda", [True, False])
def test_a_loss_in_bfloat16_has_float32s_precision_where_all_logits_are_near_minus_100(
        is_cuda, monkeypatch):
    """GPT-2's logits are near -100, where bfloat16 has steps of 0.5."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 400, 32), torch.randn(61, 32)
    x[..., 0], weight[:, 0] = -10, 0
    targets = torch.randint(61, (1, 400))
    expected = F.cross_entropy((x @ weight.T).flatten(0, 1), targets.flatten())
    weight[:, 0] = 10  # the same probabilities from logits that are 100 lower
    monkeypatch.setattr(torch.Tensor, "is_cuda", is_cuda)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(x[0], weight, targets[0])
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)


def test_the_loss_without_logits_is_the_loss_with_them():
    model = tiny()
    x, y = batch()
    logits, loss = model(x, y)
    none, same = model(x, y, return_logits=False)
    assert none is None and logits.shape == (3, 16, 61)
    torch.testing.assert_close(loss, same)


def test_without_targets_only_the_last_position_is_predicted():
    model = tiny()
    x, y = batch()
    logits, loss = model(x)
    assert loss is None and logits.shape == (3, 1, 61)
    torch.testing.assert_close(logits[:, 0], model(x, y)[0][:, -1])


@pytest.mark.parametrize("name, parameters", [
    ("gpt2", 124_439_808), ("gpt2-medium", 354_823_168),
    ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)])
def test_gpt2s_sizes_have_the_published_number_of_parameters(name, parameters):
    with torch.device("meta"):
        assert GPT(GPTConfig(**SIZES[name])).num_params() == parameters


def test_each_size_has_the_published_width_of_a_head():  # (numbers of parameters don't tell it)
    widths = {"gpt3-760m": 96, "gpt3-1.3b": 128, "gpt3-2.7b": 80, "gpt3-6.7b": 128,
              "gpt3-13b": 128, "gpt3-175b": 128}
    for name, shape in SIZES.items():
        assert shape["n_embd"] == shape["n_head"] * widths.get(name, 64)


def test_dropout_is_in_the_embeddings_and_both_parts_of_a_block_in_training_only():
    model = tiny(dropout=0.5)
    x, y = batch()
    block = model.transformer.h[1]
    for part in (None, model.transformer.drop, block.attn.dropout, block.mlp.dropout):
        model.eval()
        if part:
            part.train()
        assert torch.equal(model(x, y)[0], model(x, y)[0]) == (part is None)


def test_flops_per_token_are_six_a_weight_and_attention():
    # counted by hand: a block has 12 * 32^2 weights, 9 * 32 biases, 4 * 32 in LayerNorms
    weights = 2 * (12 * 32 ** 2 + 13 * 32) + 61 * 32 + 2 * 32
    assert tiny().flops_per_token() == 6 * weights + 12 * 2 * 32 * 16


def test_weight_decay_groups_hold_each_parameter_once():
    model = tiny()
    matrices, embeddings, vectors = model.parameter_groups()
    assert len(matrices) == 2 * 4 and all(p.dim() == 2 for p in matrices)
    assert {id(p) for p in embeddings} == {id(model.transformer.wte.weight),
                                           id(model.transformer.wpe.weight)}
    assert all(p.dim() == 1 for p in vectors)
    together = [id(p) for p in matrices + embeddings + vectors]
    assert sorted(together) == sorted(id(p) for p in model.parameters())


def test_a_cropped_model_gives_the_same_logits_within_its_block():
    model = tiny()
    x, y = batch(T=8)
    before = model(x, y)[0]
    model.crop_block_size(8)
    assert model.config.block_size == 8 and torch.equal(before, model(x, y)[0])
    with pytest.raises(ValueError, match="block_size"):
        model(batch(T=9)[0])
    with pytest.raises(ValueError, match="block_size"):
        model.crop_block_size(9)


def test_a_cropped_model_does_not_keep_the_memory_of_the_positions_it_dropped():
    model = tiny()
    model.crop_block_size(8)
    weight = model.transformer.wpe.weight
    assert weight.untyped_storage().nbytes() == weight.nbytes  # (torch.save writes all of it)


def test_cropping_a_model_leaves_another_of_the_same_config_as_it_was():
    config = GPTConfig(block_size=32, vocab_size=61, n_layer=1, n_head=1, n_embd=8)
    cropped, other = GPT(config), GPT(config)
    cropped.crop_block_size(8)
    assert cropped.config.block_size == 8 and other.config.block_size == 32
    assert other(batch(T=9)[0])[0].shape[1] > 0


def test_a_model_without_biases_has_none():
    model = tiny(bias=False)
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    assert model(*batch())[1].item() > 0


@pytest.mark.parametrize("changes, word", [({"n_embd": 30, "n_head": 4}, "n_head"),
                                           ({"n_layer": 0}, "n_layer"),
                                           ({"dropout": 1.0}, "dropout"),
                                           ({"vocab_size": -5}, "vocab_size")])
def test_an_impossible_shape_is_refused_by_name(changes, word):
    with pytest.raises(ValueError, match=word):
        tiny(**changes)


@pytest.mark.parametrize("capabilities, dtype", [
    ({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16),
    ({"amx_bf16": True, "avx512_fp16": True}, torch.bfloat16),
    ({"avx512_bf16": True, "avx512_fp16": True}, torch.float32)])
def test_a_cpu_computes_in_bfloat16_where_that_is_faster(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert get_device("cpu") == (torch.device("cpu"), dtype)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert get_device("cpu") == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_that_is_given_is_used(dtype):
    assert get_device("cpu", dtype) == (torch.device("cpu"), getattr(torch, dtype))


@pytest.mark.parametrize("settings, word", [({"device": "abacus"}, "abacus"),
                                            ({"device": "cuda:99"}, "cuda:99")])
def test_an_unknown_device_is_refused_by_name(settings, word):
    with pytest.raises(ValueError, match=word):
        get_device(**settings)


def test_gradients_in_bfloat16_stay_close_to_those_in_float32():
    gradients = []
    for enabled in (False, True):
        model = tiny()
        ids = torch.randint(61, (8, 17), generator=torch.Generator().manual_seed(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model(ids[:, :-1], ids[:, 1:], return_logits=False)[1].backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.999
    assert gradients[1].norm().item() == pytest.approx(gradients[0].norm().item(), rel=0.01)
    assert not gradients[0].equal(gradients[1])


def test_the_loss_of_a_model_in_bfloat16_is_computed_in_float32():
    model = tiny().bfloat16()
    x, y = batch()
    logits, loss = model(x, y)
    expected = F.cross_entropy(logits.double().flatten(0, 1), y.flatten())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="needs PyTorch 2.13")
def test_only_many_logits_are_computed_in_parts(monkeypatch):
    calls, original = [], F.linear_cross_entropy
    monkeypatch.setattr(F, "linear_cross_entropy", lambda *arguments, **options: (
        calls.append(options["options"].batch_chunk_size) or original(*arguments, **options)))
    for n_rows, in_parts in ((600, False), (2100, True)):  # of 48,000 logits
        linear_cross_entropy(torch.randn(n_rows, 2), torch.randn(48_000, 2),
                             torch.zeros(n_rows, dtype=torch.int64))
        assert len(calls) == in_parts
    assert calls == [512]


@pytest.mark.parametrize("T, training, dtype", [
    (255, True, torch.float32), (256, True, torch.bfloat16), (255, False, torch.bfloat16)])
def test_attention_over_short_contexts_is_trained_in_float32(T, training, dtype, monkeypatch):
    found, original = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *rest, **options: (
        found.append(q.dtype) or original(q, *rest, **options)))
    model = tiny(block_size=256)
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        model(*batch(1, T))
    assert found == [dtype] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_cpus_cache_is_in_float32_and_is_not_copied_in_each_step(dtype, monkeypatch):
    pointers, original = set(), F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **options: (
        pointers.add((k.data_ptr(), k.dtype)) or original(q, k, v, **options)))
    model = tiny(block_size=64).to(dtype).eval()
    with torch.inference_mode():
        text = model.generate(batch(2, 5)[0], 20)
    assert text.shape == (2, 25)
    assert len(pointers) == 2 and {dtype for _, dtype in pointers} == {torch.float32}  # two layers


def test_the_embeddings_begin_with_a_standard_deviation_of_0_02():
    model = tiny(vocab_size=1000, block_size=1000)
    for part in (model.transformer.wte, model.transformer.wpe):
        assert abs(part.weight.std().item() / 0.02 - 1) < 0.05
