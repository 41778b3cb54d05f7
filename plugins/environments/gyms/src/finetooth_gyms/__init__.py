"""Environments that were written for others: verifiers, OpenEnv, NeMo Gym, the Tinker cookbook."""
