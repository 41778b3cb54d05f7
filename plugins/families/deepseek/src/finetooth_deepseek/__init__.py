"""The DeepSeek family (V2, V3, R1) and the markup of V3, V3.1, R1 and its distilled models."""
