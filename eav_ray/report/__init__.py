"""Statistics and tables made from results. Knows neither Ray nor torch."""
