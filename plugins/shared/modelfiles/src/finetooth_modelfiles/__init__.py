"""What loaders of several frameworks share: folders and hub ids in transformers' layout, without a framework."""
