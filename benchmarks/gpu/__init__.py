"""DenseNet-121 on one GPU: training, inference, sizes, memory and loaders, against other people's loops."""
