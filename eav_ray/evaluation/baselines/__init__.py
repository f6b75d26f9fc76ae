"""Classical classifiers on features without training: what an encoder has to beat, in the same protocol."""
