"""Reads CSV, JSON, Parquet, Arrow and hub datasets with the datasets library."""
