"""finetooth-fewbits: optimizers with states in few bits."""
