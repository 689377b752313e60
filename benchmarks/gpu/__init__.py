"""Benchmarks of DenseNet-121 on one GPU: training, inference, input sizes, memory and loaders."""
