"""Datasets of LLaMA-Factory, as `dataset_info.json` lists them."""
