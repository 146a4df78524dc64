"""ONNX: layers in a graph, what stands between them, and the graph run on its inputs."""
