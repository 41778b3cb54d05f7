"""Methods that learn from their own samples: GRPO and its relatives, RLOO, REINFORCE++."""
