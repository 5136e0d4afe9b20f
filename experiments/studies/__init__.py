"""Studies: questions about EGNO that one command each answers, with data and a figure."""
