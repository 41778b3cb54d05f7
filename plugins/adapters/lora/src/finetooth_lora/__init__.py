"""LoRA adapters through peft, and the command that merges one into its base."""
