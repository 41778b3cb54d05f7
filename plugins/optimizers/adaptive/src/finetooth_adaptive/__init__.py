"""finetooth-adaptive: optimizers with other rules than AdamW's for the rate of each weight."""
