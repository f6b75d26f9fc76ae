"""How windows of each modality are stored, cut and measured, and what baselines read of them: one module a modality."""
