"""Whole models and checkpoint folders: compress, decompress, save, load, verify."""
