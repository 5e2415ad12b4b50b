"""Modules against real servers."""
