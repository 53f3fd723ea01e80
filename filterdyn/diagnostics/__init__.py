"""Diagnostics of filters and models."""
