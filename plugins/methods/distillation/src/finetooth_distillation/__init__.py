"""Learning from a teacher: its distributions over tokens, or its judgement of what the policy writes."""
