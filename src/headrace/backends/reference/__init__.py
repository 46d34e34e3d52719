"""The oracle: a dense decoder in plain NumPy float32, one token at a time."""
