"""Every operator of the importer against ONNX Runtime, one node at a time, tensors and shape arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from scoregraph.models.onnx import onnx_module
from scoregraph.models.onnx.graph import OPERATORS

RNG = np.random.default_rng(0)
A = RNG.standard_normal((2, 6, 4, 4)).astype(np.float32)
B = RNG.standard_normal((2, 6, 4, 4)).astype(np.float32)
ROWS = RNG.standard_normal((2, 5, 8)).astype(np.float32)
POSITIVE = np.abs(A) + 0.5
IDS = np.array([[0, 2, 1], [3, 3, 0]], np.int64)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def model(operator, inputs, constants=(), opset=18, outputs=1, swap=False, **attributes):
    """One node: graph inputs with a batch in front, then constants; None is an operand that is not given."""
    names = [f"x{i}" for i in range(len(inputs))]
    given = [None if c is None else f"c{i}" for i, c in enumerate(constants)]
    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), ["batch", *value.shape[1:]]
        )
        for name, value in zip(names, inputs, strict=True)
    ]  # fmt: skip
    held = [numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(constants) if c is not None]
    results = [f"y{i}" for i in range(outputs)]
    operands = [*names, *(name or "" for name in given)]
    operands[:2] = operands[1::-1] if swap else operands[:2]
    node = helper.make_node(operator, operands, results, name="node", **attributes)
    answers = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in results]
    graph = helper.make_graph([node], "one", values, answers, held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(made)


def runtime(made, inputs):
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([each.name for each in session.get_inputs()], inputs, strict=True)))


UNARY = ["Neg", "Abs", "Exp", "Sin", "Cos", "Tanh", "Sigmoid", "Erf", "Relu", "Floor", "Ceil", "Sign"]
UNARY += ["Softplus", "Elu", "LeakyRelu", "HardSigmoid", "HardSwish"]
CASES = {
    **{operator: (operator, [A], ()) for operator in UNARY},
    **{operator: (operator, [POSITIVE], ()) for operator in ("Log", "Sqrt", "Reciprocal", "Identity", "Mish")},
    **{operator: (operator, [A, POSITIVE], ()) for operator in ("Add", "Sub", "Mul", "Div", "Max", "Min")},
    "number first": ("Sub", [A], (np.float32(1.0),), {"swap": True}),
    "over x": ("Div", [POSITIVE], (np.float32(2.0),), {"swap": True}),
    "Pow": ("Pow", [POSITIVE], (np.float32(1.7),)),
    "Mod": ("Mod", [POSITIVE], (np.float32(0.7),), {"fmod": 1}),
    "Clip": ("Clip", [A], (np.float32(-0.5), np.float32(0.7))),
    "Clip from above": ("Clip", [A], (None, np.float32(0.7))),
    "Dropout": ("Dropout", [A], (np.float32(0.5),)),
    "Gelu": ("Gelu", [A], (), {"opset": 20}),
    "Gelu tanh": ("Gelu", [A], (), {"opset": 20, "approximate": "tanh"}),
    "Cast": ("Cast", [IDS], (), {"to": 1}),
    "CastLike": ("CastLike", [IDS], (f32(1),)),
    "Where": ("Where", [A > 0, A, B], ()),
    "Not": ("Not", [A > 0], ()),
    **{f"{o} of truth": (o, [A > 0, B > 0], ()) for o in ("And", "Or")},
    **{o: (o, [A, B], ()) for o in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal")},
    "IsNaN": ("IsNaN", [A], ()),
    "Shape": ("Shape", [A], (), {"start": 1}),
    "Size": ("Size", [A], ()),
    "Reshape": ("Reshape", [A], (i64(0, 3, -1),)),
    "Flatten": ("Flatten", [A], (), {"axis": 2}),
    "Flatten all": ("Flatten", [A], (), {"axis": 1}),
    "Squeeze": ("Squeeze", [A[:, :1]], (i64(1),)),
    "Unsqueeze": ("Unsqueeze", [A], (i64(1, -1),)),
    "Transpose": ("Transpose", [A], (), {"perm": [0, 2, 3, 1]}),
    "Concat": ("Concat", [A, B], (), {"axis": 1}),
    "Split": ("Split", [A], (i64(1, 3, 2),), {"axis": 1, "outputs": 3}),
    "Split unevenly": ("Split", [ROWS], (), {"axis": 1, "num_outputs": 2, "outputs": 2}),
    "Slice": ("Slice", [A], (i64(1, -3), i64(5, 2**62), i64(1, 3), i64(2, 1))),
    "Slice backwards": ("Slice", [A], (i64(-1), i64(-(2**62)), i64(1), i64(-2))),
    "Gather rows": ("Gather", [IDS], (f32(4, 3),), {"swap": True}),
    "Gather blocks": ("Gather", [IDS], (f32(4, 3, 2),), {"swap": True}),
    "Gather one": ("Gather", [A], (np.array(2),), {"axis": 1}),
    "Gather some": ("Gather", [A], (i64(3, -1, 0),), {"axis": 1}),
    "Gather neighbours": ("Gather", [A], (i64(1, 2),), {"axis": 1}),
    "Gather table": ("Gather", [A], (IDS,), {"axis": 1}),
    "GatherElements": ("GatherElements", [ROWS, np.abs(IDS[:, :, None])], (), {"axis": 1}),
    "GatherND": ("GatherND", [ROWS], (np.array([[0, 1], [1, 2]]),)),
    "Expand": ("Expand", [A[:, :1]], (i64(1, 6, 1, 1),)),
    "Tile": ("Tile", [A], (i64(1, 2, 1, 3),)),
    "Pad": ("Pad", [A], (i64(0, 0, 1, 2, 0, 0, 0, 1), np.float32(0.5))),
    "Pad axes": ("Pad", [A], (i64(1, 2, 0, 1), None, i64(2, 3)), {"mode": "reflect"}),
    "Pad edge": ("Pad", [A], (i64(0, 0, 1, 2, 0, 0, 0, 1),), {"mode": "edge"}),
    "DepthToSpace": ("DepthToSpace", [f32(2, 8, 3, 3)], (), {"blocksize": 2}),
    "DepthToSpace CRD": ("DepthToSpace", [f32(2, 8, 3, 3)], (), {"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": ("SpaceToDepth", [A], (), {"blocksize": 2}),
    "Trilu": ("Trilu", [A], (np.array(1),), {"upper": 0}),
    "CumSum": ("CumSum", [A], (np.array(1),)),
    "MatMul": ("MatMul", [A, B], ()),
    "MatMul weight": ("MatMul", [ROWS], (f32(8, 3),)),
    "Gemm": ("Gemm", [ROWS[:, 0]], (f32(8, 3), f32(3)), {"alpha": 0.5, "beta": 2.0}),
    "Gemm transposed": ("Gemm", [ROWS[:, 0]], (f32(3, 8), f32(3)), {"transB": 1}),
    "Einsum": ("Einsum", [ROWS, f32(2, 7, 8)], (), {"equation": "bsd,btd->bst"}),
    "Conv": ("Conv", [A], (f32(3, 6, 3, 3), f32(3)), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "Conv one side": ("Conv", [A], (f32(3, 6, 3, 3),), {"pads": [0, 0, 1, 1]}),
    "Conv same": ("Conv", [A], (f32(3, 6, 2, 2),), {"auto_pad": "SAME_UPPER"}),
    "Conv groups": ("Conv", [A], (f32(4, 3, 3, 3),), {"group": 2, "dilations": [1, 1]}),
    "Conv 1d": ("Conv", [ROWS], (f32(3, 5, 3),), {"pads": [1, 1]}),
    "ConvTranspose": ("ConvTranspose", [A], (f32(6, 2, 2, 2),), {"strides": [2, 2]}),
    "AveragePool": ("AveragePool", [A], (), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "MaxPool": ("MaxPool", [A], (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 0]}),
    "GlobalAveragePool": ("GlobalAveragePool", [A], ()),
    "Resize": ("Resize", [A], (None, np.array([1, 1, 2, 2], np.float32)), {"mode": "nearest"}),
    "Resize by 3": (
        "Resize", [A], (None, np.array([1, 1, 3, 3], np.float32)),
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "Resize to": ("Resize", [A], (None, None, i64(2, 6, 8, 12)), {"mode": "linear"}),
    "InstanceNormalization": ("InstanceNormalization", [A], (f32(6), f32(6))),
    "GroupNormalization": ("GroupNormalization", [A], (f32(6), f32(6)), {"num_groups": 3, "opset": 21}),
    "GroupNormalization by group": ("GroupNormalization", [A], (f32(3), f32(3)), {"num_groups": 3}),
    "LayerNormalization": ("LayerNormalization", [ROWS], (f32(8), f32(8)), {"epsilon": 1e-3}),
    "LayerNormalization of two axes": ("LayerNormalization", [A], (f32(4, 4),), {"axis": 2}),
    "RMSNormalization": ("RMSNormalization", [ROWS], (f32(8),), {"opset": 23}),
    "BatchNormalization": ("BatchNormalization", [A], (f32(6), f32(6), f32(6), np.abs(f32(6)) + 0.1)),
    "Softmax": ("Softmax", [A], (), {"axis": 1}),
    "LogSoftmax": ("LogSoftmax", [A], ()),
    **{f"{o} attribute": (o, [POSITIVE], (), {"axes": [2, 3], "opset": 13}) for o in ("ReduceMean", "ReduceMax")},
    **{
        o: (o, [POSITIVE], (i64(-1),), {"keepdims": 0})
        for o in ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare"]
    },
    "Swish": ("Swish", [A], (), {"opset": 24, "alpha": 1.5}),
    "Attention": (
        "Attention", [f32(2, 5, 8), f32(2, 7, 8), f32(2, 7, 8)], (),
        {"q_num_heads": 2, "kv_num_heads": 2, "opset": 23},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_that_of_onnx_runtime(case):
    operator, inputs, constants, *options = CASES[case]
    attributes = dict(options[0]) if options else {}
    constants = [None if c is None else np.asarray(c) for c in constants]
    made = model(operator, inputs, constants, **attributes)
    try:
        expected = runtime(made, inputs)
    except Exception:  # each reason has a class of its own
        # It has no kernel for these; ONNX's own slow evaluation has.
        expected = ReferenceEvaluator(made).run(None, {f"x{i}": value for i, value in enumerate(inputs)})
    answer = onnx_module(made)(*(torch.from_numpy(value) for value in inputs))
    answers = answer if operator == "Split" else (answer,)
    assert len(answers) == len(expected)
    for got, theirs in zip(answers, expected, strict=True):
        array = np.asarray(got)
        assert array.shape == theirs.shape
        np.testing.assert_allclose(array.astype(np.float64), theirs.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_every_operator_has_a_case_here_or_is_shape_arithmetic():
    tested = {case[0] for case in CASES.values()}
    # Of shape arithmetic alone, in test_onnx.py; Linear is the importer's own.
    assert OPERATORS.keys() - tested == {"ConstantOfShape", "Range", "Linear"}
