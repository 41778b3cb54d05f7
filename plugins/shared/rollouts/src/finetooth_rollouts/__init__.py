"""Common code of online methods: rollouts, their rewards and advantages, and training steps on them."""
