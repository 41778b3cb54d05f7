"""Common code of training methods: batches of rows, the reference model, health of preferences."""
