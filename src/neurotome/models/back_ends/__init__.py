"""What runs a trained network: torch, ONNX Runtime, OpenVINO; the fastest is chosen on the user's own tile."""
