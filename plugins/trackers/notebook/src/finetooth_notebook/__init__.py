"""The losses of a run, drawn below the cell of a notebook."""
