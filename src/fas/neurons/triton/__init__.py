"""Neurons of one pass over memory on GPUs, in Triton; PyTorch runs them where there is none."""
