"""Read single files: EEG, sound, film, MATLAB, Parquet."""
