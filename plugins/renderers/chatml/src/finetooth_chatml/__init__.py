"""Renderers of markups that many families share: ChatML, Hermes, Zephyr, Vicuna, Alpaca."""
