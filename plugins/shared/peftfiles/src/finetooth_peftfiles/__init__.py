"""What adapters through peft share: their targets, peft's layers in a model, artifacts, folding, going on with one."""
