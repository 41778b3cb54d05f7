"""`ft export`: write what a run trained for another tool."""
