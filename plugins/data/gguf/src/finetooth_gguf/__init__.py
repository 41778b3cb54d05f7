"""finetooth-gguf: a loader for models kept in a GGUF file, also one inside an installed package."""
