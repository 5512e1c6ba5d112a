"""Kinds of targets: classes, and what objects are made of.

Built by :func:`lamella.training.task.build_task`.
"""
