"""Deployment: ONNX export with a parity check, and a runtime without torch."""
