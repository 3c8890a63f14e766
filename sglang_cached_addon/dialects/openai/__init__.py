"""What OpenAI's completions and chat have in common."""
