"""The Gemma family (Gemma 1 to 4) and the renderer of Gemma 2 and 3."""
