"""Measurements: what `./dev bench` runs. Figures are told side by side as medians and ratios, never asserted."""
