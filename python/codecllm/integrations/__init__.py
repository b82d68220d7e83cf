"""Other libraries. Each file here imports one; nothing else in the package does."""

from .hooks import register_transformers

__all__ = ["register_transformers"]
