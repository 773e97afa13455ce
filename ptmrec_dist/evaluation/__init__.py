"""Evaluation: ranking metrics, significance tests, figures and pages."""
