"""Adapters that let nearfar's losses work inside other libraries."""
