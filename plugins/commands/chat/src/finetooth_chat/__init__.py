"""`ft chat`: talk to a trained run or to a model."""
