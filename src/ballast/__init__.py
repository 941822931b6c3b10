"""ballast: supervised fine-tuning that leaves a language model ready for reinforcement learning."""
