"""The whole GPT-2: embeddings, blocks, loss, generation, and reading it from a snapshot.

Notable, against what one may know from other GPTs:
- it is GPT-2 to the letter (Radford et al. 2019), so that whatever is trained here opens in every
  tool that runs GPT-2: learned positions, LayerNorm before each half of a block (eps 1e-5), the
  tanh form of GELU, biases, and one matrix for the token embedding and the output layer
- attention is PyTorch's scaled_dot_product_attention, which picks the fastest kernel it has
- a large vocabulary never has the logits of all positions in memory at once (GPT.loss)"""

import math
import zipfile
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

# Shapes by name: GPT-2's four as OpenAI published them; GPT-3's eight from Table 2.1 of Brown et
# al. 2020, but for two rows whose heads don't fit their width: 16 heads for 1.3B's 24, which make
# the table's 128 a head, and a width of 5120 for 13B's 5140.
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
            raise ValueError(f"n_embd={self.n_embd} can't be divided among n_head={self.n_head} "
                             "heads: make it a multiple")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: expected from 0 to below 1")


def choose_device(device="auto", dtype="auto", compile="auto"):
    """Turn the three settings into (torch.device, torch.dtype, bool); ValueError for a device that
    is not there and for values that are none."""
    if device == "auto":
        device = ("cuda" if torch.cuda.is_available()
                  else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(1, device=str(device)).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"device={device!r} can't be used here: {str(error).splitlines()[0]}; "
                         "expected 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
    device = torch.device(device)
    if dtype == "auto" and device.type == "cuda":
        dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if dtype == "auto":  # bfloat16 pays on AMX and on AMD's cores, not on Intel's without AMX
        has = getattr(torch.cpu, "get_capabilities", dict)().get  # (older versions can't tell)
        fast = has("amx_bf16") or has("avx512_bf16") and not has("avx512_fp16")
        dtype = "bfloat16" if fast and device.type == "cpu" else "float32"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype={dtype!r}: expected 'auto', 'float32', 'bfloat16' or 'float16'")
    if compile not in ("auto", True, False):
        raise ValueError(f"compile={compile!r}: expected 'auto', True or False")
    return device, getattr(torch, dtype), device.type == "cuda" if compile == "auto" else compile


class Dropout(nn.Dropout):
    """nn.Dropout; but to draw a random number for each element takes a CPU as long as a matrix
    product, so there each gets a byte of noise, and eight bytes are drawn at once."""

    def forward(self, x):
        if not (self.training and self.p and x.is_cpu):
            return super().forward(x)
        dropped = max(1, round(256 * self.p))  # of the 256 values of a byte
        noise = torch.empty(x.numel() // 8 + 1, dtype=torch.int64).random_(-2**63, None)
        kept = noise.view(torch.uint8)[:x.numel()].view(x.shape) >= dropped
        return x * kept.to(x.dtype).mul_(256 / (256 - dropped))


class Block(nn.Module):
    """One layer: each position looks at those before it (attention), then thinks (mlp). Both add
    to the stream x, and each normalizes what it reads of it."""

    def __init__(self, config):
        super().__init__()
        n_embd, bias = config.n_embd, config.bias
        self.n_head = config.n_head
        self.ln_1 = nn.LayerNorm(n_embd, bias=bias)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(n_embd, 3 * n_embd, bias=bias),
                                   "c_proj": nn.Linear(n_embd, n_embd, bias=bias)})
        self.ln_2 = nn.LayerNorm(n_embd, bias=bias)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(n_embd, 4 * n_embd, bias=bias),
                                  "c_proj": nn.Linear(4 * n_embd, n_embd, bias=bias)})
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
        causal = mask is None and T > 1
        if x.requires_grad and x.is_cpu and T < 256:  # in bfloat16, backward takes twice as long
            q, k, v = q.float(), k.float(), v.float()
            with torch.autocast("cpu", enabled=False):
                y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side again
        x = x + self.dropout(self.attn["c_proj"](y))
        # (B, T, C) -> (B, T, 4C) -> (B, T, C)
        y = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.dropout(self.mlp["c_proj"](y))


