"""GPT-2: the network, its loss, text generation with a key/value cache, and files of weights.

This is GPT-2 (Radford et al. 2019) without attention dropout, which fast CPU kernels lack:
- learned positions, added to the token embeddings
- LayerNorm before attention and before the MLP (with tanh GELU), and one at the end
- biases in all linear layers but the output matrix, which is the token embedding (tied weights)
"""

import io
import json
import math
import os
import re
import sys
import tempfile
import warnings
import zipfile
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import prepare


@dataclass
class GPTConfig:
    block_size: int = 1024  # longest context, in tokens
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768  # width: numbers for each position; C below
    dropout: float = 0.0
    bias: bool = True  # biases in the linear layers and LayerNorms, as GPT-2 has them

    def __post_init__(self):
        for name, value in vars(self).items():
            if name not in ("dropout", "bias") and (type(value) is not int or value < 1):
                raise ValueError(f"{name}={value}: expected an integer of at least 1")
        if self.n_embd % self.n_head != 0:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: expected at least 0 and below 1")


class CausalSelfAttention(nn.Module):
    """Every position gathers information from itself and the positions before it."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer  # the index of this layer's keys and values in the cache
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None):  # (B texts, T tokens, C) -> (B, T, C)
        B, T, C = x.shape
        # What a position looks for (query), contains (key) and passes on (value), in every head:
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)  # from (B, T, 3C)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, n_head, T, head_dim) each
        # attention() calls F.scaled_dot_product_attention. Without a cache it is the same as
        #     later = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        #     scores = ((q @ k.mT) / math.sqrt(q.size(-1))).masked_fill(later, -math.inf)
        #     y = F.softmax(scores, dim=-1) @ v
        if cache is None:
            y = attention(q, k, v)  # (B, n_head, T, head_dim)
        else:  # generating (class Cache, below): also attend to earlier tokens
            y = cache.attend(self.layer, q, k, v)
        y = y.transpose(1, 2).reshape(B, T, C)  # concatenate the heads
        return self.dropout(self.c_proj(y))


class MLP(nn.Module):
    """Each position, on its own, processes what it has gathered."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):  # (B, T, C) -> (B, T, 4C) -> (B, T, C)
        x = F.gelu(self.c_fc(x), approximate="tanh")
        return self.dropout(self.c_proj(x))


