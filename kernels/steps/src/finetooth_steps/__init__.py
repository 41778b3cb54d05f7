"""finetooth-steps: code for correct optimizer steps with any array library."""
