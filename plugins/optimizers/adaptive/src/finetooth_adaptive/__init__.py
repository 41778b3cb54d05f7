"""finetooth-adaptive: optimizers with other ways to suit a rate to each weight."""
