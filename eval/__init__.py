"""Evaluation of any folder of pictures; it reads files only and knows no method."""
