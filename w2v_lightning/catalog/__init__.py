"""Catalog: instance types, training images, prices, model sizes, defaults and shipped measurements."""
