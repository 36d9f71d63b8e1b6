"""Sending notifications: what a message says, and how it gets to a webhook or a service."""