class Block(nn.Module):
    """One layer. x is the residual stream, which runs through all blocks; both parts add to it."""

    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x, cache=None):  # (B, T, C) -> (B, T, C)
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokenizer = None  # the description of its tokenizer (see prepare.py), if known
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(config.vocab_size, config.n_embd),  # tokens
            "wpe": nn.Embedding(config.block_size, config.n_embd),  # positions
            "drop": nn.Dropout(config.dropout),
            "h": nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
            "ln_f": nn.LayerNorm(config.n_embd, bias=config.bias),
        })
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # tied (Press & Wolf 2017)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("c_proj.weight"):
                # 2 * n_layer projections add to the residual stream. Smaller weights keep its
                # variance from growing with depth (GPT-2 paper, section 2.3).
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))
            elif parameter.dim() == 2:  # (the LayerNorms' weights stay 1)
                nn.init.normal_(parameter, std=0.02)

    def forward(self, idx, targets=None, return_logits=True, cache=None):
        """Predict the token after each position of idx (B, T). Loss in nats; ignores targets of -1.

        targets   return_logits   returns
        None                      (logits (B, 1, vocab_size) of the last position, None)
        (B, T)    True            (logits (B, T, vocab_size), mean loss)
        (B, T)    False           (None, mean loss), the same loss computed faster"""
        T = idx.size(1)
        S = T if cache is None else cache.length + T  # with the tokens in the cache
        if T == 0 or S > self.config.block_size:
            raise ValueError(f"{S} tokens: expected from 1 to block_size={self.config.block_size}")
        position = torch.arange(T, device=idx.device) if cache is None else cache.extend(T)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(position))
        for block in self.transformer.h:
            x = block(x, cache)  # (B, T, C)
        if targets is None:  # generating: only the last position matters
            return self.lm_head(self.transformer.ln_f(x[:, -1:])), None
        x = self.transformer.ln_f(x)
        targets = targets.flatten()
        if not return_logits:
            return None, linear_cross_entropy(x.flatten(0, 1), self.lm_head.weight, targets)
        logits = self.lm_head(x)  # (B, T, C) -> (B, T, vocab_size)
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=-1)

    @torch.inference_mode()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, eos_token=None,
               generator=None, compile=False):
        """Yield the ids (B, 1) and logits (B, n_ids) of each new token after idx (B, T); n_ids is
        the tokenizer's size. Stops after max_new_tokens, or once every row has produced eos_token.
        A text may grow beyond block_size. Each row has its own random numbers: except for rounding
        and int8, it doesn't depend on the other rows. compile: CUDA replays steps as graphs."""
        if temperature < 0 or (top_k or 0) < 0 or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(f"{temperature=}, {top_k=}, {top_p=}: expected >= 0, >= 0, in (0, 1]")
        cache = new_cache(self, len(idx), max_new_tokens, compile)  # a Cache, or a faster variant
        uniforms = uniform_rows(len(idx), generator or torch.default_generator, idx.device)
        done = torch.zeros_like(idx[:, :1], dtype=torch.bool)
        for _ in range(max_new_tokens):
            # Run the model on the tokens it has not read yet, and draw the one that follows.
            logits = cache.next_logits(idx)
            new = choose_token(logits, next(uniforms), temperature, top_k, top_p)
            # A row that has ended repeats eos_token.
            if eos_token is not None:
                new = new.masked_fill(done, eos_token)
                done = done | (new == eos_token)
            yield new, logits
            if eos_token is not None and done.all():
                return
            idx = torch.cat((idx, new), dim=1)

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, **options):
        """Return idx with its continuation: (B, T) -> (B, up to T + max_new_tokens); see stream."""
        new = [ids for ids, _ in self.stream(idx, max_new_tokens, temperature, top_k, **options)]
        return torch.cat([idx, *new], dim=1)

    def num_params(self):
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self):
        """FLOPs to train on one token: 6 per weight (2 forward, 4 backward), and attention's matrix
        products (Chowdhery et al. 2022, app. B). wpe is only looked up; wte counts as lm_head."""
        attention_flops = 12 * self.config.n_layer * self.config.n_embd * self.config.block_size
        return 6 * (self.num_params() - self.transformer.wpe.weight.numel()) + attention_flops

    def parameter_groups(self):
        """Return (matrices in the blocks, embeddings, vectors) for the optimizers."""
        matrices = [p for p in self.transformer.h.parameters() if p.dim() == 2]
        vectors = [p for p in self.parameters() if p.dim() == 1]
        return matrices, [self.transformer.wte.weight, self.transformer.wpe.weight], vectors

    def crop_block_size(self, block_size):
        """Drop the positions beyond block_size."""
        if not 0 < block_size <= self.config.block_size:
            raise ValueError(f"{block_size=}: lower it to the model's {self.config.block_size}")
        self.transformer.wpe.weight.data = self.transformer.wpe.weight.data[:block_size].clone()
        self.config = replace(self.config, block_size=block_size)  # (others may share the old one)

    @classmethod
    def from_pretrained(cls, name, dropout=0.0):
        """Return a GPT-2 in eval mode: "gpt2" or "owner/name[@revision]" (Hugging Face), a folder
        with a model or a run, or a snapshot. Executes nothing in the files; raises ValueError."""
        return load_pretrained(str(name), dropout).eval()

    @staticmethod
    def from_snapshot(path):
        """Return the model of a snapshot that train.py wrote, in eval mode."""
        return read_snapshot(path)["model"].eval()

    def save_pretrained(self, folder, tokenizer=None):
        """Write model and tokenizer into a new folder, in Hugging Face's format."""
        export(self, Path(folder), tokenizer or self.tokenizer)


