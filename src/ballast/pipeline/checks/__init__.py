"""What a command refuses before weights are loaded: common to all, of groups, of reinforcement learning."""
