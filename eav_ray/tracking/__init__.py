"""Report the progress of trainings: a line on stderr, TensorBoard, MLflow."""
