"""Drawings of people (Labelme, COCO, VOC) and the label images they stand for."""
