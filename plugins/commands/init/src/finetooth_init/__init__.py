"""A recipe from five questions, a look at the rows, and the plan's own estimate."""
