"""A client for finetooth servers; it offers names of the package `finetooth`, and no entry."""
