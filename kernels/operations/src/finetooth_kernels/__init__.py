"""Pure functions for the hot paths of finetooth; import them from their modules.

This package imports nothing heavy by itself: ``from finetooth_kernels.linear_logprob import linear_logprob`` does.
"""
