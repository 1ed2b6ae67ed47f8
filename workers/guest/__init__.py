"""The guest inside an image: opened in a rescue environment, looked at, and changed there."""
