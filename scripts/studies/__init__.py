"""Verbs that measure: benchmark, gradients, speed, toy, and the plots of their results."""
