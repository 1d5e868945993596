"""The OpenAI dialect: its requests, its answers, its event streams. Knows tokens only through `text`."""