class Cache:
    """The keys and values of the tokens so far, computed once: later tokens can't change them."""

    def __init__(self, model, batch_size):
        self.model = model
        config = model.config
        weight = model.transformer.wte.weight
        head_dim = config.n_embd // config.n_head
        # (layer, key or value, B, n_head, position, head_dim)
        shape = (config.n_layer, 2, batch_size, config.n_head, config.block_size, head_dim)
        dtype = torch.promote_types(weight.dtype, torch.float32) if weight.is_cpu else weight.dtype
        self.past = torch.empty(shape, device=weight.device, dtype=dtype)  # float32: fast on CPUs
        self.length = 0  # positions filled, or being filled
        self.n_ids = n_token_ids(model.tokenizer) if model.tokenizer else config.vocab_size

    def extend(self, T):
        """Make room for T new tokens, and set what they attend to. Return their positions (T,)."""
        self.position = torch.arange(self.length, self.length + T, device=self.past.device)
        self.is_causal = self.length == 0  # nothing before these tokens: the usual causal mask
        self.length += T
        self.window = self.length  # they attend to positions below it (CUDA graphs round it up)
        self.mask = None  # is_causal says it all, or a single token may look at everything
        if T > 1 and not self.is_causal:  # read in parts: query i sees key j if position i >= j
            self.mask = self.position[:, None] >= torch.arange(self.window, device=self.past.device)
        return self.position

    def attend(self, layer, q, k, v):
        """Store a layer's new keys and values; return attention of q to all in the window."""
        self.past[layer].index_copy_(-2, self.position, torch.stack((k, v)).to(self.past.dtype))
        k, v = self.past[layer][..., :self.window, :]  # (B, n_head, window, head_dim) each
        return attention(q, k, v, self.is_causal, self.mask)  # mask (T, window)

    def next_logits(self, idx):
        """Return the logits (B, n_ids) of the token after idx (B, T). Normally reads only the last
        token of idx. A full cache is emptied: dropping its oldest would shift all positions."""
        block_size = self.model.config.block_size
        if self.length == block_size:
            self.length = 0  # as if the text began with the newest half of a block
            idx = idx[:, -max(1, block_size // 2):]
        unread = idx[:, -block_size:] if self.length == 0 else idx[:, -1:]
        return self.read(unread)[:, :self.n_ids]  # beyond n_ids, logits are padding

    def read(self, ids):
        return self.model(ids, cache=self)[0][:, -1]  # calls extend, and attend in each layer


def choose_token(logits, u, temperature=1.0, top_k=None, top_p=None):
    """Draw the next token: logits (B, vocab_size), uniform random numbers u (B, 1) -> ids (B, 1).
    temperature divides the logits (0: the most likely token); top_k keeps the k most likely; top_p
    (Holtzman et al. 2020) keeps the smallest set of them with at least that total probability."""
    if temperature < 1e-6:
        return logits.max(dim=-1, keepdim=True).indices  # (argmax is slow in 16 bits)
    k = min(top_k or math.inf, logits.size(-1))
    logits, ids = (logits.float() / temperature).topk(k)  # (B, k), the most likely first
    cumulative = F.softmax(logits, dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    if top_p is not None and top_p < 1:  # the last token kept is the first that reaches top_p
        total = cumulative.gather(1, torch.searchsorted(cumulative, top_p * total))
    # Inverse transform sampling: the first token whose cumulative probability reaches a random one.
    return ids.gather(1, torch.searchsorted(cumulative, (1 - u) * total))


# ---- plumbing: skip on a first reading ----

# GPT-2's shapes; GPT-3's from Table 2.1 of Brown et al. 2020, but n_head has to divide n_embd.
SIZES = {
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600),
    "gpt3-125m": dict(n_layer=12, n_head=12, n_embd=768, block_size=2048),
    "gpt3-350m": dict(n_layer=24, n_head=16, n_embd=1024, block_size=2048),
    "gpt3-760m": dict(n_layer=24, n_head=16, n_embd=1536, block_size=2048),
    "gpt3-1.3b": dict(n_layer=24, n_head=16, n_embd=2048, block_size=2048),  # there: n_head=24
    "gpt3-2.7b": dict(n_layer=32, n_head=32, n_embd=2560, block_size=2048),
    "gpt3-6.7b": dict(n_layer=32, n_head=32, n_embd=4096, block_size=2048),
    "gpt3-13b": dict(n_layer=40, n_head=40, n_embd=5120, block_size=2048),  # there: n_embd=5140
    "gpt3-175b": dict(n_layer=96, n_head=96, n_embd=12288, block_size=2048),
}


def get_device(device="auto", dtype="auto"):
    """Return (torch.device, torch.dtype) for the two settings; ValueError without that device."""
    if device == "auto":
        device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"{device=} is not available, try 'auto': {error!s:.99}") from error
    device = torch.device(device)
    if dtype == "auto":
        # A CPU is faster in bfloat16 with AMX, or with AVX512-BF16 but no AVX512-FP16 (AMD).
        has = getattr(torch.cpu, "get_capabilities", dict)()  # {} in old PyTorch
        is_fast = has.get("amx_bf16") or (has.get("avx512_bf16") and not has.get("avx512_fp16"))
        dtype = "bfloat16" if device.type == "cpu" and is_fast else "float32"
        if device.type == "cuda":
            dtype = "bfloat16" if torch.cuda.is_bf16_supported(False) else "float16"  # not emulated
    return device, getattr(torch, dtype)


def attention(q, k, v, is_causal=True, mask=None):
    """Attend with q (..., T, head_dim) to k, v (..., S, head_dim). mask (T, S): bool or added."""
    has_slow_backward = torch.is_autocast_enabled("cpu") and q.requires_grad and q.size(2) < 256
    if q.is_cpu and (has_slow_backward or q.dtype != k.dtype):  # (a CPU's cache is in float32)
        with torch.autocast("cpu", enabled=False):  # in 16 bits, either takes up to twice as long
            return attention(q.float(), k.float(), v.float(), is_causal, mask).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)


def linear_cross_entropy(x, weight, targets):
    """F.cross_entropy(F.linear(x, weight), targets, ignore_index=-1) for x (N, C), targets (N,)."""
    if not x.is_cuda and len(x) * len(weight) > 1e8 and hasattr(F, "linear_cross_entropy"):
        # All logits would be by far the largest tensor. PyTorch 2.13 can compute them in chunks.
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=512, chunking_method=None)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear_cross_entropy(x, weight, targets, ignore_index=-1, options=options)
    if torch.is_autocast_enabled(x.device.type):
        # GPT-2's logits are near -100, where bfloat16 has steps of 0.5. Without the mean row they
        # are near 0; softmax doesn't change when all logits shift by the same amount.
        weight = (weight - weight.mean(dim=0).detach()).to(torch.get_autocast_dtype(x.device.type))
    if not x.is_cuda:
        return F.cross_entropy(F.linear(x, weight).float(), targets, ignore_index=-1)
    # With vocab_size padded to a multiple of 128, for tensor cores: (N, C) -> (N, padded size)
    logits = F.linear(x, F.pad(weight, (0, 0, 0, (-len(weight)) % 128)))
    column = torch.arange(logits.size(1), device=x.device)
    logits = torch.where(column < len(weight), logits.float(), -1e30)
    return F.cross_entropy(logits, targets, ignore_index=-1)


