"""How windows of each modality are stored, cut and measured: one module a modality."""
