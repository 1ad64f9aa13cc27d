"""The whole GPT-2: embeddings, blocks, loss, generation, and the files that keep its weights.

It is GPT-2 to the letter (Radford et al. 2019), so that every tool for GPT-2 opens it: learned
positions, LayerNorm before each half of a block, tanh GELU, biases, embedding = output matrix."""

import io
import json
import math
import os
import re
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from prepare import END_OF_TEXT, download, gpt2_tokenizer, whole_file

# Shapes by name: GPT-2's four as published; GPT-3's eight from Table 2.1 of Brown et al. 2020, but
# for two rows whose heads don't fit their width: 1.3B gets 16 for 24, and 13B 5120 for 5140.
SIZES = {
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600),
    "gpt3-125m": dict(n_layer=12, n_head=12, n_embd=768, block_size=2048),
    "gpt3-350m": dict(n_layer=24, n_head=16, n_embd=1024, block_size=2048),
    "gpt3-760m": dict(n_layer=24, n_head=16, n_embd=1536, block_size=2048),
    "gpt3-1.3b": dict(n_layer=24, n_head=16, n_embd=2048, block_size=2048),
    "gpt3-2.7b": dict(n_layer=32, n_head=32, n_embd=2560, block_size=2048),
    "gpt3-6.7b": dict(n_layer=32, n_head=32, n_embd=4096, block_size=2048),
    "gpt3-13b": dict(n_layer=40, n_head=40, n_embd=5120, block_size=2048),
    "gpt3-175b": dict(n_layer=96, n_head=96, n_embd=12288, block_size=2048),
}

@dataclass
class GPTConfig:
    block_size: int = 1024  # longest context, in tokens
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768  # width of the residual stream
    dropout: float = 0.0
    bias: bool = True  # biases in the linear layers and LayerNorms, as GPT-2 has them

    def __post_init__(self):
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is no multiple of n_head={self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: expected from 0 to below 1")

def choose_device(device="auto", dtype="auto", compile="auto"):
    """Turn the three settings into (torch.device, torch.dtype, bool). Raises ValueError."""
    if device == "auto":
        device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"{device=} can't be used, try 'auto' or 'cpu': {error!s:.99}") from error
    device = torch.device(device)
    if dtype == "auto" and device.type == "cuda":
        dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if dtype == "auto":  # bfloat16 pays on AMX and on AMD's cores, not on Intel's without AMX
        has = getattr(torch.cpu, "get_capabilities", dict)().get  # (older versions can't tell)
        fast = has("amx_bf16") or has("avx512_bf16") and not has("avx512_fp16")
        dtype = "bfloat16" if fast and device.type == "cpu" else "float32"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype={dtype!r}: expected 'auto', 'float32', 'bfloat16' or 'float16'")
    return device, getattr(torch, dtype), device.type == "cuda" if compile == "auto" else compile

class Dropout(nn.Dropout):  # drawing a number for each element takes a CPU as long as a product
    def forward(self, x):
        if not (self.training and self.p and x.is_cpu):
            return super().forward(x)
        dropped = max(1, round(256 * self.p))  # of the 256 values of a byte
        noise = torch.empty(x.numel() // 8 + 1, dtype=torch.int64).random_(-2**63, None)  # 8 each
        kept = noise.view(torch.uint8)[:x.numel()].view(x.shape) >= dropped
        return x * kept.to(x.dtype).mul_(256 / (256 - dropped))

class Block(nn.Module):
    """One layer: each position looks at those before it (attention), then thinks (mlp). Both add
    to the stream x, and each normalizes what it reads of it."""
    def __init__(self, config):
        super().__init__()
        C, self.n_head = config.n_embd, config.n_head
        linear = lambda n_in, n_out: nn.Linear(n_in, n_out, bias=config.bias)
        self.ln_1 = nn.LayerNorm(C, bias=config.bias)
        self.attn = nn.ModuleDict({"c_attn": linear(C, 3 * C), "c_proj": linear(C, C)})
        self.ln_2 = nn.LayerNorm(C, bias=config.bias)
        self.mlp = nn.ModuleDict({"c_fc": linear(C, 4 * C), "c_proj": linear(4 * C, C)})
        self.dropout = Dropout(config.dropout)

    def forward(self, x, past=None, position=None, mask=None):  # (B, T, C) -> (B, T, C)
        B, T, C = x.shape
        # (B, T, 3C) -> queries, keys and values of (B, n_head, T, head_dim)
        qkv = self.attn["c_attn"](self.ln_1(x)).view(B, T, 3, self.n_head, -1)
        q, k, v = qkv = qkv.permute(2, 0, 3, 1, 4)
        if past is not None:  # (2, B, n_head, positions up to now, head_dim): keys and values
            k, v = past.index_copy_(3, position, qkv[1:])
        # Each query takes the mean of the values up to its position, weighted by how well it fits
        # their keys. (GPT-2 also dropped weights in training: no fast kernel on a CPU can do that.)
        options = dict(attn_mask=mask, is_causal=mask is None and T > 1)
        if x.requires_grad and x.is_cpu and T < 256:  # in bfloat16, backward takes twice as long
            with torch.autocast("cpu", enabled=False):
                y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **options)
        else:
            y = F.scaled_dot_product_attention(q, k, v, **options)
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side again
        x = x + self.dropout(self.attn["c_proj"](y))
        y = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")  # (B, T, C) -> (B, T, 4C)
        return x + self.dropout(self.mlp["c_proj"](y))

