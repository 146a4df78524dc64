"""What runs a graph, as a program of its own: whatever the graph does to it, gradscope goes on.

It is given a folder with ``model.onnx`` and ``inputs.npz``, and a number of bytes; it writes ``outputs.npz``.
"""

from __future__ import annotations

import sys
from pathlib import Path


def run_in(folder: str, memory: str) -> None:
    """Run the model in a folder, in no more than so many bytes of memory."""
    import numpy as np
    import onnxruntime

    if sys.platform == "linux":  # elsewhere nothing counts what a process takes
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    # As it stands in the file: what is optimised rounds otherwise.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    here = Path(folder)
    with np.load(here / "inputs.npz") as inputs:
        given = dict(inputs)
    model = onnxruntime.InferenceSession(here / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [output.name for output in model.get_outputs()]
    np.savez(here / "outputs.npz", **dict(zip(names, model.run(names, given), strict=True)))


if __name__ == "__main__":
    try:
        run_in(*sys.argv[1:])
    except Exception as error:  # any of onnxruntime's
        sys.exit(f"{type(error).__name__}: {error}")
