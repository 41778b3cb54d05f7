"""finetooth-schedulefree: optimizers that average weights instead of lowering rates."""