@torch.no_grad()
def measure(loss_of, tokens, windows, batch_size, block_size, rank=0, n_processes=1):
    """Yield the sum of the losses, in nats, of each batch. A window (begin, first, end) predicts
    tokens[first:end], each from the tokens since begin. loss_of(inputs, targets) is the mean loss.
    Other targets are -1. All processes yield the same number (FSDP); a batch may be empty."""
    for i in range(0, len(windows), n_processes * batch_size):
        ids = torch.zeros(batch_size, 1 + block_size, dtype=torch.int64)
        targets = torch.full((batch_size, 1 + block_size), -1)
        for row, (begin, first, end) in enumerate(windows[i + rank * batch_size:][:batch_size]):
            ids[row, :end - begin] = torch.from_numpy(tokens[np.arange(begin, end)])
            targets[row, first - begin:end - begin] = ids[row, first - begin:end - begin]
        count = (targets != -1).sum().item()
        loss = loss_of(ids[:, :-1], targets[:, 1:])
        yield (loss.item() * count if count > 0 else 0.0)


def uniform_rows(n_rows, generator, device):
    """Yield uniform random numbers (n_rows, 1) forever. Adding rows changes no other row."""
    seeds = torch.randint(2**62, (n_rows,), generator=generator, device=generator.device).tolist()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:  # 256 at a time: a copy to the device for each token would take longer
        block = torch.stack([torch.rand(256, generator=row) for row in generators])
        yield from block.to(device).split(1, dim=1)


def n_token_ids(tokenizer):  # -> how many ids it has
    special = tokenizer.get("special", {prepare.END_OF_TEXT: len(tokenizer["tokens"])})
    return 1 + max(len(tokenizer["tokens"]) - 1, *special.values())


