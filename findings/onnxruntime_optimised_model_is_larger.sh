#!/usr/bin/env bash
# Guess: writing out the model that ONNX Runtime's graph optimisations made
# gives a file that is no larger than the one it was made from. In GPT-2 the
# token embedding is also the output matrix, stored once, and stays so.
#
# Versions: onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6.
#
# Seen: the optimised file is twice as large. The output matrix is the
# transposed embedding; "basic" optimisation folds that transpose into a new
# constant, while the embedding itself is still needed for look-ups. The file
# and the session hold both, and so do later steps such as int8 quantization.
#
#   as built: 20.5 MB, matrices [[20000, 256]]
#   optimised: 41.0 MB, matrices [[20000, 256], [256, 20000]]
#   largest difference of the outputs: 0.0
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
    'onnx==1.23.2' 'onnxruntime==1.32.0' 'numpy==2.4.6'

"$work/venv/bin/python" - "$work" <<'PY'
import os
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto
from onnx import helper
from onnx import numpy_helper

VOCAB = 20000
WIDTH = 256
built = os.path.join(sys.argv[1], "built.onnx")
optimised = os.path.join(sys.argv[1], "optimised.onnx")

rng = np.random.default_rng(0)
embedding = rng.normal(0, 0.02, (VOCAB, WIDTH)).astype(np.float32)
graph = helper.make_graph(
    [
        helper.make_node("Gather", ["wte", "ids"], ["x"]),
        helper.make_node("Tanh", ["x"], ["h"]),
        helper.make_node("Transpose", ["wte"], ["head"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "head"], ["logits"]),
    ],
    "tied",
    [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", VOCAB])],
    [numpy_helper.from_array(embedding, "wte")],
)
opset = helper.make_opsetid("", 17)
model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
onnx.checker.check_model(model)
onnx.save(model, built)

options = onnxruntime.SessionOptions()
options.log_severity_level = 3
level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
options.graph_optimization_level = level
options.optimized_model_filepath = optimised
providers = ["CPUExecutionProvider"]
onnxruntime.InferenceSession(built, options, providers=providers)


def describe(name, path):
    size = os.path.getsize(path)
    shapes = [list(w.dims) for w in onnx.load(path).graph.initializer]
    matrices = sorted((s for s in shapes if len(s) == 2), reverse=True)
    print(f"{name}: {size / 1e6:.1f} MB, matrices {matrices}")
    return size, matrices


def logits(path):
    session = onnxruntime.InferenceSession(path, providers=providers)
    return session.run(None, {"ids": np.arange(8)})[0]


before, _ = describe("as built", built)
after, matrices = describe("optimised", optimised)
difference = abs(logits(built) - logits(optimised)).max()
print("largest difference of the outputs:", float(difference))

assert matrices == [[VOCAB, WIDTH], [WIDTH, VOCAB]]
assert after > 1.9 * before
assert difference < 1e-5
PY