class Cache:
    """The keys and values of the tokens read so far, so that each token is read only once.
    A position looks back at keys and values of earlier positions, and these never change: what
    comes later can't reach back. So each layer keeps them, and a new token costs one position's
    work in place of the whole text's."""

    def __init__(self, model, batch_size):
        config, weight = model.config, model.lm_head.weight
        # (n_layer, keys and values, B, n_head, block_size, head_dim)
        self.past = torch.zeros(
            config.n_layer, 2, batch_size, config.n_head, config.block_size,
            config.n_embd // config.n_head, device=weight.device, dtype=weight.dtype)
        self.length = 0  # positions filled


def choose_token(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Draw the next token: logits (B, vocab_size) -> ids (B, 1).
    temperature 0 takes the likeliest; top_k keeps the k likeliest; top_p the fewest that together
    reach that probability (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration").
    """
    if temperature < 1e-6:
        return logits.argmax(-1, keepdim=True)
    top_p = 1.0 if top_p is None else top_p
    logits, order, k = logits.float() / temperature, None, logits.size(-1)
    if (top_k or k) < k or top_p < 1:
        logits, order = logits.topk(min(top_k or k, k))
    probs = F.softmax(logits, dim=-1)  # with the likeliest first, if there is an order
    if top_p < 1:
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= max(top_p, 1e-6), 0.0)
    chosen = torch.multinomial(probs, 1, generator=generator)
    return chosen if order is None else order.gather(1, chosen)


class ChunkedCrossEntropy(torch.autograd.Function):
    """F.cross_entropy(F.linear(x, weight), targets, reduction="sum"), a few positions at a time.
    The logits of all positions are by far the largest tensor, and moving them through memory costs
    a CPU more than computing them. So each part goes all the way to the gradients of x and weight,
    and backward has nothing left to do but multiply."""

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
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x.mul_(grad_output), grad_weight.mul_(grad_output), None, None


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            drop=Dropout(config.dropout),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd, bias=config.bias),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # tied (Press & Wolf 2017)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                # Each block adds to the stream twice: the sum of 2 * n_layer such additions
                # keeps the size of one (GPT-2 paper, 2.3).
                residual = name.endswith("c_proj.weight")
                std = 0.02 / math.sqrt(2 * config.n_layer) if residual else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, idx, targets=None, return_logits=True, cache=None, position=None):
        """Predict the next token at each position.
        idx (B, T): token ids, T up to block_size; targets (B, T): the ids that follow, -1 where
        none counts; cache: a Cache of what came before idx; position (1,): the place of a single
        token, for a step whose shapes are always the same, on all of the cache. Returns (logits,
        loss): (B, T, vocab_size) and the mean cross-entropy in nats with targets (logits None
        without return_logits, which saves their memory), (B, 1, vocab_size) and None without."""
        T, start, end, mask = idx.size(1), 0, self.config.block_size, None
        if position is None:
            start = cache.length if cache else 0
            if start + T > end:
                raise ValueError(f"{start + T} tokens don't fit block_size={end}: shorten them")
            end = start + T
            if cache:
                cache.length = end
            position = torch.arange(start, end, device=idx.device)
        if end > start + T or start and T > 1:  # (T, end): what each position may look at
            mask = position[:, None] >= torch.arange(end, device=idx.device)
        # (B, T) -> (B, T, C)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(position))
        for i, block in enumerate(self.transformer.h):
            past = cache.past[i, :, :, :, :end] if cache else None
            x = block(x, past, position, mask)
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
            total = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
        else:
            with torch.autocast(kind, enabled=False):
                total = ChunkedCrossEntropy.apply(x, weight, targets, torch.is_grad_enabled())
        return total / (targets != -1).sum()

    def num_params(self):
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self):
        """Floating-point operations to train on one token: 6 per weight that is multiplied by,
        and attention's 12 * n_layer * n_embd * block_size (PaLM paper, appendix B)."""
        weights = self.num_params() - self.transformer.wpe.weight.numel()
        return 6 * weights + 12 * self.config.n_layer * self.config.n_embd * self.config.block_size

    def parameter_groups(self):
        """Return (matrices inside the blocks, embeddings, vectors): only the vectors (biases and
        LayerNorms) are never decayed, and only the matrices inside the blocks suit Muon."""
        matrices = [p for p in self.transformer.h.parameters() if p.dim() == 2]
        embeddings = [self.transformer.wte.weight, self.transformer.wpe.weight]
        vectors = [p for p in self.parameters() if p.dim() < 2]
        return matrices, embeddings, vectors

    def crop_block_size(self, block_size):
        """Forget the positions beyond block_size, for a model that is larger than needed."""
        if block_size > self.config.block_size:
            raise ValueError(f"block_size={block_size}: the model knows only "
                             f"{self.config.block_size} positions")
        wpe = self.transformer.wpe
        wpe.weight = nn.Parameter(wpe.weight[:block_size].detach().clone())
        wpe.num_embeddings = self.config.block_size = block_size

    def pack(self, rows=1):
        """Prepare for generating so many texts at a time: on a CPU, keep copies of the large
        matrices in the order in which oneDNN's kernels for few rows read them, which takes half
        the time of nn.Linear's. From then on the model can't be trained."""
        weight = self.lm_head.weight
        known = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16
                                                  and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        for layer in self.modules():
            if (isinstance(layer, nn.Linear) and layer.weight.numel() >= 1 << 19  # 2 MB: too large
                    # to stay in the cache of a core, where nn.Linear is as fast
                    and known and weight.is_cpu and torch.backends.mkldnn.is_available()):
                copy = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
                layer.forward = lambda x, copy=copy, bias=layer.bias: (
                    torch.ops.mkldnn._linear_pointwise(x, copy, bias, "none", [], ""))
        return self

    @torch.inference_mode()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, eos_token=None,
               generator=None, compile=False):
        """Yield the next tokens of idx one by one: (B, T) -> (ids (B, 1), logits (B, vocab_size)).
        A row that has reached eos_token repeats it; when all have, the stream ends. The text may
        outgrow block_size: positions can't slide, so when the cache is full the newest half of
        the block is read again as if it were a beginning, and what came before is forgotten."""
        if not idx.size(1):
            raise ValueError("the prompt is empty: begin with at least one token")
        if temperature < 0:
            raise ValueError(f"temperature={temperature}: expected at least 0")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p}: expected above 0 and at most 1")
        block_size, cache = self.config.block_size, Cache(self, len(idx))
        step = self.forward
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
            if done.all():
                return
            idx = torch.cat((idx, fresh), dim=1)

    def generate(self, idx, max_new_tokens, **options):
        """Return idx with its continuation, (B, T) -> (B, T + max_new_tokens); see stream."""
        new = [ids for ids, _ in self.stream(idx, max_new_tokens, **options)]
        return torch.cat([idx, *new], dim=1)

    @torch.inference_mode()
    def beam_search(self, idx, max_new_tokens, beams, length_penalty=1.0, eos_token=None):
        """Search for likely continuations of idx (1, T): of all that a further token makes of the
        beams, so many are kept, and one that has reached eos_token stays as it is. Returns [(ids,
        log-probability of what follows idx)], the best first: by log-probability over
        length ** length_penalty. Beyond block_size it's as in stream."""
        block_size, vocab_size = self.config.block_size, self.config.vocab_size
        cache, texts = Cache(self, beams), idx.expand(beams, -1)
        scores = torch.full((beams, 1), -math.inf, device=idx.device)  # log-probabilities
        scores[0] = 0.0  # at first all beams are the same: only one of them counts
        lengths = torch.zeros_like(texts[:, :1])
        done = lengths > 0
        fresh = texts[:, -block_size:]
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
        found = [(ids[:idx.size(1) + length], score) for ids, length, score
                 in zip(texts.tolist(), lengths.flatten().tolist(), scores.flatten().tolist())]
        found.sort(key=lambda beam: -beam[1] / max(1, len(beam[0]) - idx.size(1)) ** length_penalty)
        return [beam for beam in found if beam[1] > -math.inf]

    @classmethod
    def from_snapshot(cls, path):
        """Return the model of a snapshot that train.py wrote; see read_snapshot."""
        snapshot = read_snapshot(path)
        model = cls(GPTConfig(**snapshot["model_config"]))
        model.load_state_dict(snapshot["model_state_dict"])
        model.tokenizer = snapshot["tokenizer"]
        return model


SNAPSHOT = dict(model_state_dict=dict, optimizer_state_dict=list, step=int, loss=float,
                best_val_loss=float, model_config=dict, settings=dict, data=str,
                tokenizer=(dict, type(None)), scaler_state_dict=dict, format_version=int)


def read_snapshot(path):
    """Return the dict that is in a snapshot file, on the CPU; nothing in it is executed.
    Raises ValueError with the reason if the file is not a whole snapshot of this format."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # compares the checksum of each record
        if broken:
            raise ValueError(f"its record {broken} is damaged")
        snapshot = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(snapshot[key], kind) for key, kind in SNAPSHOT.items()):
            raise ValueError("it is not a snapshot of train.py")
        if snapshot["format_version"] != 2:
            raise ValueError(f"its format_version {snapshot['format_version']} is not 2: it was "
                             "written by another version of train.py")
        model = GPT(GPTConfig(**snapshot["model_config"]))  # a trial
        model.load_state_dict(dict(snapshot["model_state_dict"]), assign=True)
        if snapshot["tokenizer"] is not None:
            "".join([snapshot["tokenizer"]["name"], *snapshot["tokenizer"]["tokens"]])
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken pickle can raise anything at all
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} can't be used: {reason}") from error
    return snapshot
