"""Neurons as compiled loops: all timesteps in one pass over memory. What they do not take runs in PyTorch, equally."""
