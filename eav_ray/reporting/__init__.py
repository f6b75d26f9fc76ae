"""Render results as tables, figures and pages. Knows neither Ray nor torch."""
