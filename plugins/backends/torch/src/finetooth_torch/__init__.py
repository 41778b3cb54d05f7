"""The torch backend of finetooth. Imports nothing heavy: `finetooth_torch.plugin` says what it offers."""
