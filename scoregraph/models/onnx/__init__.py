"""Networks from ONNX files: read (``graph``), rewritten to larger operators (``simplify``), and made a torch module."""

from scoregraph.models.onnx.load import from_onnx, onnx_module
from scoregraph.models.onnx.module import OnnxModule

__all__ = ["OnnxModule", "from_onnx", "onnx_module"]
