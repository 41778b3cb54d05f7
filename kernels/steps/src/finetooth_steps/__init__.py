"""finetooth-steps: what makes an optimizer step correct, for any array library."""
