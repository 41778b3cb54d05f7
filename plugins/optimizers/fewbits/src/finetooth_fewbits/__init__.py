"""finetooth-fewbits: optimizers whose states have few bits."""
