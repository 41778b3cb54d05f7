"""The Phi family (Phi-1 to Phi-4) and the renderers phi3 and phi4."""