def new_cache(model, n_rows, max_new_tokens, compile=False):
    """Return the fastest Cache for n_rows texts; on a CPU, its model may be a packed copy."""
    head = model.lm_head.weight
    is_plain = isinstance(head, nn.Parameter) and not hasattr(head, "full_tensor")  # not int8, FSDP
    if model.training or not is_plain or torch.is_autocast_enabled(head.device.type):
        return Cache(model, n_rows)
    if not head.is_cpu:
        return CUDAGraphCache(model, n_rows) if compile else Cache(model, n_rows)
    if n_rows == 1 and head.dtype != torch.float32 and torch.backends.mkldnn.enabled:
        return OneRowCache(model, n_rows)
    supported = torch.backends.mkldnn.is_available() and (head.dtype == torch.float32 or (
        head.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    cpu = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")
    is_mkl_faster = n_rows <= 2 and head.dtype == torch.float32 and "Intel" in cpu  # MKL: F.linear
    if supported and n_rows * max_new_tokens >= 32 and not is_mkl_faster:  # packing takes time
        model = packed(model, n_rows)
    return Cache(model, n_rows)


class OneRowCache(Cache):  # by PyTorch's own matrix-vector product, 1.3 times as fast as oneDNN's
    def read(self, ids):
        with torch.backends.mkldnn.flags(ids.size(1) > 1, allow_tf32=None):  # (True would warn)
            return super().read(ids)


def packed(module, n_rows):
    """Return a copy with its large linear layers packed for n_rows rows; all else is shared."""
    new = object.__new__(type(module))  # (copy.copy refuses a parametrized module)
    children = {name: packed(child, n_rows) for name, child in module._modules.items()}
    vars(new).update(vars(module), _modules=children)
    is_plain = type(module) is nn.Linear and "forward" not in vars(module)
    # (Pruning and the like replace the Parameter with a computed weight.) 2**19 numbers are 2 MB.
    if is_plain and isinstance(module.weight, nn.Parameter) and module.weight.numel() >= 2**19:
        new.forward = packed_linear(module.weight.detach(), module.bias, n_rows)
    return new


def packed_linear(weight, bias, n_rows):
    """Return a function x -> F.linear(x, weight, bias) that is fast for x (n_rows, 1, C)."""
    ops = torch.ops.mkldnn
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        W = weight if n_rows == 1 else ops._reorder_linear_weight(weight, n_rows)  # 1: as it is
        return partial(ops._linear_pointwise, W=W, B=bias, attr="none", scalars=[], algorithm="")
    # With AVX2, oneDNN is faster at a convolution over an image of n_rows pixels with C channels.
    W = ops._reorder_convolution_weight(
        weight[:, :, None, None], input_size=[1, weight.size(1), n_rows, 1])

    def convolution(x):  # (B, T, C)
        if x.size(1) > 1:  # a prompt; packing the weights again for its shape would take seconds
            return ops._linear_pointwise(x, weight, bias, "none", [], "")
        image = x.permute(2, 0, 1)[None]  # (1, C, n_rows, 1)
        y = ops._convolution_pointwise(image, W, bias, [0, 0], [1, 1], [1, 1], 1, "none", [], "")
        return y[0].permute(1, 2, 0)
    return convolution


def for_inference(model, device, dtype):
    """Convert a float32 model, in place, to the device and dtype or, on a CPU, to "int8": 8-bit
    weights, a scale per output; 7-bit inputs (8 bits could overflow), a scale for all rows."""
    if dtype != torch.float32:  # without the mean row, as in linear_cross_entropy; no longer tied
        weight = model.lm_head.weight.detach()
        model.lm_head.weight = nn.Parameter(weight - weight.mean(dim=0), requires_grad=False)
    if dtype != "int8":
        torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN makes a new plan for each length
        return model.to(device, dtype).eval()
    for layer in [module for module in model.modules() if type(module) is nn.Linear]:
        weight = layer.weight.detach()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings(action="ignore"):  # quantize_per_channel is deprecated
            weight = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        W = torch.ops.quantized.linear_prepack(weight, layer.bias)
        layer.forward = partial(torch.ops.quantized.linear_dynamic, W_prepack=W, reduce_range=True)
        layer.weight = None
    return model.eval()


class CUDAGraphCache(Cache):
    """A cache that replays each one-token step as a CUDA graph, in which shapes are fixed: there is
    one graph per window of 256, 512, ... positions, and positions not filled yet are masked."""

    def __init__(self, model, batch_size):
        super().__init__(model, batch_size)
        self.past.zero_()  # a masked NaN would still give NaN
        self.static_ids = torch.zeros(batch_size, 1, dtype=torch.int64, device=self.past.device)
        self.static_position = torch.zeros(1, dtype=torch.int64, device=self.past.device)
        self.graphs = {}  # window -> (graph, its logits)

    def extend(self, T):
        if T > 1 or self.length == 0:  # (for one token, read has set static_position and window)
            return super().extend(T)
        self.position = self.static_position
        self.is_causal = False
        visible = torch.arange(self.window, device=self.past.device) <= self.position
        self.mask = visible.to(self.past.dtype).log()[None]  # 0 or -inf, made once for all layers
        return self.position

    def read(self, ids):
        if ids.size(1) > 1 or self.length == 0:
            return super().read(ids)
        self.window = min(self.model.config.block_size, (self.length // 256 + 1) * 256)
        self.static_ids.copy_(ids)
        self.static_position.fill_(self.length)
        if self.window in self.graphs:
            graph, logits = self.graphs[self.window]
            graph.replay()
        else:
            logits = super().read(self.static_ids)
            if ids.is_cuda:  # that step was the warmup (memory, choice of kernels): now record it
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.device(ids.device), torch.cuda.graph(graph):
                    self.graphs[self.window] = graph, super().read(self.static_ids)
        self.length += 1
        return logits.clone()


@torch.inference_mode()
def beam_search(model, idx, max_new_tokens, beams, length_penalty=1.0, eos_token=None):
    """Return the most likely texts found that begin with idx (1, T), the best first, as [(ids,
    log-probability of the new ids)], ranked by log-probability / length ** length_penalty."""
    eos_token = -1 if eos_token is None else eos_token  # no text contains -1
    T = idx.size(1)
    cache = new_cache(model, beams, max_new_tokens)
    texts = idx.expand(beams, -1)  # all beams start out equal: only one of them counts
    scores = torch.tensor([0.0] + [-math.inf] * (beams - 1), device=idx.device)  # log-probabilities
    for _ in range(max_new_tokens):
        done = (texts[:, T:] == eos_token).any(dim=1)
        if done.all():
            break
        log_probs = F.log_softmax(cache.next_logits(texts).float(), dim=-1)  # (beams, n_ids)
        log_probs[done] = -math.inf  # a complete beam continues with eos_token, for free
        log_probs[done, eos_token] = 0.0
        scores, best = (scores[:, None] + log_probs).flatten().topk(beams)  # of all continuations
        parents, new = torch.unravel_index(best, log_probs.shape)  # (beams,) each
        texts = torch.cat((texts[parents], new[:, None]), dim=1)
        cache.past[..., :cache.length, :] = cache.past[:, :, parents, :, :cache.length]
    lengths = ((texts[:, T:] != eos_token).sum(dim=1) + 1).clamp(max=texts.size(1) - T)
    ranks = scores / (lengths ** length_penalty)
    return [(texts[i, :T + lengths[i]].tolist(), scores[i].item())
            for i in ranks.argsort(descending=True, stable=True) if scores[i] > -math.inf]


def read_snapshot(path, **changes):
    """Return a snapshot's dict plus its "model", with changes to its config; or ValueError."""
    with prepare.named_errors(path):
        snapshot = torch_load(path, mmap=False)
        if "model_args" in snapshot:
            print("note: nanoGPT computes GELU exactly, this model its tanh approximation, as "
                  "GPT-2 does: the loss differs slightly", file=sys.stderr)
            shape = snapshot["model_args"]
            tokenizer = prepare.find_tokenizer("gpt2") if shape["vocab_size"] >= 50257 else None
            state = {re.sub(PREFIXES, "", key): tensor for key, tensor in snapshot["model"].items()
                     if not key.endswith(".attn.bias")}  # the causal mask
            snapshot = dict(model_config=shape, model_state_dict=state, tokenizer=tokenizer)
        elif not isinstance(snapshot, dict) or snapshot.get("format_version") != 2:
            raise ValueError("not a snapshot of this version of train.py (format_version 2)")
        model = with_weights(GPTConfig(**(snapshot["model_config"] | changes)),
                             dict(snapshot["model_state_dict"]))  # a copy, which is emptied
        model.tokenizer = snapshot["tokenizer"]
        if model.tokenizer:
            prepare.load_tokenizer(model.tokenizer)  # raises an error if it is damaged
    return snapshot | {"model": model}


def get_snapshot(out_dir, which="auto"):
    """Return the path of a run's snapshot: 'best', 'final', 'latest' or the first that exists."""
    paths = [Path(out_dir, "best.pt"), Path(out_dir, "final_model.pt"), *snapshots(out_dir)]
    named = {"auto": paths, "best": paths[:1], "final": paths[1:2], "latest": paths[2:]}
    for path in named.get(which, [Path(which), Path(out_dir, which)]):
        if path.exists():
            return path
    raise ValueError(f"there is no snapshot ({which}) in {out_dir}: run python train.py first (a "
                     "folder with a config.json, or nanoGPT's ckpt.pt, goes to --init_from)")


def snapshots(out_dir):  # -> their paths, the newest first
    found = Path(out_dir).glob("snapshots/snapshot_step_*.pt")
    paths = {path.stem.removeprefix("snapshot_step_"): path for path in found}
    return [paths[step] for step in sorted(filter(str.isdecimal, paths), key=int, reverse=True)]


def torch_load(path, mmap=True):  # -> what torch.save wrote; nothing in it is executed
    is_zip = np.fromfile(path, "u1", 1).tolist() != [0x80]  # (files from before 2020 begin so)
    if is_zip and (damaged := zipfile.ZipFile(path).testzip()):  # compares all checksums
        raise ValueError(f"its record {damaged} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip)


# The values that these keys must have in the config.json of a GPT-2, if they are there:
GPT2 = dict(model_type="gpt2", activation_function="gelu_new", layer_norm_epsilon=1e-5,
            scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
            add_cross_attention=False, tie_word_embeddings=True)
CONFIG_FILES = ("config.json", "hparams.json")  # Hugging Face's, OpenAI's
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                "pytorch_model.bin.index.json", "checkpoint", "model.ckpt.index")  # the first wins
PREFIXES = r"^(module\.|_orig_mod\.)+"  # of DDP's and torch.compile's wrappers


def load_pretrained(name, dropout):
    path = Path(name)
    if path.is_dir() and not any((path / file).exists() for file in CONFIG_FILES):
        path = get_snapshot(path)
    if path.suffix == ".pt":
        return read_snapshot(path, dropout=dropout)["model"]
    if path.is_file() or (name.split("@")[0].count("/") > 1 and not path.is_dir()):
        raise ValueError(f"{name} is not a folder: expected a model's, or a snapshot (.pt)")
    with prepare.named_errors(name):
        folder = path if path.is_dir() else hub_folder(name)
        file = next(folder / file for file in CONFIG_FILES if (folder / file).exists())
        about = json.loads(file.read_bytes().replace(b"gelu_pytorch_tanh", b"gelu_new"))  # synonyms
        model = with_weights(*read_weights(folder, about, dropout))
        try:
            model.tokenizer = prepare.read_tokenizer(folder, about, model.config.vocab_size)
        except OSError as error:  # GPT-2's own vocabulary may not be available
            print(f"note: the model has no tokenizer: {error}", file=sys.stderr)
    return model


def with_weights(config, state):  # -> a GPT with copies of weights that may be memory-mapped
    # On "meta", it takes no memory. (normal_ there would import sympy, which takes a second.)
    with torch.device("meta"), mock.patch("torch.nn.init.normal_"):
        model = GPT(config)
    model.load_state_dict(state, assign=True)
    if not model.lm_head.weight.equal(model.transformer.wte.weight):
        raise ValueError("lm_head.weight differs from wte.weight (GPT-2 ties them)")
    model.lm_head.weight = model.transformer.wte.weight
    state.clear()  # so that each map is released before the next tensor is copied
    for parameter in model.parameters():
        parameter.data = torch.empty(parameter.shape).copy_(parameter.data)  # to float32
    return model


def read_weights(folder, about, dropout):
    """Return the GPTConfig and {name: tensor} of a folder, given its config.json as a dict."""
    n_inner = (4 * about["n_embd"]) if about.get("n_inner") else None
    for key, expected in (GPT2 | {"n_inner": n_inner, "quantization_config": None}).items():
        if about.get(key, expected) != expected:
            raise ValueError(f"its {key} is {about[key]!r}, GPT-2's is {expected!r}")
    config = GPTConfig(block_size=about.get("n_positions", about.get("n_ctx")), dropout=dropout,
                       vocab_size=about.get("vocab_size", about.get("n_vocab")),
                       **{key: about.get(key) for key in ("n_layer", "n_head", "n_embd")})
    readers = {".safetensors": read_safetensors, ".bin": torch_load, ".index": read_tensorflow}
    state = {}
    for path in weight_files(folder):
        found = readers[path.suffix](path)
        for key, tensor in found.get("model", found).items():  # (nested in some)
            key = re.sub(PREFIXES, "", key)
            if re.search(r"\.attn\.(masked_)?bias$|^multiple_choice_head\.", key):
                continue  # the causal mask of old files; GPT2DoubleHeadsModel's second head
            key = key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}"
            # GPT-2 stores the matrices in its blocks as (in, out), nn.Linear as (out, in).
            state[key] = tensor.t() if ".h." in key and tensor.dim() == 2 else tensor
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    # A small file may describe a huge model: torch.save stores an expanded tensor as one number.
    n_numbers = sum(tensor.numel() for tensor in state.values())
    n_bytes = sum(os.path.getsize(path) for path in folder.iterdir())
    if config.n_layer > len(state) or n_numbers > n_bytes:
        raise ValueError(f"{n_bytes} bytes can't hold n_layer={config.n_layer}, {n_numbers} values")
    return config, state


def weight_files(folder):  # -> the paths of the files with a model's weights
    if (folder / "adapter_config.json").exists():
        raise ValueError("it is an adapter: merge it into its model first (merge_and_unload)")
    path = next(filter(Path.exists, map(folder.joinpath, WEIGHT_FILES)), folder / WEIGHT_FILES[0])
    if path.suffix == ".json":  # it says which tensor is in which file
        names = json.loads(path.read_bytes())["weight_map"].values()
        return sorted({folder / Path(name).name for name in names})
    if path.name == "checkpoint":  # TensorFlow's: it names the newest
        found = re.search(r'^model_checkpoint_path: "(?:.*/)?(.+)"', path.read_text("utf-8"))
        if not found:
            raise ValueError("its file 'checkpoint' names none: no model_checkpoint_path")
        path = folder / f"{found[1]}.index"
    return [path]


def hub_folder(name):
    """Return a model's folder in Hugging Face's cache; missing files are downloaded."""
    model, _, revision = name.partition("@")
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/huggingface"
    hub = os.environ.get("HF_HUB_CACHE", os.environ.get("HF_HOME", home) + "/hub")
    cache = Path(hub, f"models--{model.replace('/', '--')}").expanduser()
    ref = cache / "refs" / (revision or "main")  # holds the commit of a branch
    revision = ref.read_text().strip() if ref.exists() else (revision or "main").replace("/", "%2F")
    folder = cache / "snapshots" / revision

    def get(name, *others):  # downloads name, unless it or one of the others is there
        if any((folder / file).exists() for file in (name, *others)):
            return
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise FileNotFoundError(f"{folder / name} is missing, and HF_HUB_OFFLINE is set")
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        token = os.environ.get("HF_TOKEN")
        prepare.download(f"{endpoint}/{model}/resolve/{revision}/{name}", folder / name,
                         {"Authorization": f"Bearer {token}"} if token else None)
    get("config.json")
    # Of each row, the first file that the model has is enough (vocab.json needs merges.txt, too).
    for row in (["tokenizer.json", "vocab.json"], ["tokenizer.json", "merges.txt"], WEIGHT_FILES):
        for name in row[:4]:  # (the others are TensorFlow's)
            with suppress(FileNotFoundError):
                get(name, *row)
    for path in weight_files(folder):
        get(path.name)
    return folder


def read_safetensors(path):
    """Return {name: tensor}. The tensors have to fill the file without a gap."""
    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16,
              "BF16": torch.bfloat16, "U8": torch.uint8, "BOOL": torch.bool}
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:start]))
    header.pop("__metadata__", None)
    bounds = sorted(entry["data_offsets"] for entry in header.values())
    if [*(begin for begin, _ in bounds), len(data) - start] != [0, *(end for _, end in bounds)]:
        raise ValueError(f"{path}: data_offsets don't fill the {len(data) - start} bytes of data")
    weights = {}
    for name, entry in header.items():
        if entry["dtype"] not in dtypes:
            raise ValueError(f"{name} is {entry['dtype']}, a quantized format: expected floats")
        begin, end = entry["data_offsets"]
        raw = np.memmap(path, np.uint8, "c", start + begin, end - begin)  # read when it is used
        with prepare.named_errors(f"{path}: {name} doesn't fit its entry in the header"):
            weights[name] = torch.from_numpy(raw).view(dtypes[entry["dtype"]]).view(entry["shape"])
    return weights


