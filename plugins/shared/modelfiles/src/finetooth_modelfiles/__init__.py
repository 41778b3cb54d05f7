"""Common code of loaders of several frameworks: folders and hub ids in transformers' layout, without a framework."""
