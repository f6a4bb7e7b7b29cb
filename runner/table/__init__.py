"""The tables of the paper: cells, results, figures, report."""
