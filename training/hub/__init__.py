"""A trained model on the Hub: what travels, what proves it, the page it gets, and how it is sent."""
