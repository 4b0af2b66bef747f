"""Models for others: ONNX files, bioimage.io packages, folders for a hub."""
