#!/usr/bin/env bash
# Guess: the completeness score of circuit-tracer's compute_graph_scores is what its docstring says,
# the fraction of incoming edges of all nodes, weighted by each node's influence on the output, that
# come from features or tokens and not from errors. A graph whose logits read errors only has 0.
#
# circuit-tracer 0.5.0, transformer-lens 3.2.1, transformers 4.57.3, torch 2.13.0: it has 0.5, and
# no graph has less. Error and token nodes have no incoming edges, so that they have no part in such
# a fraction; but the score takes 1 minus the share of errors for every node, which is 1 for a row
# of zeros. So the influence of each error is counted twice, once against the graph, in the nodes
# that read it, and once for it, as that of a node that is wholly explained; tokens are as well. The
# score is nearer to 1 for it, the more so the worse a graph is: where the transcoders' decoders are
# zero, so that nothing whatever goes through features, it is 0.78 and not 0.55. The replacement
# score, the other of the two, isn't touched. Scores of transcoders are compared by it, and the
# function has been copied to other projects.
#
# Seen (a small random model with random transcoders, the decoders multiplied by a factor; then a
# graph of one error, one token and one logit; replacement and completeness, in brackets by hand):
#   decoders x 1.0: 0.741 (0.741) and 0.905 (0.850)
#   decoders x 0.1: 0.606 (0.606) and 0.817 (0.658)
#   decoders x 0.0: 0.552 (0.552) and 0.776 (0.552)
#   0% from the error: 1.000 (1.000) and 1.000 (1.000)
#   50% from the error: 0.500 (0.500) and 0.750 (0.500)
#   100% from the error: 0.000 (0.000) and 0.500 (0.000)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==4.57.3' 'transformer-lens==3.2.1' 'nnsight==0.8.1' 'circuit-tracer==0.5.0'
cd "$folder"

export HF_HUB_OFFLINE=1 HF_HOME="$folder" OMP_NUM_THREADS=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import torch
from circuit_tracer import attribute
from circuit_tracer.attribution.targets import LogitTarget
from circuit_tracer.graph import Graph, compute_graph_scores
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel)
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder, TranscoderSet)
from tokenizers import Tokenizer, models
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

VOCAB, WIDTH, FEATURES, LAYERS = 60, 32, 40, 2


def by_hand(graph, layers):
    """Return the replacement and completeness score, from the graph's paths."""
    edges = graph.adjacency_matrix.abs().double()
    edges = edges / edges.sum(1, keepdim=True).clamp(min=1e-12)
    features, tokens = len(graph.selected_features), len(graph.input_tokens)
    errors = slice(features, features + layers * tokens)
    embeddings = slice(errors.stop, errors.stop + tokens)
    weights = torch.zeros(len(edges), dtype=torch.double)
    weights[-len(graph.logit_targets):] = graph.logit_probabilities.double()
    # How much of the output goes through each node: the sum over all paths, of any length.
    influence = weights @ torch.linalg.inv(torch.eye(len(edges)).double() - edges)
    all_edges = influence[:, None] * edges
    replacement = influence[embeddings].sum() / (
        influence[embeddings].sum() + influence[errors].sum())
    return replacement.item(), (1 - all_edges[:, errors].sum() / all_edges.sum()).item()


def compare(name, graph, layers):
    """Print both scores and those by hand; return completeness, and by hand."""
    scores, wanted = compute_graph_scores(graph), by_hand(graph, layers)
    print(f"{name}: {scores[0]:.3f} ({wanted[0]:.3f}) and {scores[1]:.3f} ({wanted[1]:.3f})")
    assert abs(scores[0] - wanted[0]) < 1e-4
    return scores[1], wanted[1]


words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w1"))
PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w0",
                        bos_token="w0").save_pretrained("words")
tokenizer = PreTrainedTokenizerFast.from_pretrained("words")
config = HookedTransformerConfig(
    n_layers=LAYERS, d_model=WIDTH, n_ctx=16, d_head=8, n_heads=4, d_mlp=64, d_vocab=VOCAB,
    act_fn="gelu_new", normalization_type="LN", initializer_range=0.3, seed=0, device="cpu")
for factor in (1.0, 0.1, 0.0):
    torch.manual_seed(1)
    transcoders = {}
    for layer in range(LAYERS):
        transcoder = transcoders[layer] = SingleLayerTranscoder(
            WIDTH, FEATURES, torch.relu, layer, dtype=torch.float32, device=torch.device("cpu"))
        transcoder.W_enc.data = torch.randn(FEATURES, WIDTH) * 0.3
        transcoder.W_dec.data = torch.randn(FEATURES, WIDTH) * 0.3 * factor
        transcoder.b_enc.data -= 0.5
    model = TransformerLensReplacementModel.from_config(
        config, TranscoderSet(transcoders, "ln2.hook_normalized", "hook_mlp_out"),
        tokenizer=tokenizer)
    graph = attribute(torch.tensor([0, 3, 4, 5, 6]), model, max_n_logits=3)
    got, wanted = compare(f"decoders x {factor}", graph, LAYERS)
    assert got > wanted + 0.04
assert got > wanted + 0.2

for share in (0.0, 0.5, 1.0):
    edges = torch.zeros(3, 3)
    edges[2, 0], edges[2, 1] = share, 1 - share
    none = torch.empty(0, dtype=torch.long)
    graph = Graph("w3", torch.tensor([3]), none.reshape(0, 3), edges, graph.cfg, none, none,
                  [LogitTarget("w4", 4)], torch.ones(1))
    graph.cfg.n_layers = 1
    got, wanted = compare(f"{share:.0%} from the error", graph, 1)
    assert abs(wanted - (1 - share)) < 1e-6 and abs(got - (1 - share / 2)) < 1e-6
END
grep -E '^(decoders|[0-9]+%)' "$folder/out"
