"""Charts: what is drawn, its scales, the SVG, and the same figures as tables."""
