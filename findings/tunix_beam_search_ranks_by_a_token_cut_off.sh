#!/usr/bin/env bash
# Guess: tunix's Sampler with beam_size and max_generation_steps=n returns the best of the beams
# after n tokens, the one with the largest sum of log-probabilities. So with n=1 it's the likeliest
# token, as with greedy decoding, and with a beam as wide as the vocabulary and n=2 it's the
# likeliest of all pairs of tokens.
#
# google-tunix 0.1.7, jax 0.10.2: the loop makes one step too many. For greedy decoding and sampling
# it does nothing, since the token has no place in the buffer and is dropped. But with beams it
# sorts them once more, by n+1 tokens, and drops the last: what's returned is the beginning of the
# best text of n+1 tokens. A text that goes on with a sure token wins over a likelier one, and a
# text isn't the likeliest of its length even with a beam that keeps all. (Texts that end with
# eos before n tokens are not affected by themselves, but the others are compared with them after
# one more factor.)
#
# Seen (a small random Llama of tunix, 60 prompts; how many texts are those of a beam search by
# hand; mean sum of log-probabilities of tunix's texts and of those by hand):
#   greedy, n=1: 60 of 60; -0.847, by hand -0.847
#   beam_size=4, n=1: 46 of 60; -0.954, by hand -0.847; first 1 of the best 2 tokens: 60 of 60
#   beam_size=14, n=2: 48 of 60; -1.704, by hand -1.670; first 2 of the best 3 tokens: 60 of 60
#   beam_size=4, n=4: 43 of 60; -3.319, by hand -3.237; first 4 of the best 5 tokens: 60 of 60

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6' 'jax==0.10.2' 'jaxlib==0.10.2' \
    'flax==0.12.8' 'google-tunix==0.1.7'

cd "$folder"
JAX_PLATFORMS=cpu venv/bin/python - 2>log <<'END' || { tail log; exit 1; }
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3.model import Llama3, ModelConfig

PROMPTS, LENGTH, VOCABULARY = 60, 4, 16
PAD, EOS, BOS = 0, 1, 2


class Tokenizer:  # of numbers; no text ends early, since pad and eos are forbidden below
    def encode(self, text):
        return [int(token) for token in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))

    pad_id, eos_id, bos_id = lambda self: PAD, lambda self: EOS, lambda self: BOS


model = Llama3(ModelConfig(num_layers=2, vocab_size=VOCABULARY, embed_dim=32, hidden_dim=64,
                           num_heads=4, head_dim=8, num_kv_heads=2, rope_theta=10000,
                           norm_eps=1e-5), rngs=nnx.Rngs(1))
rng = np.random.default_rng(1)
nnx.update(model, jax.tree.map(
    lambda x: (x + 0.3 * rng.normal(size=x.shape)).astype(jnp.float32), nnx.state(model)))
prompts = rng.integers(3, VOCABULARY, (PROMPTS, LENGTH))
sampler = Sampler(model, Tokenizer(), CacheConfig(16, 2, 2, 8))


@nnx.jit
def forward(model, ids):
    rows, length = ids.shape
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (rows, length, length))
    logits = model(ids, jnp.broadcast_to(jnp.arange(length), ids.shape), None, mask)[0]
    logits = logits.at[:, :, jnp.array([PAD, EOS])].set(-jnp.inf)
    return jax.nn.log_softmax(logits.astype(jnp.float32))


def by_hand(n, beams):
    texts = np.c_[np.full(PROMPTS, BOS), prompts][:, None]
    scores = np.zeros((PROMPTS, 1))
    for _ in range(n):
        last = np.array(forward(model, jnp.array(texts.reshape(-1, texts.shape[-1]))))[:, -1]
        total = (scores[..., None] + last.reshape(*scores.shape, -1)).reshape(PROMPTS, -1)
        best = np.argsort(-total, axis=1)[:, :beams]
        scores = np.take_along_axis(total, best, 1)
        texts = np.take_along_axis(texts, best[..., None] // VOCABULARY, 1)
        texts = np.concatenate([texts, best[..., None] % VOCABULARY], -1)
    return texts[:, 0, -n:]


def score(texts):
    ids = np.c_[np.full(PROMPTS, BOS), prompts, texts]
    logs = np.array(forward(model, jnp.array(ids)))[:, LENGTH:-1]
    return np.take_along_axis(logs, texts[..., None], 2).sum() / PROMPTS


for n, beams in [(1, None), (1, 4), (2, VOCABULARY - 2), (4, 4)]:
    texts = sampler([Tokenizer().decode(prompt) for prompt in prompts], max_generation_steps=n,
                    beam_size=beams, forbidden_tokens=[PAD, EOS]).text
    texts = np.array([Tokenizer().encode(text) for text in texts])
    wanted = by_hand(n, beams or 1)
    same = (texts == wanted).all(1).sum()
    result, expected = score(texts), score(wanted)
    name = f"beam_size={beams}" if beams else "greedy"
    print(f"{name}, n={n}: {same} of {PROMPTS}; {result:.3f}, by hand {expected:.3f}", end="")
    if beams:
        longer = (texts == by_hand(n + 1, beams)[:, :n]).all(1).sum()
        print(f"; first {n} of the best {n + 1} tokens: {longer} of {PROMPTS}", end="")
        assert longer == PROMPTS and same < 0.95 * PROMPTS and result < expected - 0.005
    else:
        assert same == PROMPTS
    print(flush=True)
END
