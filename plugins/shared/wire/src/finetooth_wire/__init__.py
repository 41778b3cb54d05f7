"""What servers of finetooth and their clients share: data and results as JSON, and TLS."""