class Cache:
    """The keys and values of the tokens read so far: what comes later can't reach back to change
    them. So each layer keeps them, and a new token costs one position's work, not the text's."""
    def __init__(self, model, batch_size):
        config, weight = model.config, model.lm_head.weight
        self.past = torch.zeros(  # (n_layer, keys and values, B, n_head, block_size, head_dim)
            config.n_layer, 2, batch_size, config.n_head, config.block_size,
            config.n_embd // config.n_head, device=weight.device, dtype=weight.dtype)
        self.length = 0  # positions filled

def choose_token(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Draw the next token: logits (B, vocab_size) -> ids (B, 1). temperature 0 takes the likeliest;
    top_k keeps the k likeliest, top_p (Holtzman et al. 2020) the fewest of that probability."""
    if temperature < 1e-6:
        return logits.argmax(-1, keepdim=True)
    logits, order, k, top_p = logits.float() / temperature, None, logits.size(-1), top_p or 1.0
    if (top_k or k) < k or top_p < 1:
        logits, order = logits.topk(min(top_k or k, k))
    probs = F.softmax(logits, dim=-1)  # with the likeliest first, if there is an order
    if top_p < 1:
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= max(top_p, 1e-6), 0.0)
    chosen = torch.multinomial(probs, 1, generator=generator)
    return chosen if order is None else order.gather(1, chosen)

class ChunkedCrossEntropy(torch.autograd.Function):
    """F.cross_entropy(F.linear(x, weight), targets, reduction="sum"), a few positions at a time.
    The logits of all of them would be by far the largest tensor; so each part goes all the way to
    the gradients of x and weight, and backward has nothing left to do but multiply."""
    @staticmethod
    def forward(ctx, x, weight, targets, backward_follows):  # (N, C), (V, C), (N,) -> ()
        matrix, total = weight.to(x.dtype), weight.new_zeros(())
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        n = 1 + 6_000_000 // len(weight)  # positions, whose logits then take 24 MB
        for part, grad, y in zip(x.split(n), grad_x.split(n), targets.split(n)):
            log_probs = F.log_softmax((part @ matrix.T).to(weight.dtype), dim=-1)  # (n, V)
            total += F.nll_loss(log_probs, y, ignore_index=-1, reduction="sum")
            if backward_follows:  # the gradient of the logits is softmax minus one-hot
                grad_logits = log_probs.exp_()
                grad_logits[torch.arange(len(y), device=y.device), y] -= 1
                grad_logits[y == -1] = 0
                grad_logits = grad_logits.to(x.dtype)
                torch.mm(grad_logits, matrix, out=grad)
                for columns, rows in zip(grad_logits.split(8192, dim=1), grad_weight.split(8192)):
                    rows += columns.T @ part  # (all at once would take as much as weight)
        ctx.save_for_backward(grad_x, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad_output):
        return *(grad.mul_(grad_output) for grad in ctx.saved_tensors), None, None

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokenizer = None  # as prepare.py describes one, where the model's is known
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            drop=Dropout(config.dropout),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd, bias=config.bias)))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # tied (Press & Wolf 2017)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                # All additions to the stream together keep the size of one (GPT-2 paper, 2.3).
                additions = 2 * config.n_layer if name.endswith("c_proj.weight") else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(additions))

    def forward(self, idx, targets=None, return_logits=True, cache=None, position=None):
        """Predict what follows the ids idx (B, T), with those cached at most block_size. Returns
        (logits, loss): without targets (B, 1, vocab_size), for the last position, and None; with
        targets (B, T), -1 where none counts, (B, T, vocab_size), None without return_logits, and
        the mean in nats. position (1,), that of a single token, makes a step of fixed shapes."""
        T, start, end, mask = idx.size(1), 0, self.config.block_size, None
        if position is None:
            start = cache.length if cache else 0
            if not 0 < T <= end - start:
                raise ValueError(f"{start + T} tokens: expected from 1 to block_size={end}")
            end = start + T
            if cache:
                cache.length = end
            position = torch.arange(start, end, device=idx.device)
        if end > start + T or start and T > 1:  # (T, end): what each position may look at
            mask = position[:, None] >= torch.arange(end, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(position))
        for i, block in enumerate(self.transformer.h):  # x is (B, T, C) by now, and stays so
            x = block(x, cache.past[i, :, :, :, :end] if cache else None, position, mask)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, -1:]), None  # the last position is all that is asked for
        if not return_logits:
            return None, self.loss(x.flatten(0, 1), targets.flatten())
        logits = self.lm_head(x)  # (B, T, C) -> (B, T, vocab_size)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    def loss(self, x, targets):  # (N, C), (N,) -> mean cross-entropy over the targets that count
        weight, vocab_size, kind = self.lm_head.weight, self.config.vocab_size, x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        if kind == "cuda":  # tensor cores want multiples of 128; the padding is cut off at once
            logits = F.linear(x, F.pad(weight, (0, 0, 0, -vocab_size % 128)))[:, :vocab_size]
            return F.cross_entropy(logits, targets, ignore_index=-1)
        with torch.autocast(kind, enabled=False):
            total = ChunkedCrossEntropy.apply(x, weight, targets, torch.is_grad_enabled())
        return total / (targets != -1).sum()

    def num_params(self):
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self):
        """Floating-point operations to train on one token, as in PaLM's paper, appendix B."""
        weights = self.num_params() - self.transformer.wpe.weight.numel()
        return 6 * weights + 12 * self.config.n_layer * self.config.n_embd * self.config.block_size

    def parameter_groups(self):
        """Return (matrices in blocks, which suit Muon; embeddings; vectors, never decayed)."""
        matrices = [p for p in self.transformer.h.parameters() if p.dim() == 2]
        vectors = [p for p in self.parameters() if p.dim() < 2]
        return matrices, [self.transformer.wte.weight, self.transformer.wpe.weight], vectors

    def crop_block_size(self, block_size):
        """Forget the positions beyond block_size, for a model that is larger than needed."""
        if block_size > self.config.block_size:
            raise ValueError(f"{block_size=}: the model has {self.config.block_size} positions")
        self.transformer.wpe.weight.data = self.transformer.wpe.weight.data[:block_size].clone()
        self.transformer.wpe.num_embeddings = self.config.block_size = block_size

    def pack(self, rows=1):
        """Prepare for generating so many texts at a time: on a CPU, keep large matrices as oneDNN's
        kernels for few rows read them, in half of nn.Linear's time; training is over with that."""
        weight = self.lm_head.weight
        known = weight.is_cpu and torch.backends.mkldnn.is_available() and (
            weight.dtype == torch.float32 or weight.dtype == torch.bfloat16
            and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        for layer in self.modules():  # below 2 MB nn.Linear is as fast, from a core's cache
            if isinstance(layer, nn.Linear) and layer.weight.numel() >= 1 << 19 and known:
                copy = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
                layer.forward = lambda x, copy=copy, bias=layer.bias: (
                    torch.ops.mkldnn._linear_pointwise(x, copy, bias, "none", [], ""))
        return self

    @torch.inference_mode()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, eos_token=None,
               generator=None, compile=False):
        """Yield the next tokens of idx one by one: (B, T) -> (ids (B, 1), logits (B, vocab_size)),
        until each row has had eos_token. The text may outgrow block_size: positions can't slide, so
        a full cache is forgotten, and the newest half of the block read as if it were the start."""
        if temperature < 0 or top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"{temperature=}, {top_p=}: expected from 0, and above 0 up to 1")
        block_size, cache = self.config.block_size, Cache(self, len(idx))
        if compile:  # shapes that never change can be recorded as a CUDA graph, and replayed
            torch._dynamo.mark_static_address(cache.past)
            step = torch.compile(self.forward, mode="reduce-overhead")
        done = torch.zeros_like(idx[:, :1], dtype=torch.bool)
        fresh = idx[:, -block_size:]  # what the model hasn't read yet
        for _ in range(max_new_tokens):
            if cache.length + fresh.size(1) > block_size:
                cache.length, fresh = 0, idx[:, -(block_size // 2 or 1):]
            if compile and cache.length:  # behind a filled cache, fresh is a single token
                place = torch.tensor([cache.length], device=idx.device)
                logits = step(fresh, cache=cache, position=place)[0][:, -1].clone()
                cache.length += 1
            else:
                logits = self(fresh, cache=cache)[0][:, -1]
            fresh = choose_token(logits, temperature, top_k, top_p, generator)
            if eos_token is not None:
                fresh = fresh.masked_fill(done, eos_token)
                done |= fresh == eos_token
            yield fresh, logits
            if eos_token is not None and done.all():
                return
            idx = torch.cat((idx, fresh), dim=1)

    def generate(self, idx, max_new_tokens, **options):
        """Return idx with its continuation, (B, T) -> (B, T + max_new_tokens); see stream."""
        return torch.cat([idx, *(ids for ids, _ in self.stream(idx, max_new_tokens, **options))], 1)

    @torch.inference_mode()
    def beam_search(self, idx, max_new_tokens, beams, length_penalty=1.0, eos_token=None):
        """Search for likely continuations of idx (1, T): of all that one more token makes of the
        beams, so many are kept; one with eos_token is complete. Returns [(ids, log-probability of
        what follows idx)], the best log-probability / length ** length_penalty first."""
        block_size, vocab_size = self.config.block_size, self.config.vocab_size
        cache, texts = Cache(self, beams), idx.expand(beams, -1)
        scores = torch.full((beams, 1), -math.inf, device=idx.device)  # log-probabilities
        scores[0] = 0.0  # at first all beams are the same: only one of them counts
        fresh, lengths = texts[:, -block_size:], torch.zeros_like(texts[:, :1])  # as in stream
        done = lengths > 0
        for _ in range(max_new_tokens):
            if cache.length + fresh.size(1) > block_size:
                cache.length, fresh = 0, texts[:, -(block_size // 2 or 1):]
            log_probs = F.log_softmax(self(fresh, cache=cache)[0][:, -1].float(), dim=-1)
            log_probs = log_probs.masked_fill(done, -math.inf)
            log_probs[done[:, 0], eos_token or 0] = 0.0  # (beams, vocab_size)
            scores, best = (scores + log_probs).flatten().topk(beams)
            parents, fresh, scores = best // vocab_size, best[:, None] % vocab_size, scores[:, None]
            lengths = lengths[parents] + ~done[parents]
            done = done[parents] | (fresh == eos_token)
            texts = torch.cat((texts[parents], fresh), dim=1)
            cache.past = cache.past[:, :, parents]
            if done.all():
                break
        ranks = (scores / lengths.clamp(min=1) ** length_penalty).flatten()
        return [(texts[i, :idx.size(1) + lengths[i]].tolist(), scores[i].item())
                for i in ranks.argsort(descending=True, stable=True) if scores[i] > -math.inf]

    @classmethod
    def from_pretrained(cls, name, dropout=0.0):
        """Return the GPT-2 in a local folder, or of that name at Hugging Face ("gpt2-medium",
        "owner/name@revision"). Nothing in it is executed. ValueError says why it can't be had."""
        try:
            folder = Path(name) if Path(name).is_dir() else hub_folder(name)
            path = folder / ("config.json" if (folder / "config.json").exists() else "hparams.json")
            get = json.loads(path.read_bytes()).get
            for key, value in GPT2.items():
                if get(key, value) != value:
                    raise ValueError(f"its {key} is {get(key)!r}, GPT-2's is {value!r}")
            config = GPTConfig(get("n_positions", get("n_ctx")), get("vocab_size", get("n_vocab")),
                               get("n_layer"), get("n_head"), get("n_embd"), dropout)
            state = {}
            read = {".safetensors": read_safetensors, ".bin": torch_load, ".index": read_tensorflow}
            for path in weight_files(folder):
                for key, tensor in read[path.suffix](path).items():
                    if not re.search(r"\.attn\.(masked_)?bias$", key):  # no mask of old files
                        key = re.sub("^(?!transformer|lm_head)", "transformer.", key)  # if missing
                        state[key] = tensor.transpose(0, -1) if ".h." in key else tensor
            wte = state["transformer.wte.weight"]
            if "lm_head.weight" in state and not state["lm_head.weight"].equal(wte):
                raise ValueError("lm_head.weight isn't wte.weight over again, as in GPT-2")
            numbers = sum(tensor.numel() for tensor in state.values())  # (stride 0 repeats one)
            if config.n_layer > len(state) or numbers > sum(map(os.path.getsize, folder.iterdir())):
                raise ValueError(f"the files can't hold n_layer={config.n_layer}, {numbers=}")
            with torch.device("meta"):  # nothing is drawn at random, and no memory touched
                model = cls(config)
            model.load_state_dict({"lm_head.weight": wte} | state, assign=True)
            model.lm_head.weight = model.transformer.wte.weight
            del state, tensor, wte  # what is mapped from the files leaves memory when it is copied
            for parameter in model.parameters():
                parameter.data = torch.empty(parameter.shape).copy_(parameter.data)
            with suppress(OSError):  # (GPT-2's own may not be at hand)
                model.tokenizer = read_tokenizer(folder / "tokenizer.json", config.vocab_size)
            return model
        except Exception as error:  # a broken file can raise anything at all
            reason = "no " * (type(error) is KeyError) + " ".join(str(error).split()) or repr(error)
            raise ValueError(f"{name} can't be used: {reason:.250}") from error

    def save_pretrained(self, folder, tokenizer=None):
        """Write the model and its tokenizer, or this one, into a new folder for any GPT-2 tool."""
        folder, config, last = Path(folder), self.config, self.config.vocab_size - 1
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty: choose another folder")
        weights, header, end = {}, {"__metadata__": {"format": "pt"}}, 0
        for name, parameter in self.named_parameters():
            tensor = parameter.detach().cpu().float()
            weights[name] = tensor.t() if ".h." in name else tensor
            if not config.bias and (".h." in name or ".ln_f." in name):  # 0 is as good as none
                weights[name.replace(".weight", ".bias")] = torch.zeros(len(tensor))
        for name, tensor in weights.items():
            header[name] = dict(dtype="F32", shape=[*tensor.shape],
                                data_offsets=[end, end := end + tensor.nbytes])
        header = json.dumps(header).encode()
        header += b" " * (-len(header) % 8)
        ends = dict(bos_token_id=last, eos_token_id=last)
        files = {"generation_config.json": ends, "config.json": GPT2 | ends | dict(
            architectures=["GPT2LMHeadModel"], n_positions=config.block_size, n_head=config.n_head,
            n_layer=config.n_layer, n_embd=config.n_embd, vocab_size=config.vocab_size,
            attn_pdrop=0.0, embd_pdrop=config.dropout, resid_pdrop=config.dropout)}
        if tokenizer := tokenizer or self.tokenizer:
            files["tokenizer.json"] = tokenizer_json(tokenizer["tokens"])
            files["tokenizer_config.json"] = dict(
                tokenizer_class="GPT2Tokenizer", model_max_length=config.block_size,
                bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            new = Path(temporary, folder.name)
            for name, content in files.items():
                with whole_file(new / name, "w") as file:
                    json.dump(content, file, indent=2)
            with whole_file(new / "model.safetensors") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                file.writelines(tensor.contiguous().numpy() for tensor in weights.values())
            os.replace(new, folder)

    @staticmethod
    def from_snapshot(path):  # -> the model of a snapshot that train.py wrote; see read_snapshot
        return read_snapshot(path)["model"]

# GPT-2 as others keep it. config.json says this, or nothing of it, of a model that is a GPT-2:
GPT2 = dict(model_type="gpt2", activation_function="gelu_new", layer_norm_epsilon=1e-5,
            scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
            add_cross_attention=False, tie_word_embeddings=True)
# In tokenizer.json, a byte that is no visible character stands as one of those from 256 on.
HIDDEN = dict(enumerate([i for i in range(256) if i == 32 or not chr(i).isprintable()], 256))
VISIBLE = {byte: sign for sign, byte in HIDDEN.items()}
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                "model.ckpt.index")  # the first that is there counts

def tokenizer_json(tokens):  # any two tokens that together are one may merge, the lowest id first
    ids = {token.translate(VISIBLE): i for i, token in enumerate(tokens)}
    merges = [f"{token[:i]} {token[i:]}" for token in ids for i in range(1, len(token))
              if token[:i] in ids and token[i:] in ids]
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    end = dict(id=len(ids), content=END_OF_TEXT, special=True, normalized=False, lstrip=False,
               rstrip=False, single_word=False)
    return dict(version="1.0", added_tokens=[end], pre_tokenizer=level, decoder=level, model=dict(
        type="BPE", vocab=ids | {END_OF_TEXT: len(ids)}, merges=merges, ignore_merges=True))

def read_tokenizer(path, vocab_size):  # -> as prepare.py describes one, None if there is none
    if not path.exists():
        return gpt2_tokenizer() if vocab_size == 50257 else None
    found = json.loads(path.read_bytes())
    ids = found["model"]["vocab"] | {end["content"]: end["id"] for end in found["added_tokens"]}
    *tokens, last = [token.translate(HIDDEN) for token in sorted(ids, key=ids.get)]
    before = found["pre_tokenizer"]
    kind = found["model"]["type"], before["type"], before["add_prefix_space"], last
    if (kind != ("BPE", "ByteLevel", False, END_OF_TEXT) or {*range(vocab_size)} != {*ids.values()}
            or not {*"".join(tokens)} == {*map(chr, range(256))} <= {*tokens}):
        raise ValueError(f"tokenizer.json isn't a BPE as GPT-2's, with {vocab_size} tokens")
    return {"name": "bpe", "tokens": tokens}

def hub_folder(name):  # -> its folder in Hugging Face's cache, with what is missing downloaded
    env = os.environ.get
    hub = env("HF_ENDPOINT", "https://huggingface.co")
    headers = {"Authorization": f"Bearer {env('HF_TOKEN')}"} if env("HF_TOKEN") else None
    model, revision = (name + "@main").split("@")[:2]
    cache = Path(env("HF_HUB_CACHE", env("HF_HOME", "~/.cache/huggingface") + "/hub")).expanduser()
    cache /= "models--" + model.replace("/", "--")
    branch = cache / "refs" / revision
    revision = branch.read_text().strip() if branch.exists() else revision
    folder = cache / "snapshots" / revision
    def get(file):
        if not (folder / file).exists():
            if env("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
                raise OSError(f"{folder / file} isn't there, and HF_HUB_OFFLINE is set")
            download(f"{hub}/{model}/resolve/{revision}/{file}", folder / file, headers)
    get("config.json")
    for file in ("tokenizer.json", *WEIGHT_FILES[:3]):
        with suppress(FileNotFoundError):  # the hub hasn't all of these
            if not any((folder / weights).exists() for weights in WEIGHT_FILES):
                get(file)
    for path in weight_files(folder):
        get(path.name)
    return folder

def weight_files(folder):  # -> the paths of the files that a model's weights are in
    path = next(filter(Path.exists, map(folder.joinpath, WEIGHT_FILES)), folder / WEIGHT_FILES[0])
    if path.suffix == ".json":  # it says which tensor is in which file
        files = json.loads(path.read_bytes())["weight_map"].values()
        return [folder / file for file in {Path(file).name for file in files}]
    return [path]

def mapped(path, offset, dtype, shape):  # -> a tensor that is read from the file when it's used
    data = np.memmap(path, np.uint8, "c", offset, (math.prod(shape) * dtype.itemsize,))
    return torch.from_numpy(data).view(dtype).view(shape)

def read_safetensors(path):  # -> {name: tensor}; they have to fill the file without a gap
    dtypes = dict(F32=torch.float32, F16=torch.float16, BF16=torch.bfloat16, U8=torch.uint8,
                  BOOL=torch.bool)
    size, weights = os.path.getsize(path), {}
    with open(path, "rb") as file:
        start = end = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(start, size) - 8))
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        tensor = weights[name] = mapped(path, end, dtypes[entry["dtype"]], entry["shape"])
        if entry["data_offsets"] != [end - start, end - start + tensor.nbytes]:
            raise ValueError(f"{path.name}: {name} can't be what its header says, {entry}")
        end += tensor.nbytes
    if end != size:
        raise ValueError(f"{path.name} has {size} bytes, its header speaks of {end}")
    return weights

def torch_load(path, mmap=True):  # -> what torch.save wrote; nothing in it is executed
    zipped = zipfile.is_zipfile(path)  # before 2020, torch.save wrote another form
    if zipped and (broken := zipfile.ZipFile(path).testzip()):  # compares each record's checksum
        raise ValueError(f"its record {broken} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipped)

def read_tensorflow(path):  # -> {name: tensor}; path is the index, which tells where they are
    index, data, weights = path.read_bytes(), path.with_suffix(".data-00000-of-00001"), {}
    def checksum(data):  # the remainder by Castagnoli's polynomial, masked as TensorFlow does it
        crc = 0xFFFFFFFF
        for bit in (byte >> i for byte in data for i in range(8)):
            crc = crc >> 1 ^ (crc ^ bit) % 2 * 0x82F63B78
        crc ^= 0xFFFFFFFF
        return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")
    def varint(file):  # seven bits a byte, the lowest first; the eighth says that more follow
        byte, = file.read(1)
        return byte if byte < 128 else byte - 128 + (varint(file) << 7)
    def fields(data):  # -> {number: [values]} of a protocol buffer
        file, found = io.BytesIO(data), {}
        while file.tell() < len(data):
            number, kind = divmod(varint(file), 8)
            value = varint(file) if kind == 0 else file.read(4 if kind == 5 else varint(file))
            found.setdefault(number, []).append(value)
        return found
    def table(handle):  # -> {key: value} of the table whose place and size the handle tells
        place, size = varint(handle), varint(handle)
        block = index[place:place + size + 1]
        if checksum(block) != index[place + size + 1:place + size + 5] or block[-1]:
            raise ValueError(f"{path.name} is damaged, or compressed")
        file, key, found = io.BytesIO(block), b"", {}
        while file.tell() < size - 4 - 4 * int.from_bytes(block[-5:-1], "little"):
            shared, more, length = varint(file), varint(file), varint(file)
            key = key[:shared] + file.read(more)  # it may begin as the one before did
            found[key] = file.read(length)
        return found
    footer = io.BytesIO(index[-48:])
    varint(footer), varint(footer)  # the place and size of a table without use
    entries = {name.decode(): fields(entry) for handle in table(footer).values()
               for name, entry in table(io.BytesIO(handle)).items() if name}  # (b"" is about all)
    for name, entry in entries.items():
        shape = [fields(size)[1][0] for size in fields(entry[2][0])[2]][-2:]  # some are [1, n, m]
        tensor = mapped(data, entry.get(4, [0])[0], torch.float32, shape)
        if (entry[1] != [1] or entry[5] != [tensor.nbytes] or tensor.nbytes <= 1 << 16
                and entry[6] != [checksum(tensor.numpy().tobytes())]):  # (of more it'd take long)
            raise ValueError(f"{name} is damaged, or not float32")
        name = name.replace("model/h", "h.").replace("model/", "").replace("/", ".")
        weights[re.sub(r"(\.[wg]|(?<=^w.e))$", ".weight", re.sub(r"\.b$", ".bias", name))] = tensor
    return weights

def read_snapshot(path, **changes):
    """Return a snapshot's dict, with its "model" (config with changes); ValueError if broken."""
    try:
        snapshot = torch_load(path, mmap=False)
        if snapshot.get("format_version") != 2:
            raise ValueError("it is no snapshot of this version of train.py (format_version 2)")
        model = snapshot["model"] = GPT(GPTConfig(**snapshot["model_config"] | changes))
        model.load_state_dict(dict(snapshot["model_state_dict"]))
        model.tokenizer = snapshot["tokenizer"]
    except (FileNotFoundError, MemoryError):  # which say nothing about what is in the file
        raise
    except Exception as error:  # a broken pickle can raise anything at all
        reason = " ".join(str(error).split()) or repr(error)
        raise ValueError(f"{path} can't be used: {reason:.250}") from error
    return snapshot
