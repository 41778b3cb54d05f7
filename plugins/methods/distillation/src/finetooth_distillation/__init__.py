"""Learning from a teacher: from its distributions over tokens, or its judgement of the policy's answers."""