def read_tensorflow(path):
    """Return {name: tensor} of the model in a TensorFlow checkpoint (V2). path is its index."""
    index = path.read_bytes()  # a sorted table (LevelDB's): name -> where it is, a protocol buffer

    def read_number(stream):  # seven bits per byte, the lowest first; the eighth says more follow
        byte, = stream.read(1)
        return byte if byte < 128 else byte - 128 + (read_number(stream) << 7)

    def checksum(data):  # CRC-32C (Castagnoli) as TensorFlow stores it; slow for large tensors
        crc = 0xFFFFFFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        rotated = ~((crc >> 15) | (crc << 17))
        return ((rotated + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")

    def read_block(handle):  # yield its keys and values; handle has its offset and size
        offset, size = read_number(handle), read_number(handle)
        end = offset + size + 1  # the last byte says how it is compressed
        if checksum(index[offset:end]) != index[end:end + 4] or index[end - 1] != 0:
            raise ValueError(f"{path.name} is damaged, or compressed")
        table = io.BytesIO(index[offset:end])
        key = b""
        while any(sizes := [read_number(table) for _ in range(3)]):  # zeros follow the last entry
            n_shared, n_more, n_value = sizes
            key = key[:n_shared] + table.read(n_more)  # a key may begin as the one before does
            yield key.decode("latin-1"), io.BytesIO(table.read(n_value))

    weights = {}
    footer = io.BytesIO(index[-48:])  # handles of the metaindex block (empty) and the index block
    for _, handle in [*read_block(footer), *read_block(footer)]:
        for name, value in read_block(handle):
            fields = {}  # of a protocol buffer and those nested in it
            while value.tell() < len(value.getbuffer()):
                field, kind = divmod(read_number(value), 8)
                number = value.read(4) if kind == 5 else read_number(value)  # (nested: its size)
                fields.setdefault(field, []).append(number)
            if name == "":  # the table's own entry
                n_shards = fields[1][0]
            if not re.fullmatch(r"model/(h\d+/.*/[wbg]|ln_f/[bg]|w[tp]e)", name):
                continue  # the optimizer's
            dtype, *shape = fields[1]  # (some matrices have the shape (1, n, m))
            shard, offset = (fields.get(field, [0])[0] for field in (3, 4))
            data = path.with_suffix(f".data-{shard:05d}-of-{n_shards:05d}")
            tensor = torch.from_numpy(np.memmap(data, np.float32, "c", offset, tuple(shape[-2:])))
            wrong = tensor.nbytes < 2**16 and fields.get(6) != [checksum(tensor.numpy().tobytes())]
            if wrong or dtype != 1 or fields.get(5) != [tensor.nbytes]:
                raise ValueError(f"{name} is damaged, partitioned or not float32")
            name = re.sub("/[wg]$|(?<=w[tp]e)$", ".weight", re.sub("/b$", ".bias", name))
            weights[name.replace("model/h", "h.").replace("model/", "").replace("/", ".")] = tensor
    return weights


def export(model, folder, tokenizer):
    """Write config.json, model.safetensors and the tokenizer's files, all of them or none."""
    config = model.config
    if model.lm_head.weight is not model.transformer.wte.weight:
        raise ValueError("the output matrix is not the token embedding (for_inference unties them)")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder")
    files = prepare.tokenizer_files(tokenizer) if tokenizer else {}
    end_id = None  # unknown
    if tokenizer:
        encoding = prepare.load_tokenizer(tokenizer)
        end_id = encoding.end_id
        eot = encoding.decode([end_id])
        files["tokenizer_config.json"] = dict(
            tokenizer_class="GPT2Tokenizer", model_max_length=config.block_size,
            clean_up_tokenization_spaces=False, bos_token=eot, eos_token=eot, unk_token=eot)
    end_tokens = dict(bos_token_id=end_id, eos_token_id=end_id)
    files["generation_config.json"] = end_tokens | dict(max_length=config.block_size)
    files["config.json"] = GPT2 | end_tokens | dict(
        architectures=["GPT2LMHeadModel"], n_positions=config.block_size, n_ctx=config.block_size,
        n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd, attn_pdrop=0.0,
        vocab_size=config.vocab_size, embd_pdrop=config.dropout, resid_pdrop=config.dropout)
    weights = {}
    for name, tensor in model.transformer.state_dict().items():  # names as in OpenAI's file
        weights[name] = tensor.t() if name.startswith("h.") and tensor.dim() == 2 else tensor
        if not config.bias and name.startswith(("h.", "ln_f.")):
            weights[name.replace(".weight", ".bias")] = torch.zeros(len(tensor))  # as good as none
    bounds = np.cumsum([0] + [4 * t.numel() for t in weights.values()], dtype=np.int64).tolist()
    header = {name: dict(dtype="F32", shape=tensor.shape, data_offsets=[begin, end])
              for (name, tensor), begin, end in zip(weights.items(), bounds, bounds[1:])}
    header = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    header = header.ljust(math.ceil(len(header) / 8) * 8)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.tmp") as temporary:
        new = Path(temporary, folder.name)
        for name, content in files.items():
            with prepare.atomic_write(new / name, "w") as file:
                file.write(content if isinstance(content, str) else json.dumps(content, indent=2))
        with prepare.atomic_write(new / "model.safetensors") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.writelines(t.cpu().float().contiguous().numpy() for t in weights.values())
        os.replace(new, folder)
