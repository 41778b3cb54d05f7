"""Common code of finetooth's servers and clients: data and results as JSON, and TLS."""
