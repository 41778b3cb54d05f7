"""The gpt-oss family and its markup, Harmony."""
